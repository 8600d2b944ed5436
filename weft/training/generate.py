"""Texts: references, prompts and parameters in, completions with all that determined them out.

    session = open_generation(["base", "runs/mine"], Source(asked(["Once"])), {"temperature": 0.8})
    for texts in session.run(batch_size=32): ...

Everything that can be wrong is found before the first token is made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from weft.core.batch import Batch
from weft.core.errors import InputError
from weft.data.config import DataConfig
from weft.data.prompts import Ask, Prompt, Style, encode_asks, read_asks
from weft.data.split import Split
from weft.data.stream_text import TextStream, before_stop
from weft.data.tokens import decode_completion, head_ids
from weft.engines.config import EngineConfig
from weft.engines.engine import Engine, Watchable
from weft.engines.local import LocalEngine
from weft.engines.registry import ENGINES
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.base import load_config
from weft.model.check import CacheCheck
from weft.model.config import DType
from weft.model.decode import NotFinite, OnToken, check_prompts
from weft.model.decoding import Completion, Decoding, Finish, copy_numbers
from weft.model.objectives import TOKENS, choosing
from weft.model.witness import Witness
from weft.runs.manifest import utc_now
from weft.runs.provenance import versions
from weft.training.config import DEVICE
from weft.training.parameters import idle, make_decoding, token_id
from weft.training.refs import Subject, data_for, load_split, locate, open_subject


@dataclass(frozen=True)
class Source:
    """Where the prompts come from: one of texts, a file, and lines of a split of data."""

    prompts: Sequence[Ask] = ()
    file: Path | None = None
    lines: Sequence[int] = ()
    task: str | None = None
    data: Path | None = None
    split: str = "valid"
    style: Style = field(default_factory=Style)


@dataclass(frozen=True)
class Generation:
    """What one member said on one prompt, and what determined it."""

    id: str
    """The prompt's: `prompt:3` is the third, `valid:12` is line 12 of the validation rows."""
    member: str
    prompt: str
    """As the model saw it, special tokens spelled out."""
    prompt_ids: tuple[int, ...]
    text: str
    """Without the stop text and what is after it; special tokens are left out."""
    ids: tuple[int, ...]
    """Every token before the one that ended it; those of a stop text are included."""
    finish: Finish
    stopped_by: int | str | None
    """The stop token's id, or the stop text."""
    parameters: Mapping[str, Any]
    """Every parameter of decoding and prompt, as it was used."""
    reference: str | None = None
    """The response that is expected, where the prompt is a row of data."""
    verdict: Mapping[str, float] = field(default_factory=dict)
    """The metric of the row's task, by name."""

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


Asked = tuple[Bank, list[np.ndarray], Decoding, OnToken | None, list[int]]
"""What an engine is asked to continue."""


