"""LoRA training on the bundled base: Weft, and mlx-lm's own trainer on the processor.

The same fp32 weights, the same rows in the same order: LoRA of rank 8 and scale 20 on every linear
layer, Adam at 1e-5, no dropout, loss on the response only. mlx-lm pads a batch to a multiple of 32
tokens and compiles its step for every length that comes up; lengths come up in the warm-up as well,
so that nobody is timed while compiling. Its own loss counts one token of padding in each row; it is
given one that does not, so that the first losses can be the same.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import numpy as np
import torch
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers

from benchmarks import mlx_peer
from benchmarks.alpaca_lengths import describe, random_batches
from benchmarks.device import CPU
from benchmarks.harness import Contender, Run, Trace
from benchmarks.limit import Limit
from benchmarks.race import Options, Race, raced
from benchmarks.sft_step import SEED, check_first_losses, weft_steps
from benchmarks.shapes import Stack
from weft.core.batch import IGNORE, Batch
from weft.core.keys import Key
from weft.engines.scorer import LocalScorer
from weft.methods.config import OptimiserConfig
from weft.model.base import load_base, load_config
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites

BASE = "weft/tiny"
ROWS = 4
VOCABULARY = 4096
ADAPTER = AdapterConfig(rank=8, scale=20.0)
OPTIMISER = OptimiserConfig(lr=1e-5, clip=None, schedule="constant")
PAD_TO = 32
WHAT = (
    f"{BASE} in fp32; LoRA rank {ADAPTER.rank}, scale {ADAPTER.scale:g} on all linear layers, no "
    f"dropout; batches of {ROWS} rows"
)


def build_weft() -> Run:
    """Weft's engine, gradient estimator and optimiser."""
    base = load_base(BASE)
    engine = LocalScorer(base, choose_sites(base.sites, ADAPTER))
    return weft_steps(engine, OPTIMISER, adapters=1, rows=ROWS, device=CPU)


class _Clock(TrainingCallback):  # type: ignore[misc]
    """Seconds and loss of each step, as the trainer itself reports them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        """After every step: the report is of one."""
        self.seconds.append(1 / train_info["iterations_per_second"])
        self.losses.append(train_info["train_loss"])


def build_mlx() -> Run:
    """mlx-lm's trainer."""
    model, _ = mlx_peer.loaded(BASE)
    model.freeze()
    layer = model.layers[0]
    keys = {name for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    lora = {"rank": ADAPTER.rank, "scale": ADAPTER.scale, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, len(model.layers), lora)

    def run(batches: Sequence[Batch]) -> Trace:
        clock = _Clock()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            arguments = TrainingArgs(
                batch_size=ROWS,
                iters=len(batches),
                steps_per_report=1,
                steps_per_save=len(batches) + 1,
                adapter_file=str(Path(folder) / "adapters.safetensors"),
            )
            train(
                model,
                mlx.optimizers.Adam(learning_rate=OPTIMISER.lrs[0]),
                train_dataset=None,
                args=arguments,
                loss=_loss,
                iterate_batches=lambda **settings: map(_padded, batches),
                training_callback=clock,
            )
        return Trace(tuple(clock.seconds), tuple(clock.losses))

    return run


def _padded(batch: Batch) -> tuple[mx.array, mx.array]:
    """Token ids, and where a row's response begins and ends, as mlx-lm's own batches are."""
    longest = max(row.tokens for row in batch.examples)
    ids = np.zeros((len(batch.examples), 1 + PAD_TO * -(-longest // PAD_TO)), np.int32)
    for number, row in enumerate(batch.examples):
        ids[number, : row.tokens] = row.ids_T
    spans = [(int(np.argmax(row.labels_T != IGNORE)), row.tokens) for row in batch.examples]
    return mx.array(ids), mx.array(spans)


def _loss(model: nn.Module, batch: mx.array, spans: mx.array) -> tuple[mx.array, mx.array]:
    """mlx-lm's loss without the token of padding after each row."""
    logits, targets = model(batch[:, :-1]), batch[:, 1:]
    place = mx.arange(1, targets.shape[1] + 1)
    counts = mx.logical_and(place >= spans[:, 0:1], place < spans[:, 1:])
    nll, tokens = nn.losses.cross_entropy(logits, targets) * counts, counts.sum()
    return nll.astype(mx.float32).sum() / tokens, tokens


def contenders() -> list[Contender]:
    """Everyone who takes part, in running order."""
    return [
        Contender("mlx_lm", "mlx-lm", build_mlx),
        Contender("weft", "Weft", build_weft),
    ]


def limits(batches: Sequence[Batch]) -> list[Limit]:
    """The base's products of a step on rows of the mean length, and its weights, read twice."""
    tokens = round(sum(batch.tokens for batch in batches) / len(batches))
    targets = round(sum(batch.supervised for batch in batches) / len(batches))
    stack = Stack.of_llama(load_config(BASE))
    return [
        Limit.of("the base alone", stack.training(tokens, targets), torch.float32),
        Limit.of_reading("its weights", 2 * stack.weights * torch.float32.itemsize),
    ]


def race(options: Options) -> Race:
    """Training steps of Weft and of mlx-lm's trainer."""
    batches = random_batches(options.timed, ROWS, VOCABULARY, Key.of(SEED))
    lengths = [example.tokens for batch in batches for example in batch.examples]
    return Race(
        what=f"{WHAT}; tokens per row: {describe(lengths)}",
        contenders=contenders(),
        batches=batches,
        vocabulary=VOCABULARY,
        warm_up=batches,
        limits=limits(batches),
        check=lambda measurements: check_first_losses(measurements, "float32"),
    )


BENCHMARKS = (replace(raced("mlx_training", race), only_cpu="mlx-lm is measured on the processor"),)
