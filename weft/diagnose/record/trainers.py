"""What a Trainer of transformers, or one made of it, was told: its arguments, as settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any

from weft.diagnose.record.patching import Undo, replace, together, when_imported
from weft.diagnose.record.recorder import Recorder
from weft.runs.evidence import Settings

OURS = {
    "lr_scheduler_type": "optimiser.schedule",
    "warmup_ratio": "optimiser.warmup_ratio",
    "warmup_steps": "optimiser.warmup_steps",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "seed": "seed",
}
"""Arguments for which Weft has a name; the others stand below `trainer.`."""

ASIDE = ("dir", "logging", "report", "eval", "save", "hub", "run_name", "tqdm", "trackio", "push")
"""Parts of the names of arguments that say where and when things are written and measured."""


def install(recorder: Recorder) -> Undo:
    """Look at the arguments of a Trainer when it begins."""
    undos: list[Undo] = []

    def trains(original: Callable[..., Any]) -> Callable[..., Any]:
        def train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            if recorder.watching:
                with recorder.aside():
                    values = settings_of(trainer.args)
                    origins = dict.fromkeys(values, "trainer")
                    where = recorder.where()
                    tokenizer = getattr(trainer, "processing_class", None)
                    recorder.data.decode = getattr(tokenizer, "decode", None)
                    recorder.emit(Settings(values=values, origins=origins, where=where))
            return original(trainer, *args, **kwargs)

        return train

    undos.append(
        when_imported(
            "transformers.trainer",
            lambda module: undos.append(replace(module.Trainer, "train", trains)),
        )
    )
    return together(undos)


def settings_of(arguments: Any) -> dict[str, Any]:
    """Those of Weft's names always, others where they are not what they are by default."""
    found: dict[str, Any] = {}
    for each in fields(arguments):
        value = _plain(getattr(arguments, each.name))
        if each.name in OURS:
            found[OURS[each.name]] = value
        elif not any(part in each.name for part in ASIDE) and value is not None:
            usual = (
                each.default_factory()
                if each.default is MISSING and callable(each.default_factory)
                else each.default
            )
            if value != _plain(usual):
                found[f"trainer.{each.name}"] = value
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else None
