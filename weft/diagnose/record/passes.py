"""Calls of whole models: what went in, where tokens stood, and what came out.

Every call is an event with its integers. Logits, hidden states and their sketches are kept for the
first passes of each kind, and only of some rows.

Shapes: B rows, T positions, V vocabulary, L blocks, D hidden size, P projections.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.diagnose.record.patching import Undo, replace, together, when_imported
from weft.diagnose.record.recorder import ModelSeen, PassSeen, Recorder
from weft.runs.evidence import Pass
from weft.runs.sketch import digest

if TYPE_CHECKING:
    from torch import nn

    from weft.diagnose.record.calls import Call
    from weft.diagnose.record.forward import Watch

KEPT = {"prefill": 16, "score": 16, "decode": 32, "train": 2}
"""Passes of each phase whose logits, hidden states and sketches are kept."""

KEPT_PROMPT_DECODES = 4
"""Of the passes that go on with one prompt, so many are kept."""

KEPT_ROWS = 8

KEPT_INTEGERS = 2_000
"""Passes whose ids, mask, positions and labels are kept whole; later ones have digests."""

KEPT_NLL = 64


class _Inside(threading.local):
    now = False


def install(recorder: Recorder) -> Undo:
    """Look at calls of modules that are whole models."""
    undos: list[Undo] = []
    tap = _Tap(recorder)

    def patch(module: ModuleType) -> None:
        undos.append(replace(module.Module, "__call__", tap.caller))

    undos.append(when_imported("torch.nn.modules.module", patch))
    return together(undos)


class _Tap:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._inside = _Inside()
        self._count = 0
        self._kept = dict.fromkeys(KEPT, 0)
        self._nll = 0
        self._known: set[str] = set()
        self._last: tuple[str, np.ndarray] | None = None  # model and ids of the pass before
        self._following = 0  # passes that went on with one prompt

    def caller(self, original: Any) -> Callable[..., Any]:
        inside, recorder = self._inside, self.recorder

        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if inside.now or not recorder.watching:
                return original(module, *args, **kwargs)
            watch = None
            if _has_ids(args, kwargs) and not _is_traced():
                with recorder.aside(), recorder.looking:
                    watch = self._begin(module, args, kwargs)
                    recorder.running += watch is not None
            if watch is None:
                return original(module, *args, **kwargs)
            inside.now = True
            try:
                output = original(module, *args, **kwargs)
            finally:
                inside.now = False
                with recorder.looking:
                    recorder.running -= 1
                    watch.remove()
            with recorder.aside(), recorder.looking:
                self._end(watch, output)
            return output

        return __call__

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Watch | None:
        """What watches one call; None where the module is no model."""
        from weft.diagnose.record.anatomy import is_model
        from weft.diagnose.record.calls import read_call
        from weft.diagnose.record.forward import Watch

        call = read_call(module, args, kwargs) if is_model(module) else None
        if call is None:
            return None
        key = self.recorder.models.key(module)
        root = self.recorder.models.root(key)
        assert root is not None
        if key not in self._known:
            self._known.add(key)
            self.recorder.tell(ModelSeen(key, root))
        phase = self._phase(root, call)
        follows = self._follows(key, call)
        budget = "decode" if follows else phase
        whole = self._kept[budget] < KEPT[budget] and not (
            follows and self._following > KEPT_PROMPT_DECODES
        )
        if whole:
            self._kept[budget] += 1
        rows = KEPT_ROWS if whole else 0
        return Watch(self.recorder, key, root, module, call, phase, rows, follows)

    def _phase(self, root: nn.Module, call: Call) -> Any:
        import torch

        if torch.is_grad_enabled() and not self.recorder.generating:
            trained = root.training or call.labels is not None or self.recorder.optimising
            if trained and any(each.requires_grad for each in root.parameters()):
                return "train"
        if self.recorder.generating:
            return "decode" if call.past else "prefill"
        return "decode" if call.past else "score"

    def _follows(self, key: str, call: Call) -> bool:
        """Whether this pass goes on with the prompt of the one before, however it is fed."""
        ids, before = call.ids.cpu().numpy(), self._last
        self._last = (key, ids)
        follows = bool(call.past)
        if not follows and before is not None and before[0] == key:
            old = before[1]
            longer = ids.shape[1] == old.shape[1] + 1 and ids.shape[0] == old.shape[0]
            alone = ids.shape[1] == 1 and ids.shape[0] == old.shape[0]
            follows = alone or (longer and bool((ids[:, :-1] == old).all()))
        self._following = self._following + 1 if follows else 0
        return follows

    def _end(self, watch: Watch, output: Any) -> None:
        from weft.diagnose.record.calls import read_output

        call = watch.call
        logits, loss = read_output(output, call)
        facts: dict[str, Any] = {}
        arrays: dict[str, np.ndarray] = {}
        ids = call.ids.cpu().numpy().astype(np.int32)
        if self._count < KEPT_INTEGERS:
            mask = call.mask_numpy()
            found = {
                "ids": ids,
                "mask": mask,
                "positions": watch.positions(),
                "labels": None if call.labels is None else call.labels.cpu().numpy(),
            }
            small = {"mask": np.uint8}
            for name, array in found.items():
                if array is not None:
                    arrays[name] = array.astype(small.get(name, np.int32))
        elif self._count == KEPT_INTEGERS:
            self.recorder.notice(
                f"of passes after the first {KEPT_INTEGERS:,} only digests of ids are kept"
            )
        last = None
        if logits is not None:
            last = call.at_last(logits)
            if watch.rows:
                arrays["logits"] = last[: watch.rows].float().cpu().numpy()
            if self._nll < KEPT_NLL and not call.past and call.ids.shape[1] > 1:
                nll = call.nll(logits)
                if nll is not None:
                    self._nll += 1
                    arrays["nll"] = nll
        if watch.rows:
            arrays |= watch.hidden()
        nonfinite, largest = watch.first_nonfinite(logits, loss)
        facts = {name: name for name in arrays}
        event = Pass(
            model=watch.model,
            index=self._count,
            phase=watch.phase,
            rows=ids.shape[0],
            length=ids.shape[1],
            training=watch.root.training,
            dropouts=watch.dropouts,
            grad=watch.grad,
            dtype=watch.dtype(logits),
            past=call.past,
            ids_digest=digest(ids),
            loss=None if loss is None else float(loss.detach()),
            nonfinite=nonfinite,
            largest=largest,
            where=self.recorder.where(),
            **facts,
        )
        self._count += 1
        self.recorder.emit(event, arrays)
        self.recorder.tell(
            PassSeen(
                event,
                watch.root,
                watch.called,
                call.ids.detach(),
                call.mask,
                call.labels,
                None if last is None else last.detach(),
                loss,
                output,
                call,
                watch.follows,
            )
        )


def _is_traced() -> bool:
    """Whether PyTorch writes down what is computed: what we look at would become part of it."""
    import torch

    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _has_ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a module is called with something that can be token ids: integers in two axes."""
    for value in args:
        if _is_ids(value):
            return True
    return any(_is_ids(value) for value in kwargs.values())


def _is_ids(value: Any) -> bool:
    dim = getattr(value, "dim", None)
    if dim is None or not callable(dim) or not hasattr(value, "is_floating_point"):
        return False
    return not value.is_floating_point() and value.dim() == 2
