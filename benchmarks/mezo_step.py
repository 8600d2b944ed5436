"""One MeZO step on an opt-350m-shaped model: Weft, and MeZO as published, with PEFT's LoRA.

Everyone gets the same rows, the same random fp32 base and the same adapter, whose B is not zero,
and minimises the same loss: cross-entropy between two one-token options after a prompt, with both
factors perturbed by +-eps z. The loss of the first batch at theta itself must be the same number
for everyone (`check_first_losses`).

The peer does what the reference implementation of MeZO (arXiv 2305.17333) does in a step: it adds
eps z to every trainable tensor in place, one after another, from a generator seeded for the step;
runs the whole batch; re-seeds and subtracts 2 eps z; runs it again; re-seeds and adds eps z; then
re-seeds once more and subtracts lr g z. A row is one sequence for each option, padded on the left
to a multiple of 8 tokens; a forward makes the logits of the whole vocabulary at every position,
takes their log-softmax and compares the options by the mean over their own tokens. It is spared
the key/value cache that the library would fill by default.

Weft scores the 2q perturbed members in one forward: with one position a row, since both options
are one token; or, named apart, with both options read as the peer reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Protocol

import numpy as np
import peft
import torch

from benchmarks.alpaca_lengths import describe
from benchmarks.device import Clock, Device
from benchmarks.harness import Contender, Measurement, Run, Trace
from benchmarks.limit import Limit
from benchmarks.mezo_task import (
    ADAPTER,
    BEGIN,
    DIRECTIONS,
    EPS,
    LEARNING_RATE,
    OPT_350M,
    OPTIONS,
    PAD,
    PAD_MULTIPLE,
    SEED,
    SMALL,
    TARGETS,
    WHAT,
    Shape,
    first_adapter,
    random_batches,
)
from benchmarks.race import Options, Race, raced
from weft.core.batch import Batch
from weft.core.errors import CheckFailed
from weft.core.keys import Key
from weft.core.memory import freed_memory_kept
from weft.engines.scorer import LocalScorer
from weft.methods.config import MezoConfig, OptimiserConfig
from weft.methods.estimate import Point
from weft.methods.optimise import Moments, update
from weft.methods.registry import METHODS
from weft.model.base import prepare
from weft.model.noise import global_generator
from weft.model.objectives import MeanChoice, Objective, OneTokenChoice


class Stepper(Protocol):
    """What takes part: the loss of a batch at the current theta, and one step."""

    def loss(self, batch: Batch) -> float: ...

    def step(self, batch: Batch) -> None: ...


def timed(stepper: Stepper, device: Device) -> Run:
    """A run whose first result is the loss of its first batch before any step."""

    def run(batches: Sequence[Batch]) -> Trace:
        first, clock = stepper.loss(batches[0]), Clock(device)
        for batch in batches:
            with clock.step():
                stepper.step(batch)
        return Trace(tuple(clock.seconds), (first,))

    return run


# transformers with PEFT


def peft_model(shape: Shape) -> peft.PeftModel:
    """PEFT's LoRA on transformers' model, with the adapter from which everyone starts."""
    base = shape.model()
    adapter = first_adapter(base)
    config = peft.LoraConfig(
        r=ADAPTER.rank,
        lora_alpha=ADAPTER.effective_alpha,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base, config).eval()
    for name, (a_rI, b_Or) in adapter.sites.items():
        module = model.get_base_model().get_submodule(name)
        module.lora_A["default"].weight.data.copy_(a_rI)
        module.lora_B["default"].weight.data.copy_(b_Or)
    return model


def left_padded(
    rows: Sequence[np.ndarray], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [rows, length], filled on the left up to a multiple of 8 tokens."""
    length = math.ceil(max(map(len, rows)) / PAD_MULTIPLE) * PAD_MULTIPLE
    ids_RL = torch.full((len(rows), length), PAD)
    mask_RL = torch.zeros_like(ids_RL)
    for number, row in enumerate(rows):
        ids_RL[number, length - len(row) :] = torch.from_numpy(row)
        mask_RL[number, length - len(row) :] = 1
    return ids_RL.to(device), mask_RL.to(device)


