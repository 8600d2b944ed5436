"""Null draws of a live model: how much comes out different when nothing that matters is changed.

Each null is a function of a `Subject`, a model with calls that its script made of it. The model
runs in the modes that it was in then, so that dropout that should be off is found. All of it is
undone.

Shapes: B rows, T positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weft.core.keys import Key
from weft.diagnose.record.anatomy import plan_of
from weft.diagnose.record.calls import Call, read_output
from weft.diagnose.record.probing import swapped, undisturbed
from weft.runs.evidence import Check

DRAWS = 3

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""Integers in which neighbours are neighbouring floats, away from zero."""


@dataclass(frozen=True, eq=False)
class Out:
    """What a call came to, at each row's last real position."""

    logits: torch.Tensor  # [B, V] float64 log-probabilities
    hidden: torch.Tensor | None  # [B, D] after the last block
    loss: float | None

    def against(self, other: Out) -> dict[str, float]:
        """Differences of another from this, by unit."""
        gap = (self.logits - other.logits).masked_fill(self.logits == -torch.inf, 0.0)
        found = {
            "nats": float((self.logits.exp() * gap).sum(-1).mean().clamp(min=0)),
            "logits": float(gap.abs().max()),
        }
        if self.hidden is not None and other.hidden is not None:
            change = (self.hidden - other.hidden).norm(dim=-1)
            found["hidden"] = float((change / self.hidden.norm(dim=-1)).max())
        if self.loss and other.loss is not None:
            found["relative"] = abs(other.loss - self.loss) / abs(self.loss)
        return found


class Subject:
    """A model, and calls of it with the training flags of its parts then."""

    def __init__(self, root: nn.Module, calls: Sequence[tuple[Call, tuple[bool, ...]]]) -> None:
        self.root = root
        self.calls = [(_moved(call, root), modes) for call, modes in calls]
        self._generators = _generators()  # go on from run to run: dropout differs, where it is on
        self.small = any(p.dtype in (torch.float16, torch.bfloat16) for p in root.parameters())

    def run(self, call: Call, modes: tuple[bool, ...], **changes: Any) -> Out:
        """Call the model as it was called, with changes; nothing is disturbed but its output."""
        with self._as_then(call, modes), _last_block(self.root) as states:
            args, kwargs = call.inputs(**(_unused_cache(self.root) | changes))
            logits, loss = read_output(self.root(*args, **kwargs), self._fed(call, changes))
        if logits is None:
            raise ValueError("the model returns no logits of the positions that it is given")
        fed = self._fed(call, changes)
        state = states[-1] if states and states[-1].shape[:2] == fed.ids.shape else None
        return Out(
            torch.log_softmax(fed.at_last(logits).double(), dim=-1),
            None if state is None else fed.at_last(state).double(),
            None if loss is None else float(loss),
        )

    def _fed(self, call: Call, changes: Mapping[str, Any]) -> Call:
        if "ids" not in changes:
            return call
        return Call(changes["ids"], changes.get("mask"), None, None, 0, call.names)

    @contextmanager
    def _as_then(self, call: Call, modes: tuple[bool, ...]) -> Iterator[None]:
        parts = list(self.root.modules())
        kind, enabled = call.ids.device.type, call.autocast is not None
        cast = torch.autocast(kind, call.autocast, enabled=enabled)
        with undisturbed(self.root, evaluating=False), cast:
            for index, part in enumerate(parts):
                part.training = modes[index] if len(modes) == len(parts) else any(modes)
            _go_on_from(self._generators)
            yield
            self._generators = _generators()

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """The model with all of its numbers in float32."""
        tensors = [t for t in [*self.root.parameters(), *self.root.buffers()]]
        kept = list({id(t): t for t in tensors if t.is_floating_point()}.values())
        with swapped(kept, [tensor.detach().float() for tensor in kept]):
            yield


def _moved(call: Call, root: nn.Module) -> Call:
    """A call on the device where the model is now."""
    device = next(root.parameters()).device
    return call if call.ids.device == device else call.to(device)


def _generators() -> list[torch.Tensor]:
    """States of PyTorch's generators, on the CPU and on an accelerator."""
    on_device = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_device]


