"""What a script does to a model by hand between two steps: merges, resets, freezing.

After a step the points of base and factors are remembered; before the next step, at the first pass
without gradients and at the end they are compared. What a library did is told by its own tap.
Which line did it is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from weft.diagnose.record.fingerprints import Parts, Points
from weft.diagnose.record.recorder import Changed, Ending, PassSeen, Recorder
from weft.runs.evidence import Happened


@dataclass(frozen=True, eq=False)
class _State:
    step: int
    root: nn.Module
    base: Points
    factors: Points
    trainable: frozenset[str]


class Between:
    """Remembers a model after each step and says what has happened to it since."""

    def __init__(self, recorder: Recorder) -> None:
        """Nothing has been trained yet."""
        self.recorder = recorder
        self._states: dict[str, _State] = {}
        self._looked: dict[str, int] = {}
        recorder.listen(PassSeen, self._passed)
        recorder.listen(Changed, self._changed)
        recorder.listen(Ending, self._ended)

    def settled(self, model: str, root: nn.Module, parts: Parts, base: Points) -> None:
        """Remember a model as it is after a step, or after what a library did to it."""
        tensors = {**parts.base, **parts.factors}
        self._states[model] = _State(
            self.recorder.steps,
            root,
            base,
            Points.of(parts.factors),
            frozenset(name for name, tensor in tensors.items() if tensor.requires_grad),
        )

    def look(self, model: str, parts: Parts) -> None:
        """Write down what has changed since."""
        before = self._states.get(model)
        if before is None:
            return
        base, factors = Points.of(parts.base), Points.of(parts.factors)
        moved, reset = base.changed(before.base), factors.changed(before.factors)
        adapted = {lora.name for lora in parts.adapters}
        merged = [parts.adapted[name] for name in moved if name in parts.adapted]
        others = [name for name in moved if name not in parts.adapted]
        if merged:
            names = list(dict.fromkeys(merged))
            self._emit("merge", before.step, _place(names, adapted), names)
        if others:
            self._emit("edit", before.step, _place(others, set(parts.base)), others)
        if reset:
            names = list(dict.fromkeys(name.rpartition(".")[0] for name in reset))
            zero = all(not factor.any() for name, factor in parts.factors.items() if _is_b(name))
            facts = {
                "b_is_zero": zero,
                "a_changed": any(not _is_b(name) for name in reset),
                "b_changed": any(_is_b(name) for name in reset),
            }
            self._emit("reset", before.step, _place(names, adapted), names, facts)
        self._trainable(before, parts)
        self.settled(model, before.root, parts, base)
        if moved or reset:
            self.recorder.tell(Changed("merge" if merged else "edit", before.root))

    def _trainable(self, before: _State, parts: Parts) -> None:
        """Write down what has begun or ceased to be trained."""
        tensors = {**parts.base, **parts.factors}
        now = {name for name, tensor in tensors.items() if tensor.requires_grad}
        known = tensors.keys() & ({*before.base.names, *before.factors.names})
        for what, names in (
            ("unfreeze", sorted(known & (now - before.trainable))),
            ("freeze", sorted(known & (before.trainable - now))),
        ):
            if names:
                count = sum(tensors[name].numel() for name in names)
                facts = {"parameters": count, "base": sum(name in parts.base for name in names)}
                self._emit(what, before.step, _place(names, set(tensors)), names, facts)

    def _emit(
        self,
        what: str,
        step: int,
        place: str,
        names: Sequence[str],
        facts: Mapping[str, object] | None = None,
    ) -> None:
        self.recorder.emit(
            Happened(
                what=what,
                step=step,
                place=place,
                facts={"by": "hand", "modules": len(names), **(facts or {})},
            )
        )

    def _passed(self, seen: PassSeen) -> None:
        model = seen.event.model
        if model not in self._states or self._looked.get(model) == self.recorder.steps:
            return
        if not seen.event.grad:
            self._looked[model] = self.recorder.steps
            self.look(model, Parts.of(self._states[model].root))

    def _changed(self, changed: Changed) -> None:
        """What a library did is its own event: begin from here."""
        for model, state in tuple(self._states.items()):
            if changed.module is None or changed.module is state.root:
                parts = Parts.of(state.root)
                self.settled(model, state.root, parts, Points.of(parts.base))

    def _ended(self, _: Ending) -> None:
        for model, state in tuple(self._states.items()):
            self.look(model, Parts.of(state.root))


def _is_b(name: str) -> bool:
    return name.rpartition(".")[2].startswith("B")


def _place(names: Sequence[str], of: set[str]) -> str:
    if len(names) == 1:
        return names[0]
    what = "adapted modules" if of and all("." in name for name in of) else "modules"
    return f"all {len(names)} {what}" if len(names) == len(of) else f"{len(names)} of {len(of)}"