class PublishedMezo:
    """MeZO's step: walks over the parameters in place, two forwards one after the other."""

    def __init__(self, shape: Shape) -> None:
        self.model, self.device = peft_model(shape), shape.device.torch
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.steps = 0

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy over the options' mean log-probabilities; rows run option by option."""
        choices = [example.choice for example in batch.examples]
        options = [(c.prompt_T, option) for c in choices for option in c.candidates]
        rows = [np.append(prompt_T, option) for prompt_T, option in options]
        ids_RL, mask_RL = left_padded(rows, self.device)
        out = self.model(input_ids=ids_RL, attention_mask=mask_RL, use_cache=False)
        logp_RLV = out.logits[:, :-1].contiguous().log_softmax(-1)
        logp_RL = logp_RLV.gather(2, ids_RL[:, 1:, None]).squeeze(2)
        length = logp_RL.shape[1]
        spans_R1 = torch.tensor([[len(option)] for _, option in options], device=self.device)
        own_RL = torch.arange(length, device=self.device) >= length - spans_R1
        mean_R = (logp_RL * own_RL).sum(1) / own_RL.sum(1)
        right_E = torch.tensor([choice.right for choice in choices], device=self.device)
        return torch.nn.functional.cross_entropy(mean_R.view(len(choices), -1), right_E)

    def loss(self, batch: Batch) -> float:
        """At the current parameters."""
        return self.forward(batch).item()

    def step(self, batch: Batch) -> None:
        """The two losses, and the update."""
        key = Key.of(SEED).fold("z", self.steps)
        self.walk(key, EPS)
        up = self.forward(batch)
        self.walk(key, -2 * EPS)
        down = self.forward(batch)
        slope = ((up - down) / (2 * EPS)).item()
        self.walk(key, EPS)
        self.walk(key, -LEARNING_RATE * slope)
        self.steps += 1

    def walk(self, key: Key, factor: float) -> None:
        """Add factor * z to every trainable tensor, with z drawn anew from the same seed."""
        with global_generator(key):  # of the device where the parameters are
            for parameter in self.trainable:
                z = torch.normal(
                    0.0, 1.0, parameter.shape, dtype=parameter.dtype, device=self.device
                )
                parameter.data = parameter.data + factor * z


class Inference:
    """What it takes to answer the batch: one forward, logits at the last position only."""

    def __init__(self, shape: Shape) -> None:
        self.model, self.device = peft_model(shape), shape.device.torch

    @torch.inference_mode()
    def loss(self, batch: Batch) -> float:
        """Cross-entropy between the options at the end of the prompts."""
        choices = [example.choice for example in batch.examples]
        ids_EL, mask_EL = left_padded([choice.prompt_T for choice in choices], self.device)
        out = self.model(
            input_ids=ids_EL, attention_mask=mask_EL, use_cache=False, logits_to_keep=1
        )
        logits_E2 = out.logits[:, -1, [token for (token,) in OPTIONS]]
        right_E = torch.tensor([choice.right for choice in choices], device=self.device)
        return torch.nn.functional.cross_entropy(logits_E2, right_E).item()

    step = loss


# Weft


class WeftMezo:
    """Weft's scorer, estimator and optimiser, put together as its training loop does."""

    def __init__(self, shape: Shape, objective: Objective, directions: int = 1) -> None:
        fill = SimpleNamespace(pad_token_id=PAD, eos_token_id=BEGIN)  # nothing is tokenised
        self.device = shape.device
        base = prepare("random OPT", shape.model(), fill)
        adapter = first_adapter(base.model)
        self.scorer = LocalScorer(base, adapter.layout, objective=objective)
        self.method = MezoConfig(eps=EPS, directions=directions)
        self.optimiser = OptimiserConfig(
            name="sgd", lr=LEARNING_RATE, schedule="constant", clip=None
        )
        self.theta_LP = adapter.flat[None].to(shape.device.torch)
        self.moments = Moments.fresh(self.theta_LP)
        self.steps = 0

    def loss(self, batch: Batch) -> float:
        """At the current theta."""
        return float(self.scorer.losses(self.theta_LP[:, None], [batch])[0, 0])

    def step(self, batch: Batch) -> None:
        """The estimate, and the update."""
        point = Point(self.theta_LP, None, [batch], [Key.of(SEED).fold("step", self.steps)])
        estimate = METHODS["mezo"].estimate(self.method, point, self.scorer)
        lr_L1 = self.theta_LP.new_full((1, 1), LEARNING_RATE)
        self.theta_LP, self.moments = update(
            self.theta_LP, estimate.direction_LP, lr_L1, self.moments, self.optimiser
        )
        self.steps += 1


