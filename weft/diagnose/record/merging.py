"""Adapters merged, combined, switched, loaded and saved by libraries, and weights that are loaded.

What a script does to weights by hand is seen by `between`, or as weights that are not as loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from weft.core.files import sha256_file
from weft.diagnose.record.patching import Undo, replace, together, when_imported
from weft.diagnose.record.recorder import Changed, Recorder
from weft.runs.evidence import Happened

TUNER = {
    "merge_adapter": "merge",
    "merge_and_unload": "merge",
    "unmerge_adapter": "unmerge",
    "unload": "unload",
    "disable_adapter_layers": "disable",
    "enable_adapter_layers": "enable",
    "delete_adapter": "delete",
}
"""Methods of PEFT's tuners, and what they do."""

MOST = 64
"""Events of one kind: a script may switch adapters at every step."""

NAMES = 8
"""Keys that are named where some are missing or unexpected."""

WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
LARGEST = 2**28
"""Bytes of a file whose digest is taken."""


class _Tap:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.depth = 0
        self.counts: dict[str, int] = {}
        self.file: str | None = None  # the last one of weights that was read

    def around(
        self,
        tell: Callable[..., None],
        original: Callable[..., Any],
        *,
        directly: bool = False,
    ) -> Callable[..., Any]:
        """Call a function and tell of it, of the outermost one only; `directly`: only the script's.

        `tell` is given the result and the arguments.
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            mine = self.recorder.watching and not self.depth
            if mine and directly:
                mine = self.recorder.is_own(sys._getframe(1).f_code.co_filename)
            if not mine:
                return original(*args, **kwargs)
            self.depth += 1
            try:
                made = original(*args, **kwargs)
            finally:
                self.depth -= 1
            with self.recorder.aside():
                tell(made, *args, **kwargs)
            return made

        return call

    def emit(self, what: str, place: str, facts: Mapping[str, Any]) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.counts[what] > MOST:
            self.recorder.notice(f"`{what}` happened more than {MOST} times; the first are kept")
            return
        recorder = self.recorder
        where = recorder.where()
        step = recorder.steps
        recorder.emit(Happened(what=what, step=step, place=place, facts=dict(facts), where=where))

    def tuned(self, name: str, made: Any, tuner: Any, *args: Any, **kwargs: Any) -> None:
        """A tuner of PEFT was told to do something."""
        facts = {"by": "peft", "call": name}
        modules = len(_layers(tuner.model)) or len(tuner.targeted_module_names)
        what = TUNER[name]
        self.emit(what, f"all {modules} adapted modules", facts | {"modules": modules})
        self.recorder.tell(Changed(what, tuner.model))

    def combined(self, made: Any, tuner: Any, *args: Any, **kwargs: Any) -> None:
        """Several adapters became one."""
        given = _given(("adapters", "weights", "adapter_name", "combination_type"), args, kwargs)
        facts = {"by": "peft", "modules": len(_layers(tuner.model))} | given
        self.emit("combine", str(given.get("adapter_name", "")), facts)
        self.recorder.tell(Changed("combine", tuner.model))

    def activated(self, made: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        """Another adapter was made the active one."""
        given = _given(("adapter_name", "inference_mode"), args, kwargs)
        self.emit("activate", str(given.get("adapter_name", "")), {"by": "peft"} | given)

    def adapter_loaded(self, made: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        """An adapter was read into a model by PEFT."""
        given = _given(("model_id", "adapter_name", "is_trainable"), args, kwargs)
        path, name = str(given.get("model_id", "")), str(given.get("adapter_name", "default"))
        modules = [key for key, layer in _layers(model).items() if name in layer.lora_A]
        missing = [key for key in getattr(made, "missing_keys", ()) if f".{name}." in key]
        lost = {key.partition(".lora_")[0] for key in missing}
        self.emit(
            "load",
            path,
            {
                "by": "peft",
                "adapter": name,
                "modules": len(modules) - len(lost),
                "of": len(modules),
                "trainable": bool(given.get("is_trainable", False)),
                **_named("missing", missing),
                **_named("unexpected", getattr(made, "unexpected_keys", ())),
                **_file(path),
            },
        )
        self.recorder.tell(Changed("load", None))

    def saved(self, made: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        """A model or an adapter was written by its library."""
        path = str(args[0] if args else kwargs.get("save_directory", ""))
        facts = {"by": type(model).__name__, "modules": len(_layers(model))}
        self.emit("save", path, facts | _file(path))

    def state_loaded(self, made: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        """Tensors were put into a module by name."""
        state: Mapping[str, Any] = args[0] if args else kwargs["state_dict"]
        missing, unexpected = list(made.missing_keys), list(made.unexpected_keys)
        self.emit(
            "load",
            self.file or "",
            {
                "by": "load_state_dict",
                "into": type(module).__name__,
                "tensors": len(state),
                "taken": len(state) - len(unexpected),
                **_named("missing", missing),
                **_named("unexpected", unexpected),
            },
        )
        self.recorder.tell(Changed("load", None))

    def file_read(self, made: Any, *args: Any, **kwargs: Any) -> None:
        """The script has read tensors out of a file itself."""
        path = next((value for value in (*args, *kwargs.values()) if _is_path(value)), None)
        if path is None or not isinstance(made, Mapping):
            return
        self.file = os.fspath(path)
        facts = {"by": "file", "tensors": len(made), **_file(self.file)}
        self.emit("load", self.file, facts)

    def file_written(self, made: Any, *args: Any, **kwargs: Any) -> None:
        """The script has written tensors into a file itself."""
        values = (*args, *kwargs.values())
        path = next((value for value in values if _is_path(value)), None)
        state = next((value for value in values if isinstance(value, Mapping)), None)
        if path is not None and state is not None:
            facts = {"by": "file", "tensors": len(state), **_file(os.fspath(path))}
            self.emit("save", os.fspath(path), facts)


def _layers(model: Any) -> dict[str, Any]:
    """LoRA layers of PEFT by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def _given(
    names: Iterable[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Plain arguments by name."""
    bound = dict(zip(names, args, strict=False)) | {n: kwargs[n] for n in names if n in kwargs}
    return {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value
        for key, value in bound.items()
    }


def _named(what: str, keys: Iterable[str]) -> dict[str, Any]:
    """How many keys there are, with the first few."""
    every = list(keys)
    return {what: len(every), f"{what}_names": every[:NAMES]} if every else {what: 0}


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _file(path: str) -> dict[str, Any]:
    """The digest of the weights at a path."""
    place = Path(path)
    files = [place, *(place / name for name in WEIGHTS)]
    file = next((each for each in files if each.is_file()), None)
    if file is None or file.stat().st_size > LARGEST:
        return {}
    return {"sha256": sha256_file(file)}


def install(recorder: Recorder) -> Undo:
    """Look at what PEFT, transformers, safetensors and PyTorch do with weights."""
    tap = _Tap(recorder)
    undos: list[Undo] = []

    def on(owner: Any, name: str, tell: Callable[..., None], *, directly: bool = False) -> None:
        if hasattr(owner, name):
            undos.append(replace(owner, name, partial(tap.around, tell, directly=directly)))

    def tuners(module: Any) -> None:
        for name in TUNER:
            on(module.BaseTuner, name, partial(tap.tuned, name))

    def peft_model(module: Any) -> None:
        on(module.PeftModel, "load_adapter", tap.adapter_loaded)
        on(module.PeftModel, "save_pretrained", tap.saved)
        on(module.PeftModel, "set_adapter", tap.activated)

    def torch(module: Any) -> None:
        on(module.nn.Module, "load_state_dict", tap.state_loaded, directly=True)
        on(module, "load", tap.file_read, directly=True)
        on(module, "save", tap.file_written, directly=True)

    def safetensors(module: Any) -> None:
        on(module, "load_file", tap.file_read, directly=True)
        on(module, "save_file", tap.file_written, directly=True)

    for name, act in (
        ("peft.tuners.tuners_utils", tuners),
        (
            "peft.tuners.lora.model",
            lambda module: on(module.LoraModel, "add_weighted_adapter", tap.combined),
        ),
        ("peft.peft_model", peft_model),
        (
            "transformers.modeling_utils",
            lambda module: on(module.PreTrainedModel, "save_pretrained", tap.saved),
        ),
        ("torch", torch),
        ("safetensors.torch", safetensors),
    ):
        undos.append(when_imported(name, act))
    return together(undos)
