"""Models of MLX while they are called: each call of a whole model becomes a pass.

MLX has no hooks. A model is known when its weights are loaded, and from then on the `__call__` of
its class, and of its blocks', looks. Inside a transformation (`mx.compile`, `mx.grad`) arrays hold
no numbers, and only what has some is recorded.

Shapes: B rows, T positions, V vocabulary, L blocks, D hidden size, P projections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.diagnose.record.patching import Undo, replace
from weft.diagnose.record.recorder import Recorder
from weft.runs.evidence import Pass
from weft.runs.sketch import digest, projections

WHOLE = 16
"""Passes whose logits and hidden states are kept; of later ones only what they were fed."""

ROWS = 8
"""Rows of a pass whose logits and hidden states are kept."""


@dataclass(frozen=True, eq=False)
class MlxPass:
    """A whole model was called, and its event is written."""

    event: Pass
    model: Any
    ids: np.ndarray | None  # [B, T]
    logits: np.ndarray | None  # [B, V] float32, at the last position


@dataclass(frozen=True, eq=False)
class MlxModelSeen:
    """A model is called for the first time."""

    key: str
    model: Any
    load: str | None  # where its weights came from
    adapter: str | None


class Watched:
    """The models that are watched, and what is going on in them."""

    def __init__(self, recorder: Recorder) -> None:
        """Nothing is watched yet."""
        self.undos: list[Undo] = []
        self.passes = 0
        self._recorder = recorder
        self._classes: set[type] = set()
        self._loaded: dict[int, tuple[Any, str | None, str | None]] = {}
        self._keys: dict[int, str] = {}
        self._called: set[int] = set()
        self._inside = False
        self._states: list[Any] | None = None  # of the pass that is going on: h_0, h_1, ...

    def loaded(self, model: Any, path: str | None = None, adapter: str | None = None) -> None:
        """A model has its weights, or an adapter: from now on its calls are seen."""
        _, old_path, old_adapter = self._loaded.get(id(model), (None, None, None))
        self._loaded[id(model)] = model, path or old_path, adapter or old_adapter
        if type(model) not in self._classes:
            self._classes.add(type(model))
            self.undos.append(replace(type(model), "__call__", self._whole))
            for block in {type(block) for block in getattr(model, "layers", ())}:
                self.undos.append(replace(block, "__call__", self._block))

    def key(self, model: Any) -> str:
        """`model-0`, `model-1`, ... in order of first use."""
        return self._keys.setdefault(id(model), f"model-{len(self._keys)}")

    def _whole(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(model: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._recorder.watching or self._inside or id(model) not in self._loaded:
                return original(model, *args, **kwargs)
            past = 0
            with self._recorder.aside():
                past = self._begin(model, args, kwargs)
            self._inside = True
            try:
                output = original(model, *args, **kwargs)
            finally:
                self._inside = False
                states, self._states = self._states, None
            with self._recorder.aside():
                self._end(model, args[0] if args else kwargs.get("inputs"), past, output, states)
            return output

        return call

    def _block(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(block: Any, *args: Any, **kwargs: Any) -> Any:
            output = original(block, *args, **kwargs)
            if self._states is not None:
                if not self._states and args:
                    self._states.append(args[0])
                self._states.append(output)
            return output

        return call

    def _begin(self, model: Any, args: Any, kwargs: Any) -> int:
        if id(model) not in self._called:
            self._called.add(id(model))
            _, load, adapter = self._loaded[id(model)]
            self._recorder.tell(MlxModelSeen(self.key(model), model, load, adapter))
        self._states = [] if self.passes < WHOLE else None
        cache = kwargs.get("cache", args[1] if len(args) > 1 else None)
        return int(getattr(cache[0], "offset", 0)) if cache else 0

    def _end(self, model: Any, inputs: Any, past: int, output: Any, states: Any) -> None:
        ids = numbers(inputs)
        logits = output[0] if isinstance(output, tuple) else output
        arrays = {} if ids is None else {"ids": ids.astype(np.int32)}
        last = numbers(logits[:ROWS, -1]) if hasattr(logits, "ndim") and logits.ndim == 3 else None
        if self.passes < WHOLE and last is not None:
            arrays["logits"] = last.astype(np.float32)
            arrays |= _states(states) if states else {}
            if ids is not None and ids.shape[1] > 1:
                arrays["nll"] = _nll(logits[:ROWS], ids[:ROWS])
        shape = tuple(inputs.shape)
        positions = np.broadcast_to(past + np.arange(shape[1], dtype=np.int32), shape)
        if ids is not None:
            arrays["positions"] = positions.copy()
        event = Pass(
            model=self.key(model),
            index=self.passes,
            phase=_phase(model, past, shape[1]),
            rows=shape[0],
            length=shape[1],
            training=bool(model.training),
            dtype=str(logits.dtype).rpartition(".")[2],
            past=past,
            ids_digest="" if ids is None else digest(ids.astype(np.int32)),
            nonfinite=None if last is None or np.isfinite(last).all() else "logits",
            where=self._recorder.where(),
            **{name: name for name in arrays},
        )
        self.passes += 1
        self._recorder.emit(event, arrays)
        self._recorder.tell(MlxPass(event, model, ids, last))


def numbers(array: Any) -> np.ndarray | None:
    """An array of MLX as NumPy's, bfloat16 as float32; None where it holds no numbers yet."""
    import mlx.core as mx

    try:
        wide = array.astype(mx.float32) if array.dtype == mx.bfloat16 else array
        return np.array(wide)
    except (ValueError, RuntimeError):  # inside a transformation
        return None


def _phase(model: Any, past: int, length: int) -> Any:
    if model.training:
        return "train"
    return "decode" if past and length == 1 else "prefill" if past else "score"


def _states(states: list[Any]) -> dict[str, np.ndarray]:
    """Hidden states at the last position [L + 1, B, D], and projections of all [L + 1, B, T, P]."""
    found = [numbers(state[:ROWS]) for state in states]
    whole = [each.astype(np.float32) for each in found if each is not None]
    if len(whole) < len(states):
        return {}
    sketch = np.stack([each @ projections(each.shape[-1]) for each in whole])
    return {"hidden": np.stack([each[:, -1] for each in whole]), "sketch": sketch}


def _nll(logits: Any, ids: np.ndarray) -> np.ndarray:
    """Nats of each next token that was given, [B, T - 1]."""
    import mlx.core as mx

    wide = logits[:, :-1].astype(mx.float32)
    picked = mx.take_along_axis(wide, mx.array(ids[:, 1:, None]), axis=-1)[..., 0]
    return np.array(mx.logsumexp(wide, axis=-1) - picked)
