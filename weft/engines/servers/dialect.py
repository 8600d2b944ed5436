"""What differs between servers, as a value: addresses, names of parameters, and what an answer is.

What a server cannot do exactly as `Decoding` says is a problem in words, never left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from weft.engines.servers.client import Broken, Client, Json
from weft.model.decoding import Decoding


@dataclass(frozen=True)
class Server:
    """What a server says of itself."""

    version: str
    model: str
    """How it calls its base."""
    path: str
    """Where it has its base from."""
    context: int | None
    """The longest sequence of prompt and completion that it computes."""
    dtype: str = "the server's"
    members: int | None = None
    """How many adapters it computes at once, besides the base; None where it does not say."""
    deterministic: bool = True
    """Whether a seed determines what it draws."""


@dataclass(frozen=True)
class Ask:
    """One completion that is asked for."""

    member: int
    prompt: int
    adapter: str | None
    """Its name on the server; None for the base itself."""
    ids: tuple[int, ...]
    room: int
    """Tokens that can follow at most."""
    seed: int
    id: str
    """Of this request, and of no other."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    ids: tuple[int, ...]
    """All tokens, with the one that ended it."""
    stopped: bool
    """By a stop token or a stop text; else by its length."""
    by: str = ""
    """What the server says ended it."""


class Dialect(Protocol):
    """How a kind of server is spoken to."""

    name: str
    seed_bits: int
    """How large its seeds can be."""

    def look(self, client: Client) -> Server:
        """Ask the server what it is. Raises `InputError` for one that cannot serve a population."""
        ...

    def problems(self, decoding: Decoding, server: Server) -> Iterator[str]:
        """What it cannot do as asked."""
        ...

    def load(self, client: Client, name: str, path: str) -> None:
        """Load an adapter from its directory. Raises one of `FAILURES`."""
        ...

    def unload(self, client: Client, name: str) -> None:
        """Unload an adapter. Raises one of `FAILURES`."""
        ...

    def abort(self, client: Client, asked: Sequence[Ask]) -> None:
        """Give up requests that nobody waits for any more."""
        ...

    def request(
        self, ask: Ask, decoding: Decoding, ends: Sequence[int], server: Server
    ) -> tuple[str, Json]:
        """Address and body of a request; `ends` are all tokens that end a completion."""
        ...

    def reply(self, answer: Json, ask: Ask, server: Server) -> Reply:
        """What an answer says.

        Raises `Broken` for one that is none to the question, `Unreachable` for a request that was
        given up.
        """
        ...


def adapters(client: Client) -> dict[str, str]:
    """The adapters that a server lists, name to path. Raises one of `FAILURES`."""
    return {card["id"]: str(card.get("root")) for card in cards(client) if card.get("parent")}


def cards(client: Client) -> list[Json]:
    """What a server says of each model that it lists."""
    listed = client.json("/v1/models").get("data")
    return [card for card in listed or () if isinstance(card, dict) and "id" in card]


def token_ids(value: Any) -> tuple[int, ...]:
    """Ids in an answer. Raises `Broken` for anything else."""
    if not isinstance(value, list) or not all(isinstance(i, int) and i >= 0 for i in value):
        raise Broken(f"token ids are {str(value)[:100]!r}")
    return tuple(value)


def order_problems(decoding: Decoding) -> Iterator[str]:
    """What no server does: mlx-lm's order, and a window of the repetition penalty."""
    penalised = decoding.repetition_penalty != 1
    if decoding.order != "hf" and (penalised or not decoding.greedy):
        yield f"`order` {decoding.order}: it applies penalty, temperature and filters as `hf` does"
    elif penalised and decoding.window is not None:
        yield f"`repetition_window` {decoding.window}: its penalty sees all tokens"