def weft_run(stepper: WeftMezo) -> Run:
    """With freed memory kept, as the training loop does."""
    return freed_memory_kept()(timed(stepper, stepper.device))


# the contenders, and that they compute the same thing


def contenders(shape: Shape) -> list[Contender]:
    """Everyone who takes part, in running order."""

    def contender(name: str, what: str, make: Callable[[], Stepper]) -> Contender:
        return Contender(name, what, lambda: timed(make(), shape.device))

    def weft(name: str, what: str, objective: Objective) -> Contender:
        return Contender(name, what, lambda: weft_run(WeftMezo(shape, objective)))

    return [
        contender("mezo", "MeZO, PEFT", lambda: PublishedMezo(shape)),
        contender("inference", "inference, PEFT", lambda: Inference(shape)),
        weft("weft_both", "Weft, both options", MeanChoice()),
        weft("weft", "Weft", OneTokenChoice()),
    ]


def named(directions: int) -> str:
    """Weft with so many directions, as a contender."""
    return "weft" if directions == 1 else f"weft_{directions}"


def directions_contenders(shape: Shape) -> list[Contender]:
    """Weft with more and more directions a step."""

    def contender(directions: int) -> Contender:
        stepper = lambda: WeftMezo(shape, OneTokenChoice(), directions)  # noqa: E731
        return Contender(named(directions), f"q = {directions}", lambda: weft_run(stepper()))

    return [contender(directions) for directions in DIRECTIONS]


def check_first_losses(measurements: Sequence[Measurement]) -> None:
    """Everyone's first batch has the same loss at theta."""
    losses = {m.contender: m.rounds[0].first_result for m in measurements}
    wanted = next(iter(losses.values()))
    if not all(math.isclose(loss, wanted, rel_tol=1e-5) for loss in losses.values()):
        raise CheckFailed(
            f"the contenders do not score the same thing: first losses {losses}",
            "a comparison of speed is void until these agree",
        )


def limits(shape: Shape, batches: Sequence[Batch], directions: int, name: str) -> list[Limit]:
    """The base's products of Weft's step: prompts of the mean length, once for each member."""
    prompts = [e.choice.prompt_T for batch in batches for e in batch.examples if e.choice]
    tokens = 2 * directions * round(sum(map(len, prompts)) / len(batches))
    what = "the base alone" if directions == 1 else f"the base alone at q = {directions}"
    products = Limit.of(what, shape.stack.body(tokens), torch.float32, shape.device)
    read = shape.stack.weights * torch.float32.itemsize
    found = [products, Limit.of_reading("its weights", read, shape.device)]
    return [replace(limit, contender=name) for limit in found]


def race(
    who: Callable[[Shape], list[Contender]], limited: Mapping[str, int]
) -> Callable[[Options], Race]:
    """One MeZO step of all of them, on the same rows; a limit for contenders with directions."""

    def made(options: Options) -> Race:
        shape = replace(SMALL if options.quick else OPT_350M, device=options.device)
        batches = random_batches(options.timed, shape)
        lengths = [example.tokens for batch in batches for example in batch.examples]
        return Race(
            what=f"{shape.what}; {WHAT}; tokens per row: {describe(lengths)}",
            contenders=who(shape),
            batches=batches,
            vocabulary=shape.vocabulary,
            warm_up=batches[:1],
            limits=[
                limit
                for name, directions in limited.items()
                for limit in limits(shape, batches, directions, name)
            ],
            check=check_first_losses,
        )

    return made


BENCHMARKS = (
    raced("mezo_step", race(contenders, {"weft": 1})),
    raced("mezo_directions", race(directions_contenders, {named(q): q for q in DIRECTIONS})),
)
