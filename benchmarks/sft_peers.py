"""The peers of a LoRA training step: PEFT with the Trainer, and TRL's SFTTrainer.

Both are told nothing of speed but what `Padding` and `TRL` name. They get token ids, so that nobody
tokenises, and the same model: whoever calls makes it anew for each.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import peft
import tokenizers
import torch
import transformers
import trl

from benchmarks.device import Clock, Device
from benchmarks.harness import Run, Trace
from weft.core.batch import IGNORE, Batch, Example

Rows = list[dict[str, list[int]]]
MakeTrainer = Callable[[Rows, dict[str, Any]], transformers.Trainer]
"""From rows of token ids, and the arguments that every trainer gets."""


class StepClock(transformers.TrainerCallback):
    """Times each step from its start to its end: no data loading, no logging."""

    def __init__(self, device: Device) -> None:
        self.clock = Clock(device)

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        """Start of forward and backward."""
        self.clock.start()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """After the optimiser's step."""
        self.clock.stop()


class KeptLosses:
    """Mixed into a trainer: the loss of each step."""

    losses: list[torch.Tensor]

    def compute_loss(self, *args: object, **kwargs: object) -> torch.Tensor:
        """The parent's loss."""
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        self.__dict__.setdefault("losses", []).append(loss.detach())
        return loss


class PeftTrainer(KeptLosses, transformers.Trainer):
    """The Trainer, with the loss of each step kept."""


class TrlTrainer(KeptLosses, trl.SFTTrainer):
    """TRL's trainer, with the loss of each step kept."""


class Padding:
    """A collator: rows filled up to `length`, or to the longest of the batch when None."""

    def __init__(self, length: int | None, pad: int) -> None:
        self.length, self.pad = length, pad

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        """Tensors [rows, length]."""
        length = self.length or max(len(row["input_ids"]) for row in rows)

        def filled(name: str, value: int) -> torch.Tensor:
            return torch.tensor([r[name] + [value] * (length - len(r[name])) for r in rows])

        return {
            "input_ids": filled("input_ids", self.pad),
            "attention_mask": filled("attention_mask", 0),
            "labels": filled("labels", IGNORE),
        }


def with_trainer(
    model: peft.PeftModel, device: Device, pad_to: int | None, pad: int, **recipe: Any
) -> Run:
    """PEFT on the Trainer, both with their defaults for this recipe."""

    def trainer(rows: Rows, arguments: dict[str, Any]) -> transformers.Trainer:
        return PeftTrainer(
            model=model,
            args=transformers.TrainingArguments(**arguments, **recipe),
            train_dataset=rows,
            data_collator=Padding(pad_to, pad),
        )

    return _run(trainer, device)


TRL: Mapping[str, Mapping[str, Any]] = {
    "padded": {},
    "padding-free": {"padding_free": True, "max_length": None},
}
"""Its settings that can pay here; its loss is in chunks in both. Packing several rows into one of a
fixed length is padding-free as well, and puts other rows into a step than everyone else has."""


def with_trl(model: peft.PeftModel, device: Device, setting: str, **recipe: Any) -> Run:
    """TRL's SFTTrainer; without the activation checkpoints that it makes by default."""

    def trainer(rows: Rows, arguments: dict[str, Any]) -> transformers.Trainer:
        return TrlTrainer(
            model=model,
            args=trl.SFTConfig(
                **arguments,
                **recipe,
                **TRL[setting],
                gradient_checkpointing=False,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=_tokenizer(model.config.vocab_size),
        )

    return _run(trainer, device)


def _run(make: MakeTrainer, device: Device) -> Run:
    def run(batches: Sequence[Batch]) -> Trace:
        steps = StepClock(device)
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("trl").setLevel(logging.ERROR)
            trainer = make(
                [row_of(e) for batch in batches for e in batch.examples],
                {
                    "output_dir": scratch,
                    "per_device_train_batch_size": len(batches[0].examples),
                    "max_steps": len(batches),
                    "train_sampling_strategy": "sequential",
                    "use_cpu": device.is_cpu,
                    "bf16": False,
                    "save_strategy": "no",
                    "logging_strategy": "no",
                    "report_to": "none",
                    "disable_tqdm": True,
                },
            )
            trainer.add_callback(steps)
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        seconds = tuple(steps.clock.seconds)
        return Trace(seconds, tuple(float(loss) for loss in trainer.losses))

    return run


def row_of(example: Example) -> dict[str, list[int]]:
    """As the trainers' data sets have it."""
    return {
        "input_ids": example.ids_T.tolist(),
        "attention_mask": [1] * example.tokens,
        "labels": example.labels_T.tolist(),
    }


def _tokenizer(vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """Asked for its padding only: the rows are token ids."""
    words = tokenizers.models.WordLevel({"<pad>": vocabulary - 1}, unk_token="<pad>")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="<pad>", eos_token="<pad>"
    )
