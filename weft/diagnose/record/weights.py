"""The weights of models besides adapters: when first used, and whenever they have changed.

What `from_pretrained` returned is fingerprinted at once, so that what a script has done to it
since is known: those tensors are kept whole, where there is room.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.diagnose.record.patching import Undo, replace, together, when_imported
from weft.diagnose.record.recorder import Changed, Ending, ModelSeen, PassSeen, Recorder, StepTaken
from weft.runs.evidence import Happened, Settings, TensorSeen, Weights

if TYPE_CHECKING:
    import torch
    from torch import nn

KEPT_BYTES = 96 * 2**20
"""Changed tensors of at most so many bytes in all are kept."""

SMALL = 2**25
"""A model of at most so many values is fingerprinted in other types, too, in case that the script
casts it, and looked at as a whole to see whether it has changed."""

SAMPLE = 64
"""Values of a tensor of a larger model by which a look tells whether it has changed."""

MAX_EVENTS = 12
"""Times that a model whose weights keep changing is written down."""


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from, and its tensors then: digests by type and plain name."""

    path: str
    digests: dict[str, dict[str, str]]
    where: str | None


def install(recorder: Recorder) -> Undo:
    """Look at `from_pretrained`, and at the weights of models that are used."""
    undos: list[Undo] = []
    tap = _Tap(recorder)

    def patch(module: ModuleType) -> None:
        undos.append(replace(module.PreTrainedModel, "from_pretrained", tap.loader))

    undos.append(when_imported("transformers.modeling_utils", patch))
    recorder.listen(ModelSeen, lambda signal: tap.first(signal.model, signal.module))
    recorder.listen(PassSeen, tap.after_pass)
    recorder.listen(StepTaken, lambda signal: tap.after_step(signal.step))
    recorder.listen(Changed, lambda signal: tap.look_again())
    recorder.listen(Ending, lambda signal: tap.look_again())
    return together(undos)


