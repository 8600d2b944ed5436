"""Where a completion ends: decided here, by the rule of the local loop, whatever a server thinks.

A server that ends a text early for a reason of its own is found out; one that goes on too long is
cut. So a completion means the same from every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from weft.engines.servers.client import Broken
from weft.engines.servers.dialect import Ask, Reply
from weft.model.decode import Growing
from weft.model.decoding import Completion, Finish


@dataclass(frozen=True, eq=False)
class Ending:
    """What ends the completions of a call."""

    stop_ids: Collection[int]
    stops: Sequence[str]
    detokenise: Callable[[int], Growing]
    """An empty completion of a prompt, by its number."""
    longest: int
    """Of any completion."""

    def __call__(self, ask: Ask, reply: Reply) -> Completion:
        """The completion in a reply. Raises `Broken` where the server ended it otherwise."""
        said = self.detokenise(ask.prompt) if self.stops else None
        for place, token in enumerate(reply.ids):
            if token in self.stop_ids:
                return Completion(reply.ids[:place], "stop token", token)
            if said is not None:
                said.add(token)
                found = [stop for stop in self.stops if stop in said.text]
                if found:
                    first = min(found, key=said.text.index)
                    return Completion(reply.ids[: place + 1], "stop text", first)
            if place + 1 == ask.room:
                limit: Finish = "max_tokens" if ask.room == self.longest else "context"
                return Completion(reply.ids[: ask.room], limit)
        why = f"at {reply.by}" if reply.stopped else "for its length"
        raise Broken(
            f"it ended a text {why} after {len(reply.ids)} of {ask.room} tokens, where nothing "
            "that was asked for ends it"
        )