@dataclass(frozen=True, eq=False)
class Session:
    """Members, prompts and parameters, checked and ready."""

    subject: Subject
    prompts: tuple[Prompt, ...]
    decoding: Decoding
    style: Style
    notices: tuple[str, ...]
    rows: Split | None = None
    """The rows behind the prompts, in the same order, where they are rows of data."""
    data: DataConfig | None = None
    """Where these rows are from."""
    time: str = field(default_factory=utc_now)
    """When it was opened."""

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members."""
        return tuple(self.subject.adapters)

    @property
    def runs(self) -> dict[str, Path]:
        """The run of every member that is from one."""
        places = self.subject.places
        owners = [place.run for place in places for _ in place.adapters or [place.ref]]
        pairs = zip(self.members, owners, strict=True)
        return {member: run for member, run in pairs if run is not None}

    @property
    def longest(self) -> int:
        """No completion has more tokens."""
        context = self.subject.engine.context
        if context is None:
            return self.decoding.max_tokens
        shortest = min(len(prompt.ids_T) for prompt in self.prompts)
        return min(self.decoding.max_tokens, context - shortest)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends a completion."""
        own = () if self.decoding.ignore_eos else self.subject.engine.stop_ids
        return tuple(sorted({*own, *self.decoding.stop_ids}))

    def parameters(self, prompt: Prompt) -> dict[str, Any]:
        """All that determines a completion besides weights, engine and the prompt's ids."""
        return {
            **self.decoding.record(),
            "stop_ids": list(self.stop_ids),
            "prompt_mode": prompt.mode,
            **self.style.record(),
        }

    def text(self, prompt: int, ids: Sequence[int]) -> str:
        """The text of a prompt's completion, up to where a stop text begins."""
        tokenizer = self.subject.engine.tokenizer
        whole = decode_completion(tokenizer, self.prompts[prompt].ids_T, ids)
        return before_stop(whole, self.decoding.stop)

    def stream(self, prompt: int) -> TextStream:
        """The text of a completion of a prompt, piece by piece."""
        tokenizer = self.subject.engine.tokenizer
        return TextStream(tokenizer, self.prompts[prompt].ids_T, self.decoding.stop)

    def run(
        self,
        *,
        batch_size: int = 32,
        on_token: OnToken | None = None,
        check: CacheCheck | None = None,
        witness: Witness | None = None,
    ) -> Iterator[list[Generation]]:
        """The completions of `batch_size` prompts at a time: prompt by prompt, in its members.

        `on_token` is called with (member, prompt, token). With `check` every step is compared
        with one that has no cache; a `witness` sees the first logits, where the engine is in this
        process. Raises `NumericError` for logits that are not finite.
        """
        bank, ids = self.subject.bank, [prompt.ids_T for prompt in self.prompts]
        copies = copy_numbers(ids)
        for start in range(0, len(ids), batch_size):
            here = slice(start, start + batch_size)
            tell = None if on_token is None else _shifted(on_token, start)
            try:
                asked = (bank, ids[here], self.decoding, tell, copies[here])
                said = self._said(asked, start, check, witness)
            except NotFinite as e:
                prompt = self.prompts[start + e.prompt]
                raise NotFinite(e.member, e.prompt, e.token, prompt.id) from None
            yield self._generations(start, said)

    def _said(
        self, asked: Asked, start: int, check: CacheCheck | None, witness: Witness | None
    ) -> list[list[Completion]]:
        engine = self.subject.engine
        for watching in (check, witness):
            if watching is not None:
                watching.first_prompt = start
        if check is not None:
            return self.subject.local.generate(*asked, check, witness)
        if witness is not None and ENGINES[engine.name].here:
            return cast(Watchable, engine).generate(*asked, witness=witness)
        return engine.generate(*asked)

    def _generations(self, start: int, said: list[list[Completion]]) -> list[Generation]:
        return [
            self._generation(start + place, index, texts[place])
            for place in range(len(said[0]))
            for index, texts in enumerate(said)
        ]

    def _generation(self, number: int, member: int, completion: Completion) -> Generation:
        prompt = self.prompts[number]
        text = self.text(number, completion.ids)
        return Generation(
            prompt.id,
            self.members[member],
            prompt.text,
            tuple(prompt.ids_T.tolist()),
            text,
            completion.ids,
            completion.finish,
            completion.stopped_by,
            self.parameters(prompt),
            prompt.reference,
            self._verdict(number, member, text),
        )

    def _verdict(self, number: int, member: int, text: str) -> dict[str, float]:
        """The metrics of a row's task: of the text where texts are judged, else of the scores."""
        if self.rows is None:
            return {}
        item, task = self.rows.items[number], self.rows.task
        if task.judges:
            judges = task.judges.items()
            return {name: judge(item.prompt, item.reference, text) for name, judge in judges}
        return {task.metric: float(self._scored[number][member])}

    @cached_property
    def _scored(self) -> list[np.ndarray]:
        """The metric of each row for every member [N], where it is one of scores."""
        assert self.rows is not None
        engine, bank, examples = self.subject.engine, self.subject.bank, self.rows.examples
        objective = choosing(examples) if self.rows.task.candidates else TOKENS
        found = (engine.score(bank, Batch((example,)), objective) for example in examples)
        return [scores.correct_NE[:, 0] / scores.count_E[0] for scores in found]

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What every record says besides its completion; hashes the base, which takes a moment."""
        engine = self.subject.engine
        adapters = self.subject.adapters
        fingerprints = {name: fingerprint(a) for name, a in adapters.items() if a is not None}
        base = {"base": engine.base.fingerprint()} if isinstance(engine, LocalEngine) else {}
        return {
            "base": engine.ref,
            "engine": engine.record(),
            "versions": versions(),
            "fingerprints": {**base, "adapters": fingerprints},
        }

    def record(self, generation: Generation) -> dict[str, Any]:
        """A line of `samples.jsonl`."""
        scales = scales_of(self.subject.adapters[generation.member])
        return {
            **generation.record(),
            "scale": list(scales),
            **self.origin,
            "fingerprints": {
                **{k: v for k, v in self.origin["fingerprints"].items() if k != "adapters"},
                "adapter": self.origin["fingerprints"]["adapters"].get(generation.member),
            },
            "time": self.time,
        }


def open_generation(
    refs: Sequence[str],
    source: Source,
    parameters: Mapping[str, Any],
    *,
    stop_tokens: Sequence[str | int] = (),
    base: str | None = None,
    dtype: DType | None = None,
    device: str | None = None,
    engine: EngineConfig | str = "local",
    names: Mapping[str, str] | None = None,
) -> Session:
    """Load what the references mean, and check prompts and parameters.

    `parameters` are fields of `Decoding`; `names` is how to call them in errors. `stop_tokens`
    are names or ids of more tokens that end a completion.
    """
    decoding = make_decoding(parameters, names or {})
    asks, notices = read_asks(source.file) if source.file else (source.prompts, ())
    if not asks and not source.lines:
        raise InputError("there is no prompt", hint="give a text, a file, or the row of some data")
    if device is not None and not re.match(DEVICE, device):
        raise InputError(f"device: {device!r} is none of cpu, cuda, cuda:N and mps")
    places = [locate(ref) for ref in refs]
    data = data_for(places, task=source.task, path=source.data) if source.lines else None
    subject = open_subject(refs, base=base, dtype=dtype, device=device, engine=engine)
    tokenizer = subject.engine.tokenizer
    more = [token_id(tokenizer, token) for token in stop_tokens]
    decoding = decoding.model_copy(update={"stop_ids": (*decoding.stop_ids, *more)})
    rows = None
    if data is not None:
        rows = pick_rows(load_split(subject, data, source.split), source.lines)
        _check_metric(subject.engine, rows)
        prompts = _row_prompts(tokenizer, rows)
    else:
        prompts = encode_asks(tokenizer, asks, source.style)
    check_prompts([prompt.ids_T for prompt in prompts], subject.engine.context)
    _check_vocabulary(prompts, rows, subject.engine.ref)
    said = (
        *notices,
        *subject.notices,
        *_engine_notices(subject.engine, prompts, decoding),
        *idle(decoding, names or {}),
    )
    return Session(subject, tuple(prompts), decoding, source.style, said, rows, data)


def _engine_notices(engine: Engine, prompts: Sequence[Prompt], decoding: Decoding) -> Iterator[str]:
    if isinstance(engine, LocalEngine):
        if notice := engine.base.notice:
            yield notice if engine.base.packs else f"{notice}; each token takes a whole forward"
        yield from engine.notices([len(p.ids_T) for p in prompts], decoding.max_tokens)
    if not ENGINES[engine.name].here:
        from weft.engines.servers.engine import ServerEngine

        assert isinstance(engine, ServerEngine)
        yield from engine.notices


def _check_metric(engine: Engine, rows: Split) -> None:
    if not rows.task.judges and not ENGINES[engine.name].scores:
        raise InputError(
            f"rows of {rows.task.name} are judged by losses, which the {engine.name} engine does "
            "not compute",
            hint="--engine local does; or give the text with --prompt",
        )


def _check_vocabulary(prompts: Sequence[Prompt], rows: Split | None, base: str) -> None:
    known = load_config(base).get_text_config().vocab_size
    texts = [prompt.ids_T for prompt in prompts]
    texts += [item.example.ids_T for item in rows.items] if rows else []
    if (largest := max(int(ids_T.max()) for ids_T in texts)) >= known:
        raise InputError(
            f"the tokenizer gives token {largest}, and the base knows 0 to {known - 1}",
            hint="tokenizer and base do not belong together, or its embeddings were not resized",
        )


def pick_rows(split: Split, lines: Sequence[int]) -> Split:
    """The rows on these lines of their file."""
    by_line = {int(item.example.id.rpartition(":")[2]): item for item in split.items}
    for line in lines:
        if line not in by_line:
            near = sorted(sorted(by_line, key=lambda other: abs(other - line))[:3])
            raise InputError(
                f"the {split.name} rows have none on line {line}",
                hint=f"there are {len(by_line)} rows, on lines {min(by_line)} to {max(by_line)}; "
                f"near it {', '.join(map(str, near))}",
            )
    items = tuple(by_line[line] for line in lines)
    return Split(split.name, split.task, items, split.max_length, split.counts, split.notices)


def _row_prompts(tokenizer: PreTrainedTokenizerBase, rows: Split) -> list[Prompt]:
    """Exactly the ids that training saw before the response."""
    head = head_ids(tokenizer)
    spelled = "".join(tokenizer.convert_ids_to_tokens(list(head)))
    return [
        Prompt(
            item.example.id,
            spelled + item.prompt
            if tuple(item.prompt_ids[: len(head)]) == head and not item.prompt.startswith(spelled)
            else item.prompt,
            item.prompt_ids,
            "row",
            item.reference,
        )
        for item in rows.items
    ]


def fingerprint(adapter: Adapter) -> str:
    """sha256 of what an adapter does: sites, ranks, scales and factors, in whatever format."""
    digest = hashlib.sha256()
    for slot in sorted(adapter.layout.slots, key=lambda slot: slot.site.name):
        digest.update(f"{slot.site.name} {slot.rank} {slot.scale!r}\n".encode())
        for factor in adapter.sites[slot.site.name]:
            digest.update(factor.detach().cpu().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def scales_of(adapter: Adapter | None) -> tuple[float, ...]:
    """The different scales of an adapter's sites; none for the base."""
    return () if adapter is None else tuple(sorted({slot.scale for slot in adapter.layout.slots}))


def _shifted(on_token: OnToken, first: int) -> OnToken:
    return lambda member, prompt, token: on_token(member, first + prompt, token)
