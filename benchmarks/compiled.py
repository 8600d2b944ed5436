"""Whether `torch.compile` pays for a training step: PEFT's model, as it is and compiled, and Weft.

A step is forward and backward alone, on rows filled up to the longest of the batch (Weft: without
padding), with the rows of `sft_step` and the first layers of its model: compiling takes in
proportion to layers. Lengths change from step to step, so that shapes are compiled as unknown
(`dynamic`). The first step of each round, with the compiler's caches off, is the cold start that
stands below the table; the next one warms up.

Weft's own forward is not compiled: on a processor the compiler refuses oneDNN's product where its
weight is an input of the graph, as Weft calls it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from benchmarks import report
from benchmarks.alpaca_lengths import random_batches
from benchmarks.device import Clock, Device
from benchmarks.harness import Contender, Run, Spread, Trace
from benchmarks.race import Benchmark, Options, Race, raced, tell
from benchmarks.sft_peers import Padding, row_of
from benchmarks.sft_step import BATCH_ROWS, RECIPES, SEED, Recipe, check_first_losses, scorer_of
from weft.core.batch import Batch
from weft.core.keys import Key
from weft.core.memory import freed_memory_kept
from weft.model.adapter import initial_adapter

NAME = "compile"
COMPILED = "peft_compiled"
WARM_UP = 2
LAYERS = 4

Step = Callable[[Batch], float]
"""Forward and backward; the loss."""


@dataclass(frozen=True)
class Compiled(report.Speeds):
    """With the seconds of each contender's first step, one entry a round."""

    cold: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """Cold starts first."""
        first = {name: Spread.of(readings).median for name, readings in self.cold.items()}
        said = "; ".join(f"{m.what} {first[m.contender]:.3g} s" for m in self.measurements)
        return [f"the first step of all: {said}", *super().notes]


def build_peft(recipe: Recipe, *, compiled: bool) -> Step:
    """PEFT's LoRA on transformers' model."""
    model, device = recipe.peft_model(), recipe.device.torch
    trained = [p for p in model.parameters() if p.requires_grad]
    if compiled:
        torch.compiler.reset()
        torch.compiler.config.force_disable_caches = True
    call = torch.compile(model, dynamic=True) if compiled else model
    padded = Padding(None, recipe.pad)

    def step(batch: Batch) -> float:
        inputs = padded([row_of(example) for example in batch.examples])
        loss = call(**{name: each.to(device) for name, each in inputs.items()}).loss
        torch.autograd.grad(loss, trained)
        return float(loss.detach())

    return step


def build_weft(recipe: Recipe) -> Step:
    """Weft's engine."""
    scorer = scorer_of(recipe)
    theta_1P = initial_adapter(scorer.layout, Key.of(SEED)).flat[None].to(recipe.device.torch)
    return lambda batch: scorer.gradient(theta_1P, [batch], [Key.of(SEED)]).loss_L[0]


def timed(step: Step, device: Device, cold: list[float]) -> Run:
    """A run; what its first step took is noted."""

    @freed_memory_kept()
    def run(batches: Sequence[Batch]) -> Trace:
        clock, losses = Clock(device), []
        for batch in batches:
            with clock.step():
                loss = step(batch)
            losses.append(loss)
        cold.append(clock.seconds[0])
        return Trace(tuple(clock.seconds), tuple(losses))

    return run


def without_compiler() -> str | None:
    """Why nothing is compiled, if so."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name):
        return None
    return f"torch.compile is left out: there is no C++ compiler {name!r} (CXX names another)"


def run(options: Options) -> Compiled:
    """All of them in turn, and cold starts beside them."""
    recipe = RECIPES[0].small() if options.quick else RECIPES[0]
    layers = 1 if options.quick else LAYERS
    recipe = replace(recipe, layers=layers, device=options.device)
    left_out = without_compiler()
    if left_out:
        tell(left_out)
    builds: dict[str, tuple[str, Callable[[], Step]]] = {
        "peft": ("PEFT", lambda: build_peft(recipe, compiled=False)),
        COMPILED: ("PEFT, torch.compile", lambda: build_peft(recipe, compiled=True)),
        "weft": ("Weft", lambda: build_weft(recipe)),
    }
    if left_out:
        del builds[COMPILED]
    cold: dict[str, list[float]] = {name: [] for name in builds}

    def contender(name: str) -> Contender:
        what, build = builds[name]
        return Contender(name, what, lambda: timed(build(), recipe.device, cold[name]))

    def race(options: Options) -> Race:
        rows = random_batches(options.timed + WARM_UP, BATCH_ROWS, recipe.vocabulary, Key.of(SEED))
        return Race(
            what=f"the first {layers} layers of it: {recipe.what}; forward and backward alone",
            contenders=[contender(name) for name in builds],
            batches=rows[WARM_UP:],
            vocabulary=recipe.vocabulary,
            warm_up=rows[:WARM_UP],
            check=lambda measured: check_first_losses(measured, recipe.dtype),
        )

    result = raced(NAME, race).run(replace(options, profile=False))
    return Compiled(**vars(result), cold={name: tuple(each) for name, each in cold.items()})


BENCHMARKS = (Benchmark(NAME, run),)
