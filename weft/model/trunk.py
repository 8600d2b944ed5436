"""What lies below the first adapted layer: the same for every member, direction, step and epoch.

Each row is read by itself there, so its hidden state depends neither on who shares the batch nor on
whether it was kept from before: a run that was resumed, with nothing kept, goes on bit by bit.

Shapes: T positions of a packed row, t tokens of one example, N members, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast

import numpy as np
import torch

from weft.core.batch import IGNORE, Batch, Example
from weft.model.base import Base
from weft.model.rows import Block, PackedRows, pack

TRIAL = tuple(
    Example(str(ids), np.array(ids), np.full(4, IGNORE)) for ids in ((1, 2, 3, 1), (4, 3, 2, 1))
)


class _Reached(Exception):
    """The first adapted layer is about to run."""


class Trunk:
    """The layers of a base below the first adapted one, and what they made of rows so far.

    `memory_bytes` bounds what is kept. Rows that come when it is full are read each time: rows come
    around in epochs, so that dropping the oldest would drop each just before it is asked for.
    """

    def __init__(self, base: Base, layers: torch.nn.ModuleList, depth: int, memory_bytes: int):
        self.base, self.layers, self.depth = base, layers, depth
        self.memory_bytes = memory_bytes
        self.kept: dict[bytes, torch.Tensor] = {}
        self.kept_bytes = 0
        self._in_tuples = False

    @classmethod
    def of(cls, base: Base, sites: Iterable[str], memory_bytes: int) -> Trunk | None:
        """The trunk below these sites; None where the first layer, or what feeds it, is adapted.

        Nor is there one for a base that cannot run without padding, or whose upper layers read
        more of the lower ones than their output.
        """
        layers, prefix = _layers(base)
        if layers is None or not base.packs:
            return None
        head = base.model.get_output_embeddings()
        above = {name for name, module in base.model.named_modules() if module is head}
        inside = [site for site in sites if site not in above]
        if not all(site.startswith(prefix) for site in inside):
            return None
        numbers = [int(site.removeprefix(prefix).partition(".")[0]) for site in inside]
        depth = min(numbers, default=0)
        if not depth:
            return None
        trunk = cls(base, layers, depth, memory_bytes)
        return trunk if trunk._is_the_base() else None

    def hidden(self, rows: PackedRows) -> torch.Tensor:
        """What enters the first adapted layer, at every position [T, D]."""
        return torch.cat(
            [
                self._of(example).repeat_interleave(block.members, 0)
                for block in rows.blocks
                for example, _ in rows.spans(block)
            ]
        )

    def below(self, rows: PackedRows) -> AbstractContextManager[None]:
        """Within this context, a forward on `rows` begins at the first adapted layer."""
        return self._standing_on(self.hidden(rows))

    @contextmanager
    def _standing_on(self, hidden_TD: torch.Tensor) -> Iterator[None]:
        hidden_1TD = hidden_TD[None]

        def passed(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return (x,) if self._in_tuples else x

        def begin(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if "hidden_states" in kwargs:
                return args, {**kwargs, "hidden_states": hidden_1TD}
            return (hidden_1TD, *args[1:]), kwargs

        with ExitStack() as cleanup:
            for layer in self.layers[: self.depth]:
                layer.forward = passed  # shadows the method
                cleanup.callback(delattr, layer, "forward")
            first = self.layers[self.depth]
            cleanup.callback(first.register_forward_pre_hook(begin, with_kwargs=True).remove)
            yield

    @torch.no_grad()
    def _is_the_base(self) -> bool:
        """Whether the layers above make of its states what the whole base makes of a row.

        Another row comes in between, so that nothing that a module remembers can be of use.
        """
        row, other = (pack([Block(0, 1, Batch((each,)))], self.base.device) for each in TRIAL)
        whole, hidden_TD = self._last(row), self._read(TRIAL[0])
        self._last(other)
        with self._standing_on(hidden_TD):
            return torch.equal(self._last(row), whole)

    def _last(self, rows: PackedRows) -> torch.Tensor:
        """The last hidden state [1, T, D] of the bare base."""
        out = self.base.body(
            input_ids=rows.ids_1T, position_ids=rows.positions_1T, use_cache=False, weft_rows=rows
        )
        return cast(torch.Tensor, out.last_hidden_state)

    def _of(self, example: Example) -> torch.Tensor:
        """[t, D] of one example."""
        ids_t = example.ids_T[: example.read]
        name = np.ascontiguousarray(ids_t).tobytes()
        if (found_tD := self.kept.get(name)) is None:
            found_tD = self._read(example)
            size = found_tD.nbytes
            if self.kept_bytes + size <= self.memory_bytes:
                self.kept[name] = found_tD
                self.kept_bytes += size
        return found_tD

    @torch.no_grad()
    def _read(self, example: Example) -> torch.Tensor:
        rows = pack([Block(0, 1, Batch((example,)))], self.base.device)
        reached: list[torch.Tensor] = []

        def stop(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            reached.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
            raise _Reached

        def note(module: torch.nn.Module, args: Any, out: Any) -> None:
            self._in_tuples = isinstance(out, tuple)

        handles = [
            self.layers[0].register_forward_hook(note),
            self.layers[self.depth].register_forward_pre_hook(stop, with_kwargs=True),
        ]
        try:
            self._last(rows)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return reached[0][0]


def _layers(base: Base) -> tuple[torch.nn.ModuleList | None, str]:
    """The body's own stack of layers, and how the names in it begin."""
    for name, module in base.model.named_modules():
        if isinstance(module, torch.nn.ModuleList):
            return module, f"{name}."
    return None, ""
