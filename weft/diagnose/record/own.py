"""A recording of what Weft itself generates: prompts, weights, first logits, draws, its own noise.

Each prompt is a generation of its own; its positions are those that the model applied.
Shapes: P prompts, T tokens, V vocabulary, D draws of a null.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch

from weft.core.keys import Key
from weft.data.slots import Slots
from weft.data.tokenizer import resolve_base, tokenizer_seen
from weft.diagnose.compare.divergence import divergence
from weft.diagnose.record.control import control
from weft.diagnose.sides.from_run import ENDED, all_tokens, decoding_seen
from weft.engines.local import LocalEngine
from weft.engines.registry import ENGINES
from weft.model.decode import NotFinite
from weft.model.decoding import Decoding
from weft.model.finite import first_broken
from weft.model.probing import embeddings_moved
from weft.model.sampling import distribution, penalise, seen_tokens
from weft.model.steppers import RecomputingStepper
from weft.model.weaving import Weft
from weft.model.witness import Look, Witness
from weft.runs.evidence import (
    Check,
    Draw,
    Encoded,
    Notice,
    Pass,
    Seeded,
    Settings,
    Snapshot,
    Weights,
)
from weft.runs.evidence import Generation as Said
from weft.runs.provenance import hardware, versions
from weft.runs.recording import About, RecordingWriter
from weft.training.generate import Generation, Session
from weft.training.trail import record_of, snapshot_of, weights_of

PROMPTS = 16
"""Prompts whose first logits are kept."""

CHECKED = 4
"""Prompts on which Weft is compared with itself."""

DRAWS = 3

CONTROLLED = 2
"""Prompts on which it is compared with forwards whose adapters are known."""

Null = Literal["repeat", "row", "cache", "ulp"]


class OwnRecording:
    """Records a session; a context manager around its `run`.

    Of a server there are prompts and completions only, and a notice says so.
    """

    def __init__(self, session: Session, root: Path, command: str = "") -> None:
        """Begin in a directory that is empty or not there; `InputError` for any other."""
        self.session = session
        about = About(
            source="weft",
            name="weft generate",
            command=command,
            versions=versions(),
            hardware=hardware(),
        )
        self._writer = RecordingWriter(root, about)
        self._here = ENGINES[session.subject.engine.name].here
        self._witness = Witness(prompts=PROMPTS)
        self._passes = self._prompts = 0
        self._checked: dict[tuple[int, int], list[np.ndarray]] = {}
        self._said: dict[tuple[int, int], tuple[int, ...]] = {}
        self._started = time.perf_counter()

    @property
    def root(self) -> Path:
        """Where it is written."""
        return self._writer.root

    @property
    def witness(self) -> Witness | None:
        """What the session is to be run with; None where nothing can be seen."""
        return self._witness if self._here else None

    def add(self, part: Sequence[Generation]) -> None:
        """Take the completions of the next prompts, and what the witness saw of them."""
        members = len(self.session.members)
        for number, said in enumerate(part):
            prompt, member = divmod(number, members)
            place = member, self._prompts + prompt
            looks = self._witness.seen.pop(place, [])
            self._add(member, said, looks)
            if looks and place[1] < CHECKED:
                self._checked[place] = [look.logits_V for look in looks]
                self._said[place] = all_tokens(said.ids, said.stopped_by)
        self._prompts += len(part) // members

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            for check in self._checks():
                self._writer.add(check)
        elif isinstance(error, NotFinite):
            self._broken(error)
        failed = "failed" if isinstance(error, Exception) else "interrupted"
        self._writer.finish(
            status="finished" if error is None else failed,
            error=None if error is None else f"{type(error).__name__}: {error}",
            seconds=time.perf_counter() - self._started,
        )

    def _begin(self) -> None:
        session = self.session
        engine, decoding = session.subject.engine, session.decoding
        self._writer.add(_settings(session))
        if not decoding.greedy:
            self._writer.add(Seeded(library="weft", seed=decoding.seed))
        self._writer.add(tokenizer_seen(engine.tokenizer))
        for event in _encoded(session):
            self._writer.add(event)
        if not self._here:
            text = f"the {engine.name} server shows neither weights nor logits"
            self._writer.add(Notice(text=text))
        elif isinstance(engine, LocalEngine):
            self._local(engine)
        else:
            self._mlx(engine)

    def _local(self, engine: LocalEngine) -> None:
        adapters = self.session.subject.adapters
        every = (slot for a in adapters.values() if a is not None for slot in a.layout.slots)
        names = list(dict.fromkeys(slot.site.name for slot in every if slot.site.kind != "router"))
        weights, sketches = weights_of(engine.base, names)
        for index, (member, adapter) in enumerate(adapters.items()):
            self._writer.add(weights.model_copy(update={"model": _model(index)}), sketches)
            if adapter is not None:
                snapshot, arrays = snapshot_of(engine.base, adapter)
                self._snapshot(snapshot, arrays, index, member)

    def _mlx(self, engine: Any) -> None:
        from weft.diagnose.record.mlx.weights import snapshot_of, weights_of

        bank = self.session.subject.bank
        for index, member in enumerate(bank.members):
            model = engine.adapted(bank, index)
            seen: tuple[Weights, dict[str, np.ndarray]]
            seen = weights_of(_model(index), model, resolve_base(engine.ref))
            self._writer.add(*seen)
            if (found := snapshot_of(_model(index), model, None, "use")) is not None:
                self._snapshot(*found, index, member)

    def _snapshot(
        self, seen: Snapshot, arrays: dict[str, np.ndarray], index: int, member: str
    ) -> None:
        paths = {n: p for place in self.session.subject.places for n, p in place.adapters.items()}
        load = str(paths[member]) if member in paths else None
        self._writer.add(seen.model_copy(update={"model": _model(index), "load": load}), arrays)

    def _add(self, member: int, said: Generation, looks: Sequence[Look]) -> None:
        tokens = all_tokens(said.ids, said.stopped_by)
        first = self._passes
        for step, look in enumerate(looks):
            self._pass(member, said.prompt_ids, tokens, step, look)
        logits = [look.logits_V for look in looks]
        draws = _draws(self.session.decoding, said.prompt_ids, tokens, logits)
        self._writer.add(
            Said(
                model=_model(member),
                driver="weft",
                settings=decoding_seen(said.parameters),
                prompts=(said.prompt_ids,),
                tokens=(tokens,),
                texts=(said.text,),
                ended=(ENDED[said.finish],),
                passes=tuple(range(first, self._passes)),
                draws=tuple(draws),
            )
        )

    def _pass(
        self,
        member: int,
        prompt: tuple[int, ...],
        tokens: tuple[int, ...],
        step: int,
        look: Look,
    ) -> None:
        """One step of one text: the prompt, the token that came last, or the whole text again."""
        text, at_n = (*prompt, *tokens[:step]), look.positions_n
        fed_now = len(at_n) if at_n is not None else 1 if step else len(prompt)
        past = len(text) - fed_now
        fed = np.array([text[past:]], np.int64)
        seen = Pass(
            model=_model(member),
            index=self._passes,
            phase="decode" if step else "prefill",
            rows=1,
            length=fed.shape[1],
            dtype=self.session.subject.engine.record()["dtype"],
            past=past,
            ids="ids",
            positions=None if at_n is None else "positions",
            logits="logits",
        )
        arrays = {"ids": fed, "logits": look.logits_V[None]}
        if at_n is not None:
            arrays["positions"] = at_n[None]
        self._writer.add(seen, arrays)
        self._passes += 1

    @torch.inference_mode()
    def _broken(self, error: NotFinite) -> None:
        """Where the forward of what was to be continued first stops being finite."""
        engine = self.session.subject.engine
        if not isinstance(engine, LocalEngine):
            return
        bank = self.session.subject.bank.to(engine.base.device)
        member = bank.members.index(error.member)
        prompt = self.session.prompts[self._prompts + error.prompt]
        with first_broken(engine.base.model) as found:
            stepper = RecomputingStepper(engine.base, Weft(bank.only([member])), [prompt.ids_T])
            stepper.start()
        if found.module is None:  # a later token
            return
        seen = Pass(
            model=_model(member),
            index=self._passes,
            phase="score",
            rows=1,
            length=len(prompt.ids_T),
            dtype=engine.record()["dtype"],
            ids="ids",
            nonfinite=found.module,
            largest=found.largest,
        )
        self._writer.add(seen, {"ids": prompt.ids_T[None]})

    def _checks(self) -> Iterator[Check]:
        """The local engine against itself, on the first prompts of each member."""
        engine = self.session.subject.engine
        if not isinstance(engine, LocalEngine) or not self._checked:
            return
        bank = self.session.subject.bank.to(engine.base.device)
        for member in range(len(bank.members)):
            prompts = [place for place in self._checked if place[0] == member]
            if prompts:
                yield from self._member_checks(engine, Weft(bank.only([member])), prompts)

    @torch.inference_mode()
    def _member_checks(
        self, engine: LocalEngine, weft: Weft, places: Sequence[tuple[int, int]]
    ) -> Iterator[Check]:
        texts = [self.session.prompts[prompt].ids_T for _, prompt in places]

        def whole(texts: Sequence[np.ndarray]) -> np.ndarray:
            return RecomputingStepper(engine.base, weft, texts).start().cpu().numpy()

        first_PV = whole(texts)
        found: dict[Null, list[tuple[np.ndarray, np.ndarray]]] = {}
        found["repeat"] = [(first_PV, whole(texts))]
        alone_PV = np.concatenate([whole([text]) for text in texts])
        found["row"] = [(alone_PV, np.stack([self._checked[place][0] for place in places]))]
        for draw in range(DRAWS):
            with embeddings_moved(engine.base, Key.of(0).fold("null", draw)):
                found.setdefault("ulp", []).append((first_PV, whole(texts)))
        later = [
            (logits_V, np.append(text, self._said[place][:step]))
            for place, text in zip(places, texts, strict=True)
            for step, logits_V in enumerate(self._checked[place])
            if step
        ]
        if later:
            cached = np.stack([logits_V for logits_V, _ in later])
            found["cache"] = [(whole([text for _, text in later]), cached)]
        for name, pairs in found.items():
            yield from _check(name, _model(places[0][0]), pairs)
        adapter = self.session.subject.adapters[weft.bank.members[0]]
        if adapter is not None:
            few = places[:CONTROLLED]
            said, seen = [self._said[p] for p in few], [self._checked[p] for p in few]
            yield from control(
                _model(few[0][0]), engine.base, adapter, texts[:CONTROLLED], said, seen
            )


def _check(
    name: Null, model: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Iterator[Check]:
    apart = [divergence(one, other) for one, other in pairs]
    nats = tuple(float(each.kl.mean()) for each in apart)
    largest = tuple(float(each.largest.max()) for each in apart)
    words = f"{len(pairs[0][0])} texts"
    yield Check(name=name, model=model, unit="nats", values=nats, words=words)
    yield Check(name=name, model=model, unit="logits", values=largest, words=words)


def _settings(session: Session) -> Settings:
    engine = session.subject.engine
    record = engine.record()
    values: dict[str, Any] = {"base": engine.ref, "engine.name": engine.name}
    values |= {key: record[key] for key in ("dtype", "device") if key in record}
    shared = decoding_seen(session.parameters(session.prompts[0]))
    values |= {f"generation.{name}": value for name, value in shared.items()}
    if isinstance(engine, LocalEngine):
        values["environment.threads"] = torch.get_num_threads()
    values |= {f"environment.{name}": version for name, version in versions().items()}
    given = {f"generation.{name}" for name in session.decoding.model_fields_set}
    origins = {key: "command line" if key in given else "seen" for key in values}
    return Settings(values=values, origins=origins)


def _encoded(session: Session) -> Iterator[Encoded]:
    chat = session.data is not None and session.data.chat
    for number, prompt in enumerate(session.prompts):
        slots = Slots()
        if session.rows is not None and session.data is not None:
            row = session.rows.items[number].row
            slots.add([(record_of(prompt.id, session.data), row)])
        yield Encoded(
            text=prompt.text,
            ids=tuple(prompt.ids_T.tolist()),
            special=bool(session.style.options.get("add_special_tokens", prompt.mode != "chat")),
            templated=prompt.mode == "chat" or chat,
            slots=slots.find(prompt.text),
        )


def _draws(
    decoding: Decoding,
    prompt: tuple[int, ...],
    tokens: tuple[int, ...],
    logits: Sequence[np.ndarray],
) -> Iterator[Draw]:
    """How the tokens whose logits were seen were chosen."""
    for step, (token, logits_V) in enumerate(zip(tokens, logits, strict=False)):
        raw_1V = torch.from_numpy(logits_V)[None]
        before, kept = raw_1V, None
        if decoding.repetition_penalty != 1:
            seen_1S = seen_tokens([[*prompt, *tokens[:step]]], decoding.window)
            before = penalise(raw_1V, seen_1S, decoding.repetition_penalty)
        if not decoding.greedy:
            kept = int(distribution(before, decoding).isfinite().sum())
        yield Draw(
            row=0,
            step=step + 1,
            token=token,
            how="argmax" if decoding.greedy else "draw",
            temperature=None if decoding.greedy else decoding.temperature,
            kept=kept,
            probability=float(raw_1V.double().softmax(-1)[0, token]),
        )


def _model(member: int) -> str:
    return f"model-{member}"


def command_line() -> str:
    """How this process was started, as a shell would take it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
