"""The engine of a server: members are PEFT adapters that it loads, answers with, and unloads.

What a server says is taken only where it is known to be the answer of the right adapter to the
right prompt. When the server is lost, the members that were under way are done again by the one
that comes back, all of them, and what differs from the first time is counted.

Shapes: N members, R prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import torch

from weft.core.batch import Batch, spans
from weft.core.errors import EngineError, InputError
from weft.data.stream_text import Detokeniser
from weft.data.tokenizer import load_tokenizer, resolve_base
from weft.engines.config import ServerConfig
from weft.engines.engine import Scores
from weft.engines.servers import canary
from weft.engines.servers.asking import Asking
from weft.engines.servers.client import FAILURES, Client, Lost, Refused, Unreachable
from weft.engines.servers.dialect import Ask, Dialect, Server
from weft.engines.servers.ending import Ending
from weft.engines.servers.loading import RESTART, Loader
from weft.engines.servers.sglang import Sglang
from weft.engines.servers.vllm import Vllm
from weft.model.adapter import Adapter, Layout, Site, Slot
from weft.model.bank import Bank
from weft.model.base import generation_stops, load_config, longest_text
from weft.model.decode import NotFinite, OnToken, check_prompts
from weft.model.decoding import Completion, Decoding, request_keys
from weft.model.facts import skeleton
from weft.model.objectives import TOKENS, Objective
from weft.runs.timing import Stopwatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIALECTS: dict[str, Callable[[], Dialect]] = {"vllm": Vllm, "sglang": Sglang}

MEMBERS = 8
"""At once, on a server that does not say how many it holds."""


@dataclass(frozen=True)
class Incident:
    """A server that was lost while it worked, and what became of the work."""

    why: str
    repeated: int
    """Completions that had been made and were made again."""
    differed: int
    """Those of them that were others then."""

    def __str__(self) -> str:
        return (
            f"the server failed ({self.why}) and came back: {self.repeated} completions were made "
            f"again, and {self.differed} of them differ from the first time"
        )


@dataclass(frozen=True, eq=False)
class _Call:
    """What a call of `generate` asks of every span of its members."""

    prompts: Sequence[np.ndarray]
    decoding: Decoding
    seed_R: Sequence[int]
    stop_ids: frozenset[int]
    context: int | None

    def asks(self, names: Sequence[str | None]) -> list[Ask]:
        """A request for every member and prompt, prompts that members share side by side."""
        call = uuid4().hex[:12]
        prompts = [tuple(ids_T.tolist()) for ids_T in self.prompts]
        return [
            Ask(member, r, name, ids, self.room(ids), seed, f"{call}-{member}-{r}")
            for r, (ids, seed) in enumerate(zip(prompts, self.seed_R, strict=True))
            for member, name in enumerate(names)
        ]

    def room(self, ids: Sequence[int]) -> int:
        """How many tokens can follow a prompt."""
        most = self.decoding.max_tokens
        return most if self.context is None else min(most, self.context - len(ids))


@dataclass(eq=False)
class ServerEngine:
    """Many adapters over the base of a server."""

    client: Client
    dialect: Dialect
    server: Server
    ref: str
    tokenizer: PreTrainedTokenizerBase
    sites: dict[str, Site]
    context: int | None
    """The longest sequence that base and server allow."""
    stop_ids: frozenset[int]
    clock: Stopwatch = field(default_factory=Stopwatch)
    notice: Callable[[str], None] = lambda _: None
    """Told what went wrong and was mended."""
    incidents: list[Incident] = field(default_factory=list)
    again: int = 0
    """How many single requests failed and were asked again."""

    def __post_init__(self) -> None:
        self._loader = Loader(self.client, self.dialect, self.server.path)
        self._proven: set[Layout] = set()  # whose adapters the server, as it runs now, does use

    @property
    def name(self) -> str:
        """How `--engine` calls it."""
        return self.dialect.name

    @property
    def members(self) -> int:
        """Adapters that are on the server at once."""
        return self.client.config.members or self.server.members or MEMBERS

    @property
    def notices(self) -> tuple[str, ...]:
        """What could not be checked of the server, in words."""
        path, own = self.server.path, str(resolve_base(self.ref))
        if path in (self.ref, own):
            return ()
        return (
            f"the server says that its base is {path}, and here it is {self.ref}: that these are "
            "the same weights was not checked",
        )

    def record(self) -> dict[str, str]:
        """What computes: the server, its version, and what it says of its base."""
        return {
            "name": self.name,
            "device": "the server's",
            "dtype": self.server.dtype,
            "url": self.client.config.url,
            "model": self.server.path,
            self.name: self.server.version,
        }

    def score(self, bank: Bank, batch: Batch, objective: Objective = TOKENS) -> Scores:
        """Servers compute no losses of given texts under many adapters: `InputError`."""
        raise InputError(
            f"the {self.name} engine generates; losses are computed by --engine local",
            hint="a server is for completions: `weft generate`, and rewards",
        )

    def generate(
        self,
        bank: Bank,
        prompts: Sequence[np.ndarray],
        decoding: Decoding,
        on_token: OnToken | None = None,
        copies: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """The continuation of every prompt under every member: [member][prompt].

        Members share the noise of a prompt. Tokens are told when all members that are on the
        server together have said everything. Raises `InputError` for what the server cannot do as
        asked, and `EngineError` when it fails for good.
        """
        check_prompts(prompts, self.context)
        problems = list(self.dialect.problems(decoding, self.server))
        if problems:
            raise InputError(
                f"the {self.name} server cannot decode as asked:"
                + "".join(f"\n  {problem}" for problem in problems),
                hint="change that, or use --engine local, which does all of it",
            )
        call = self._call(prompts, decoding, copies)
        texts: list[list[Completion]] = []
        for start, stop in spans(len(bank.members), self.members):
            said = self._said(self._adapters(bank, range(start, stop)), call)
            if on_token is not None:
                _tell(on_token, start, said)
            texts += said
        return texts

    def close(self) -> None:
        """Remove the directory of adapters, and hang up."""
        self._loader.close()
        self.client.close()

    def _call(
        self, prompts: Sequence[np.ndarray], decoding: Decoding, copies: Sequence[int] | None = None
    ) -> _Call:
        keys = request_keys(decoding.seed, prompts, copies)
        seed_R = [key.value >> (64 - self.dialect.seed_bits) for key in keys]
        own = frozenset() if decoding.ignore_eos else self.stop_ids
        return _Call(prompts, decoding, seed_R, own.union(decoding.stop_ids), self.context)

    def _adapters(self, bank: Bank, members: range) -> list[Adapter | None]:
        """The members as adapters, if a server can have them.

        Beside others the base is an adapter that adds zero: asked for bare in one batch with
        adapters, vLLM's CPU build (0.32) computes it with the adapter in its last place.
        """
        adapters = [bank.adapter(member, self.sites) for member in members]
        for member, adapter in zip(members, adapters, strict=True):
            if adapter is None:
                continue
            if not adapter.flat.isfinite().all():
                raise NotFinite(bank.members[member], prompt=0, token=1)
            odd = [s.site.name for s in adapter.layout.slots if s.site.kind == "router"]
            if odd:
                raise InputError(
                    f"{bank.members[member]} changes the router {odd[0]}, which no server can",
                    hint="--engine local does",
                )
        slots = {slot.site: slot for own in adapters if own for slot in own.layout.slots}
        if not slots:
            return adapters
        layout = Layout(tuple(slots.values()))
        zero = Adapter(layout, torch.zeros(layout.size))
        return [zero if own is None else own for own in adapters]

    def _said(self, members: Sequence[Adapter | None], call: _Call) -> list[list[Completion]]:
        """What members on the server together say; all anew when the server had to come back."""
        first: dict[tuple[int, int], Completion] = {}
        whole = len(members) * len(call.prompts)
        for attempt in count():
            done: dict[tuple[int, int], Completion] = {}
            try:
                self._prove(members, call)
                self._ask(members, call, done)
                break
            except Lost as lost:
                if len(done) == whole:  # it went when all was said
                    self._proven.clear()
                    break
                first |= done
                why = str(lost)
                self._await(why, attempt)
        if attempt:
            differed = sum(done[cell] != said for cell, said in first.items())
            self.incidents.append(Incident(why, len(first), differed))
            self.notice(str(self.incidents[-1]))
        rows = range(len(call.prompts))
        return [[done[member, row] for row in rows] for member in range(len(members))]

    def _prove(self, members: Sequence[Adapter | None], call: _Call) -> None:
        """Once for each kind of adapter: that the server does not quietly answer without it."""
        slots = {slot.site: slot for own in members if own for slot in own.layout.slots}
        layout = Layout(tuple(slots.values()))
        if not slots or not len(call.prompts) or layout in self._proven:
            return
        rank = max(slot.rank for slot in slots.values())
        loud = Layout(tuple(Slot(site, rank, 1.0) for site in slots))
        trial = self._call([min(call.prompts, key=len)], canary.DECODING)
        for size in canary.SIZES:
            done: dict[tuple[int, int], Completion] = {}
            self._ask([None], trial, done, phase="loading")
            base = done[0, 0].ids
            self._ask(canary.loud_pair(loud, size), trial, done, phase="loading")
            said = [done[member, 0].ids for member in range(2)]
            if canary.differ(base, said):
                self._proven.add(layout)
                return
        raise canary.silent(self.client.config.url, base, said)

    def _ask(
        self,
        members: Sequence[Adapter | None],
        call: _Call,
        done: dict[tuple[int, int], Completion],
        phase: str = "evaluation",
    ) -> None:
        """Load, ask and unload; fills `done` as far as it gets."""
        ending = Ending(
            call.stop_ids,
            call.decoding.stop,
            lambda row: Detokeniser(self.tokenizer, call.prompts[row]),
            call.decoding.max_tokens,
        )
        with self._loader.loaded(members, self.clock) as names:
            asking = Asking(
                self.client,
                lambda ask: self.dialect.request(
                    ask, call.decoding, sorted(call.stop_ids), self.server
                ),
                lambda answer, ask: ending(ask, self.dialect.reply(answer, ask, self.server)),
                lambda: self._loader.has(names),
                lambda asks: self.dialect.abort(self.client, asks),
                done,
            )
            try:
                with self.clock(phase):
                    asking(call.asks(names))
            finally:
                self.again += asking.again

    def _await(self, why: str, attempt: int) -> None:
        """Wait for a server that was lost; it must have the same base as before."""
        config, before = self.client.config, self.server
        if attempt >= config.retries:
            raise EngineError(
                f"the server at {config.url} was lost {attempt + 1} times in one call: {why}",
                hint=f"its log says why; {RESTART}",
            )
        self.notice(f"the server at {config.url} is lost ({why}): waiting for it")
        with self.clock("server launch"):
            back = self.client.wait(config.start_timeout)
        if not back:
            raise EngineError(
                f"the server at {config.url} is lost ({why}), and did not come back within "
                f"{config.start_timeout:g} s",
                hint=RESTART,
            )
        self.server = _look(self.client, self.dialect)
        if (self.server.model, self.server.path) != (before.model, before.path):
            raise EngineError(
                f"the server at {config.url} came back with {self.server.path} for its base, and "
                f"had {before.path}",
                hint=RESTART,
            )
        self._proven.clear()


def open_server(config: ServerConfig, ref: str, clock: Stopwatch | None = None) -> ServerEngine:
    """A server's engine over the base `ref`, of which the weights are read by the server alone.

    Raises `InputError` for a server that cannot serve a population, `EngineError` for none.
    """
    own, tokenizer, sites = load_config(ref), load_tokenizer(ref), skeleton(ref)
    clock = clock or Stopwatch()
    client, dialect = Client(config), DIALECTS[config.name]()
    try:
        with clock("server launch"):
            _reach(client)
            server = _look(client, dialect)
    except BaseException:
        client.close()
        raise
    limits = [limit for limit in (longest_text(own), server.context) if limit is not None]
    return ServerEngine(
        client,
        dialect,
        server,
        ref,
        tokenizer,
        sites,
        min(limits, default=None),
        generation_stops(ref, tokenizer),
        clock,
    )


def _reach(client: Client) -> None:
    """The server is there, or is just starting; where nothing answers, that is said at once."""
    config = client.config
    try:
        client.get("/v1/models")
    except Refused:
        pass  # said better by what is asked next
    except Unreachable as error:
        if "Connect" in str(error) or not client.wait(config.start_timeout):
            raise EngineError(
                f"there is no {config.name} server at {config.url}: {error}",
                hint="start it (docs/engines.md says how), or give its address: "
                "`--url http://...`, in a run `engine.url`",
            ) from error


def _look(client: Client, dialect: Dialect) -> Server:
    try:
        return dialect.look(client)
    except FAILURES as error:
        raise EngineError(
            f"what answers at {client.config.url} is no {dialect.name} server: {error}",
            hint="`weft` speaks to vllm and sglang: is this another one, or another port?",
        ) from error


def _tell(on_token: OnToken, first: int, said: Sequence[Sequence[Completion]]) -> None:
    for member, completions in enumerate(said, first):
        for row, completion in enumerate(completions):
            for token in completion.ids:
                on_token(member, row, token)
