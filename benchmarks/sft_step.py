"""One LoRA training step on a GPT-2-small-shaped model: Weft, and PEFT with the Trainer.

Everyone gets the same rows in the same order, the same random fp32 base and the same recipe: rank
8, alpha 16, dropout 0.1 on `c_attn` and `c_proj`, AdamW at 2e-4, gradients clipped at norm 1, loss
on the response only. The base's own dropout is 0 for everyone, as in current base models. B starts
at zero, so the loss of the first step does not depend on A or on the dropout masks: it must be the
same number for everyone, and `check_first_losses` sees to it.

`base_dropout` is the other case: GPT-2's own dropout of 0.1 as its configuration has it, which the
Trainer leaves on and Weft turns on when asked. First losses then differ by their noise.
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Sequence
from types import SimpleNamespace

import peft
import torch
import transformers

from benchmarks.harness import Contender, Measurement, Run, Trace
from weft.core.batch import IGNORE, Batch, Example
from weft.core.errors import CheckFailed
from weft.core.keys import Key
from weft.engines.scorer import LocalScorer
from weft.methods.config import BackpropConfig, OptimiserConfig
from weft.methods.estimate import Point
from weft.methods.optimise import Moments, adamw, clip, rate
from weft.methods.registry import METHODS
from weft.model.adapter import initial_adapter
from weft.model.base import prepare
from weft.model.config import AdapterConfig
from weft.model.noise import global_generator
from weft.model.sites import choose_sites

BATCH_ROWS = 4
PADDED_LENGTH = 512
VOCABULARY = 50257
TARGETS = ("c_attn", "c_proj")
RANK = 8
ALPHA = 16
DROPOUT = 0.1
BASE_DROPOUT = 0.1
LEARNING_RATE = 2e-4
MAX_GRAD_NORM = 1.0
SEED = 0


def base_model(dropout: float) -> transformers.GPT2LMHeadModel:
    """GPT-2 small with random fp32 weights, the same at every call."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout
    )
    with global_generator(Key.of(SEED).fold("base")):
        return transformers.GPT2LMHeadModel(config)


# PEFT and the Trainer


class Padding:
    """A collator: rows filled up to `length`, or to the longest of the batch when None."""

    def __init__(self, length: int | None) -> None:
        self.length = length

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Tensors [rows, length]."""
        length = self.length or max(len(row["input_ids"]) for row in rows)

        def filled(name: str, value: int) -> torch.Tensor:
            return torch.tensor([r[name] + [value] * (length - len(r[name])) for r in rows])

        return {
            "input_ids": filled("input_ids", VOCABULARY - 1),
            "attention_mask": filled("attention_mask", 0),
            "labels": filled("labels", IGNORE),
        }


class StepClock(transformers.TrainerCallback):
    """Seconds from the start to the end of each step: no data loading, no logging."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        """Start of forward and backward."""
        self._start = time.perf_counter()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """After the optimiser's step."""
        self.seconds.append(time.perf_counter() - self._start)


class RecordingTrainer(transformers.Trainer):
    """The Trainer, with the loss of each step kept."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[torch.Tensor] = []

    def compute_loss(self, *args: object, **kwargs: object) -> torch.Tensor:
        """The parent's loss."""
        loss = super().compute_loss(*args, **kwargs)
        self.losses.append(loss.detach())
        return loss


def _row(example: Example) -> dict[str, list[int]]:
    return {
        "input_ids": example.ids_T.tolist(),
        "attention_mask": [1] * example.tokens,
        "labels": example.labels_T.tolist(),
    }


def build_peft_trainer(pad_to: int | None, base_dropout: float = 0.0) -> Run:
    """PEFT on the Trainer, both with their defaults for this recipe."""
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=list(TARGETS),
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base_model(base_dropout), config)

    def run(batches: Sequence[Batch]) -> Trace:
        clock = StepClock()
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = RecordingTrainer(
                model=model,
                args=transformers.TrainingArguments(
                    output_dir=scratch,
                    per_device_train_batch_size=BATCH_ROWS,
                    max_steps=len(batches),
                    learning_rate=LEARNING_RATE,
                    max_grad_norm=MAX_GRAD_NORM,
                    train_sampling_strategy="sequential",
                    use_cpu=True,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=[_row(e) for batch in batches for e in batch.examples],
                data_collator=Padding(pad_to),
                callbacks=[clock],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        return Trace(tuple(clock.seconds), tuple(float(loss) for loss in trainer.losses))

    return run


# Weft


def build_weft(base_dropout: float = 0.0) -> Run:
    """Weft's engine, gradient estimator and optimiser, put together as its training loop does."""
    fill = SimpleNamespace(pad_token_id=0, eos_token_id=0)  # rows are ids: nothing is tokenised
    base = prepare("random GPT-2", base_model(base_dropout), fill)
    adapter = AdapterConfig(rank=RANK, alpha=ALPHA, dropout=DROPOUT, targets=TARGETS)
    layout = choose_sites(base.sites, adapter)
    engine = LocalScorer(base, layout, dropout=adapter.dropout, base_dropout=base_dropout > 0)
    optimiser = OptimiserConfig(lr=LEARNING_RATE, clip=MAX_GRAD_NORM)
    key = Key.of(SEED)

    def run(batches: Sequence[Batch]) -> Trace:
        theta_LP = initial_adapter(layout, key).flat[None]
        moments = Moments.fresh(theta_LP)
        seconds, losses = [], []
        for step, batch in enumerate(batches):
            start = time.perf_counter()
            point = Point(theta_LP, None, [batch], [key.fold("step", step)])
            estimate = METHODS["backprop"].estimate(BackpropConfig(), point, engine)
            direction_LP, _ = clip(estimate.direction_LP, optimiser.clip)
            lr_L1 = torch.full((1, 1), optimiser.lrs[0] * rate(optimiser, step, len(batches)))
            theta_LP, moments = adamw(theta_LP, direction_LP, lr_L1, moments, optimiser)
            seconds.append(time.perf_counter() - start)
            losses.append(estimate.loss_L[0])
        return Trace(tuple(seconds), tuple(losses))

    return run


# the contenders, and that they compute the same thing


def contenders(base_dropout: float = 0.0) -> list[Contender]:
    """Everyone who takes part, in running order."""
    return [
        Contender(
            "peft_trainer_padded",
            f"PEFT, padded to {PADDED_LENGTH}",
            lambda: build_peft_trainer(PADDED_LENGTH, base_dropout),
        ),
        Contender(
            "peft_trainer_dynamic",
            "PEFT, padded to longest",
            lambda: build_peft_trainer(None, base_dropout),
        ),
        Contender("weft", "Weft", lambda: build_weft(base_dropout)),
    ]


def check_first_losses(measurements: Sequence[Measurement]) -> None:
    """Everyone starts from the same function, so everyone's first loss is the same."""
    losses = {m.contender: m.rounds[0].first_result for m in measurements}
    wanted = next(iter(losses.values()))
    if not all(math.isclose(loss, wanted, rel_tol=1e-5) for loss in losses.values()):
        raise CheckFailed(
            f"the contenders do not train the same thing: first losses {losses}",
            "a comparison of speed is void until these agree",
        )