def _go_on_from(states: Sequence[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)


def _unused_cache(root: nn.Module) -> dict[str, Any]:
    try:
        known = inspect.signature(type(root).forward).parameters
    except (TypeError, ValueError):
        return {}
    return {"use_cache": False} if "use_cache" in known else {}


@contextmanager
def _last_block(root: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What the last block returns meanwhile."""
    found = plan_of(root).blocks
    states: list[torch.Tensor] = []

    def after(module: nn.Module, args: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        states.append(state.detach())

    hook = found[-1].register_forward_hook(after) if found else None
    try:
        yield states
    finally:
        if hook is not None:
            hook.remove()


def repeat(subject: Subject) -> Iterator[Check]:
    """The same input twice."""

    def draws() -> list[dict[str, float]]:
        found = []
        for call, modes in subject.calls:
            once = subject.run(call, modes)
            found.append(once.against(subject.run(call, modes)))
        return found

    yield from _checks("repeat", subject, draws)


def ulp(subject: Subject) -> Iterator[Check]:
    """Embeddings moved by one unit in the last place, up or down."""
    table = _embeddings(subject.root)
    if table is None or table.dtype not in INTEGERS:
        return

    def draws() -> list[dict[str, float]]:
        found = []
        plain = [subject.run(call, modes) for call, modes in subject.calls]
        for draw in range(DRAWS):
            with swapped([table], [_nudged(table, draw)]):
                moved = [subject.run(call, modes) for call, modes in subject.calls]
            pairs = [one.against(two) for one, two in zip(plain, moved, strict=True)]
            found.append({unit: _mean([p[unit] for p in pairs if unit in p]) for unit in pairs[0]})
        return found

    yield from _checks("ulp", subject, draws)


def row(subject: Subject) -> Iterator[Check]:
    """Rows of batches alone, without their padding, as the script passes masks and positions."""

    def draws() -> list[dict[str, float]]:
        found = []
        for call, modes in subject.calls:
            if len(call.ids) < 2:
                continue
            together = subject.run(call, modes)
            for index in range(len(call.ids)):
                alone = subject.run(call, modes, **_alone(call, index))
                part = Out(
                    together.logits[index : index + 1],
                    None if together.hidden is None else together.hidden[index : index + 1],
                    None,
                )
                found.append(alone.against(part))
        return found

    yield from _checks("row", subject, draws)


def cache(subject: Subject) -> Iterator[Check]:
    """The last position with keys and values in a cache, and without one."""
    if not _unused_cache(subject.root):
        return

    def draws() -> list[dict[str, float]]:
        found = []
        for call, modes in subject.calls:
            for index in range(len(call.ids)):
                changes = _alone(call, index)
                ids = changes["ids"]
                if ids.shape[1] < 2:
                    continue
                whole = subject.run(call, modes, **changes)
                with subject._as_then(call, modes):
                    plain = {name: None for name in ("labels", "position_ids")}
                    some = dict(ids=ids[:, :-1], mask=None, use_cache=True, **plain)
                    args, kwargs = call.inputs(**some)
                    kept = subject.root(*args, **kwargs).past_key_values
                    last = dict(ids=ids[:, -1:], mask=None, past_key_values=kept, **plain)
                    args, kwargs = call.inputs(**last)
                    logits = subject.root(*args, **kwargs).logits[:, -1].double()
                cached = Out(torch.log_softmax(logits, dim=-1), None, None)
                found.append(whole.against(cached))
        return found

    yield from _checks("cache", subject, draws)


def split(subject: Subject) -> Iterator[Check]:
    """The loss of a batch with labels in two forwards, weighted by supervised positions."""

    def draws() -> list[dict[str, float]]:
        found = []
        for call, modes in subject.calls:
            if call.labels is None or len(call.ids) < 2:
                continue
            whole, half = subject.run(call, modes), len(call.ids) // 2
            total = weight = 0.0
            for part in (slice(0, half), slice(half, None)):
                piece = call.rows(part)
                count = float((piece.labels[:, 1:] != -100).sum())  # type: ignore[index]
                loss = subject.run(piece, modes).loss
                if loss is not None and count:
                    total, weight = total + loss * count, weight + count
            if whole.loss and weight:
                found.append({"relative": abs(total / weight - whole.loss) / abs(whole.loss)})
        return found

    yield from _checks("split", subject, draws)


def float32(subject: Subject) -> Iterator[Check]:
    """The same with all numbers of a 16-bit model in float32."""
    if not subject.small:
        return
    small = [subject.run(call, modes) for call, modes in subject.calls]
    with subject.in_float32():
        large = [subject.run(call, modes) for call, modes in subject.calls]
    found = [one.against(two) for one, two in zip(large, small, strict=True)]
    yield from _written("float32", found, [])


NULLS: tuple[Callable[[Subject], Iterator[Check]], ...] = (repeat, row, cache, ulp, float32, split)
"""In the order in which they are worth their time."""


def _checks(
    name: Any, subject: Subject, draws: Callable[[], list[dict[str, float]]]
) -> Iterator[Check]:
    """A null in the type of the model, and, for one of 16 bits, in float32."""
    found = draws()
    if not found:
        return
    exact: list[dict[str, float]] = []
    if subject.small:
        with subject.in_float32():
            exact = draws()
    yield from _written(name, found, exact)


def _written(
    name: Any, found: Sequence[dict[str, float]], exact: Sequence[dict[str, float]]
) -> Iterator[Check]:
    for unit in found[0]:
        values = tuple(each[unit] for each in found if unit in each)
        in_float32 = max((each[unit] for each in exact if unit in each), default=None)
        yield Check(name=name, unit=unit, values=values, in_float32=in_float32)


def _alone(call: Call, index: int) -> dict[str, Any]:
    """One row of a call without padding."""
    real = call.real[index]
    changes: dict[str, Any] = {
        "ids": call.ids[index : index + 1, real],
        "mask": None if call.mask is None else torch.ones_like(call.ids[:1, real]),
        "labels": None,
        "position_ids": None,
    }
    if call.given_positions is not None and call.given_positions.dim() == 2:
        given = call.given_positions.expand_as(call.ids)
        changes["position_ids"] = given[index : index + 1, real]
    return changes


def _embeddings(root: nn.Module) -> torch.Tensor | None:
    """The table of token embeddings."""
    tables = [part for part in root.modules() if isinstance(part, nn.Embedding)]
    getter = getattr(root, "get_input_embeddings", None)
    found = getter() if callable(getter) else None
    table = found if isinstance(found, nn.Embedding) else next(iter(tables), None)
    return None if table is None else table.weight


def _nudged(table: torch.Tensor, draw: int) -> torch.Tensor:
    """Each number's neighbour, above or below by chance."""
    chance = Key.of(0).fold("ulp", draw).numpy().integers(0, 2, size=4096)
    signs = torch.from_numpy(chance).to(table.device) * 2 - 1
    kind = INTEGERS[table.dtype]
    flat = table.detach().reshape(-1)
    repeats = -(-flat.numel() // signs.numel())
    steps = signs.repeat(repeats)[: flat.numel()].to(kind)
    moved = (flat.view(kind) + torch.where(flat == 0, 0, steps).to(kind)).view(table.dtype)
    return torch.where(torch.isfinite(moved), moved, flat).reshape(table.shape)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
