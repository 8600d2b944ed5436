"""A script's model compared with itself when the script is over: what must not matter is changed.

The model is run again on the first inputs that it was given, as it was called then. Null draws are
what a diagnosis takes as noise; one that is large is a fault of the script.

Shapes: B rows, T positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft.diagnose.record.patching import Undo
from weft.diagnose.record.recorder import Ending, PassSeen, Recorder

if TYPE_CHECKING:
    from torch import nn

    from weft.diagnose.record.calls import Call

KEPT_PASSES = 4
KEPT_ROWS = 4

LEAST_SECONDS = 5.0
SHARE = 0.1
"""Checks take at most this share of the time of the script, or the seconds above."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A call to be made again."""

    call: Call
    modes: tuple[bool, ...]  # the training flag of every part then; of a training pass all off
    training: bool


def install(recorder: Recorder) -> Undo:
    """Keep the first inputs of each model, and check it with them at the end."""
    tap = _Tap(recorder)
    recorder.listen(PassSeen, tap.keep)
    recorder.listen(Ending, tap.check)
    return lambda: None


class _Tap:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._kept: dict[str, list[Kept]] = {}
        self._began = time.perf_counter()

    def keep(self, signal: PassSeen) -> None:
        """Of a model the first passes of whole prompts; one that trains only if there are none."""
        event, call = signal.event, signal.call
        kept = self._kept.setdefault(event.model, [])
        training = event.phase == "train"
        if event.past or event.length < 2 or signal.follows or call is None:
            return
        if call.odd_mask:
            self.recorder.notice(
                f"calls of {event.model} with a mask that is none of padding are not checked"
            )
            return
        if training and kept:
            return
        if len(kept) >= KEPT_PASSES and not any(each.training for each in kept):
            return
        if not training:
            kept[:] = [each for each in kept if not each.training]
        modes = tuple(part.training and not training for part in signal.module.modules())
        kept.append(Kept(call.first(KEPT_ROWS), modes, training))

    def check(self, signal: Ending) -> None:
        """Check every model that is there still."""
        kept = {key: each for key, each in self._kept.items() if each}
        if signal.status != "finished":
            if kept:
                self.recorder.notice("the script did not finish: its model was not checked")
            return
        if kept and self.recorder.running:
            self.recorder.notice("a thread was still at work at the end: no model was checked")
            return
        spent = time.perf_counter() - self._began
        until = time.perf_counter() + max(LEAST_SECONDS, SHARE * spent)
        for key, each in kept.items():
            root = self.recorder.models.root(key)
            if root is None:
                self.recorder.notice(f"{key} was gone before it could be checked")
                continue
            self._check(key, root, each, until)

    def _check(self, key: str, root: nn.Module, kept: Sequence[Kept], until: float) -> None:
        from weft.diagnose.record.nulls import NULLS, Subject

        subject = Subject(root, [(each.call, each.modes) for each in kept])
        for null in NULLS:
            if time.perf_counter() > until:
                self.recorder.notice(f"checks of {key} were cut short, to take little time")
                return
            with self.recorder.aside():
                for check in null(subject):
                    self.recorder.emit(check.model_copy(update={"model": key}))