class _Tap:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._origins: weakref.WeakKeyDictionary[nn.Module, Origin] = weakref.WeakKeyDictionary()
        self._written: dict[str, dict[str, TensorSeen]] = {}
        self._samples: dict[str, dict[str, tuple[int, int, bytes]]] = {}
        self._events: dict[str, int] = {}
        self._room = KEPT_BYTES
        self._nested = False

    def loader(self, original: Any) -> Callable[..., Any]:
        def from_pretrained(kind: Any, *args: Any, **kwargs: Any) -> Any:
            if self._nested or not self.recorder.watching:
                return original(kind, *args, **kwargs)
            self._nested = True
            try:
                result = original(kind, *args, **kwargs)
            finally:
                self._nested = False
            with self.recorder.aside():
                self._loaded(result, args, kwargs)
            return result

        return from_pretrained

    def _loaded(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        model, info = result if isinstance(result, tuple) else (result, {})
        given = args[0] if args else kwargs.get("pretrained_model_name_or_path", "")
        path, where = whole(given), self.recorder.where()
        self._origins[model] = Origin(path, _digests(model), where)
        facts = {
            "class": type(model).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "modules": sum(1 for _ in model.modules()),
        }
        for key in ("missing_keys", "unexpected_keys"):
            if info.get(key):
                facts[key] = sorted(map(str, info[key]))[:16]
        self.recorder.emit(
            Happened(what="load", step=self.recorder.steps, place=path, facts=facts, where=where)
        )

    def first(self, key: str, root: nn.Module) -> None:
        """A model is used for the first time."""
        if key == "model-0":
            self.recorder.emit(_environment())
        self._write(key, root, _base(root))

    def after_pass(self, signal: PassSeen) -> None:
        """Between prompts weights may have been changed by hand."""
        if signal.event.phase != "train" and not signal.follows:
            self._look(signal.event.model, signal.module)

    def after_step(self, step: int) -> None:
        """Steps that may have moved a base: the first ones, then ever fewer."""
        if step & (step - 1) == 0:
            self.look_again()

    def look_again(self) -> None:
        """Write down what has changed of any model."""
        for key, root in self.recorder.models.live().items():
            if key in self._written:
                self._look(key, root)

    def _look(self, key: str, root: nn.Module) -> None:
        tensors = _base(root)
        samples = _samples(tensors)
        before = self._samples[key]
        moved = {name: tensors[name] for name in tensors if samples[name] != before.get(name)}
        if not moved:
            return
        self._events[key] += 1
        if self._events[key] > MAX_EVENTS:
            text = f"weights of {key} kept changing; only {MAX_EVENTS} of their states are kept"
            self.recorder.notice(text)
            return
        self._write(key, root, moved)

    def _write(self, key: str, root: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        from weft.model.seen import config_seen, tensor_seen, tied

        first = key not in self._written
        seen = {name: tensor_seen(tensor) for name, tensor in tensors.items()}
        written = self._written.setdefault(key, {})
        news = {name: each for name, each in seen.items() if written.get(name) != each}
        written |= seen
        everything = _base(root)
        self._samples[key] = _samples(everything)
        self._events.setdefault(key, 1)
        if not news:
            return
        origin = self._origins.get(root)
        arrays: dict[str, np.ndarray] = {}
        changed = self._changed(origin, {n: tensors[n] for n in news}, news, arrays)
        sketches = _sketches(root, set(news), arrays)
        config = getattr(root, "config", None)
        self.recorder.emit(
            Weights(
                model=key,
                name=_name(root, origin),
                load=None if origin is None else _absolute(origin.path),
                architecture=type(root).__name__,
                dtype=_dtype(everything),
                attention=str(getattr(config, "_attn_implementation", "") or ""),
                config=config_seen(config) if hasattr(config, "to_dict") and first else {},
                tensors=news,
                tied=tied(everything) if first else (),
                sketches=sketches,
                changed=changed,
                step=self.recorder.steps or None,
                where=origin.where if origin and first else self.recorder.where(),
            ),
            arrays,
        )

    def _changed(
        self,
        origin: Origin | None,
        tensors: dict[str, torch.Tensor],
        seen: dict[str, TensorSeen],
        arrays: dict[str, np.ndarray],
    ) -> dict[str, str]:
        """Tensors that a replica could not load, whole; float32 stands for bfloat16."""
        names = {}
        for name, tensor in tensors.items():
            then = {} if origin is None else origin.digests.get(seen[name].dtype)
            if then is None:
                self.recorder.notice(
                    "weights were cast after loading: whether they are else as loaded is not known"
                )
                continue
            if then.get(name) == seen[name].digest:
                continue
            array = (tensor.detach().float() if _is_bfloat(tensor) else tensor.detach()).cpu()
            if array.nbytes > self._room:
                self.recorder.notice(
                    f"changed weights of more than {KEPT_BYTES // 2**20} MiB are not kept whole"
                )
                continue
            self._room -= array.nbytes
            arrays[f"changed {name}"] = array.numpy().copy()
            names[name] = f"changed {name}"
        return names


def whole(given: Any) -> str:
    """A directory by its whole path, so that it can be read from elsewhere; else a hub's name."""
    return str(Path(given).resolve()) if given and Path(given).is_dir() else str(given)


def _base(root: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by plain name, without those of adapters."""
    from weft.diagnose.record.anatomy import loras, plain_name

    adapters = {id(part) for lora in loras(root) for part in lora.parts}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in [
        *root.named_parameters(remove_duplicate=False),
        *root.named_buffers(remove_duplicate=False),
    ]:
        if id(tensor) not in adapters and ".lora_" not in name:
            found[plain_name(name)] = tensor.detach()
    return found


def _digests(model: nn.Module) -> dict[str, dict[str, str]]:
    """Digests of the tensors as they are, and as they would be in other types."""
    import torch

    from weft.model.seen import tensor_seen

    tensors = _base(model)
    found: dict[str, dict[str, str]] = {}
    casts = (torch.float32, torch.bfloat16, torch.float16) if _is_small(tensors) else ()
    for name, tensor in tensors.items():
        types = {tensor.dtype, *(casts if tensor.is_floating_point() else ())}
        for dtype in types:
            word = str(dtype).removeprefix("torch.")
            found.setdefault(word, {})[name] = tensor_seen(tensor.to(dtype)).digest
    return found


def _samples(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, int, bytes]]:
    """What nearly always changes with a tensor, and is cheap to read."""
    whole = _is_small(tensors)
    return {name: _sample(tensor, whole) for name, tensor in tensors.items()}


def _sample(tensor: torch.Tensor, whole: bool) -> tuple[int, int, bytes]:
    flat = tensor.reshape(-1)
    values = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].double()
    if whole:
        values = values + flat.sum(dtype=values.dtype)
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, values.cpu().numpy().tobytes()


def _is_small(tensors: dict[str, torch.Tensor]) -> bool:
    return sum(tensor.numel() for tensor in tensors.values()) <= SMALL


def _sketches(root: nn.Module, names: set[str], arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Sketches of linear modules without adapters whose weights are among `names`."""
    from weft.diagnose.record.anatomy import is_linear, loras, plain_name
    from weft.diagnose.record.probing import base_sketch

    adapted = {lora.name for lora in loras(root)}
    found = {}
    for name, module in root.named_modules():
        plain = plain_name(name)
        if plain in adapted or f"{plain}.weight" not in names or not is_linear(module):
            continue
        made = base_sketch(module)
        if made is not None:
            arrays[f"sketch {plain}"] = made.cpu().numpy()
            found[plain] = f"sketch {plain}"
    return found


def _is_bfloat(tensor: torch.Tensor) -> bool:
    return str(tensor.dtype) == "torch.bfloat16"


def _dtype(tensors: dict[str, torch.Tensor]) -> str:
    """The type of most values."""
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        word = str(tensor.dtype).removeprefix("torch.")
        counts[word] = counts.get(word, 0) + tensor.numel()
    return max(counts, key=lambda word: counts[word], default="")


def _absolute(path: str) -> str:
    """A directory by its whole path, so that it is found from anywhere; an id as it is."""
    return os.path.abspath(path) if os.path.isdir(path) else path


def _name(root: nn.Module, origin: Origin | None) -> str:
    if origin is not None:
        return origin.path
    return str(getattr(root, "name_or_path", "") or type(root).__name__)


def _environment() -> Settings:
    """What of PyTorch's own settings can change a number."""
    import torch

    values: dict[str, Any] = {
        "environment.torch": torch.__version__,
        "environment.threads": torch.get_num_threads(),
        "environment.deterministic": torch.are_deterministic_algorithms_enabled(),
        "environment.tf32": torch.backends.cuda.matmul.allow_tf32,
        "environment.matmul_precision": torch.get_float32_matmul_precision(),
    }
    for name in ("transformers", "peft"):
        module = sys.modules.get(name)
        if module is not None:
            values[f"environment.{name}"] = module.__version__
    return Settings(values=values, origins=dict.fromkeys(values, "seen"))
