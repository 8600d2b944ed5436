"""A run from start to end: prepare, train, keep, evaluate, and leave every fingerprint."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from weft.core.errors import InputError, NumericError
from weft.core.files import free_directory
from weft.engines.ranks import ALONE, Ranks
from weft.formats.peft import write_adapter
from weft.runs.layout import RunLayout
from weft.runs.manifest import Manifest
from weft.runs.provenance import code_state
from weft.runs.reader import RunReader
from weft.runs.silent import SilentWriter
from weft.runs.timing import Stopwatch
from weft.runs.writer import RunWriter
from weft.training import trail
from weft.training.begin import NOISE, noise_record
from weft.training.config import RunConfig
from weft.training.ending import Outcome, end, failed, finished
from weft.training.fit import StopRequest, Watch, fit
from weft.training.job import Job, load_job
from weft.training.plan import refuse_unjudged
from weft.training.record import changes, manifest_of, refuse_changed
from weft.training.resolve import Resolved, from_record
from weft.training.state import FILE, State
from weft.training.step import DIVERGED, Part


@dataclass(frozen=True, eq=False)
class Opened:
    """A run that is being written, at the state from which it goes on."""

    job: Job
    state: State
    writer: RunWriter

    @property
    def manifest(self) -> Manifest:
        """What the run is, and what has been said of it so far."""
        return self.writer.manifest


PREFLIGHT = "preflight"
"""The event of what a method saw before the first step."""

Announce = Callable[[Sequence[Opened]], None]
"""Called once, when everything is checked and loaded and the first step is about to be taken."""


def train(
    resolved: Resolved,
    run_dir: Path | None = None,
    *,
    announce: Announce | None = None,
    watch: Watch | None = None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Start a run in `run_dir` (default: a new directory below `runs/`).

    The first of several ranks writes it. The others come to the same, but for what is in files:
    their outcomes have no results.
    """

    def choose() -> bytes:
        if run_dir is not None:
            _refuse_occupied(run_dir)
        return os.fsencode(run_dir or free_directory(Path("runs"), resolved.name))

    root = Path(os.fsdecode(ranks.of_first(choose)))
    job = load_job(resolved, Stopwatch(), ranks=ranks)
    with closing(job), _started(job, root) as opened:
        return _only(_go([opened], announce, watch, ranks))


def resume(
    root: Path,
    *,
    announce: Announce | None = None,
    watch: Watch | None = None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Go on with a run that did not finish, from its newest checkpoint, bit for bit.

    Of several ranks the first reads the run, and sends it to the others.
    """
    told = ranks.of_first(lambda: RunReader(root).manifest.model_dump_json().encode())
    manifest, clock = Manifest.model_validate_json(told), Stopwatch()
    resolved = from_record(manifest.config, manifest.origins, str(root / "manifest.json"))
    job = load_job(resolved, clock, RunLayout(root).start, ranks)
    with closing(job):
        refuse_changed(manifest, job)
        with _writer(job, root, manifest, lambda: RunWriter.reopen(root, clock=clock)) as writer:
            opened = _reopened(job, writer, _newest(job, writer))
            return _only(_go([opened], announce, watch, ranks))


def _writer(
    job: Job, root: Path, manifest: Manifest, open_it: Callable[[], RunWriter]
) -> RunWriter:
    """One process writes the run."""
    return SilentWriter(RunLayout(root), manifest) if job.ranks.rank else open_it()


def _newest(job: Job, writer: RunWriter) -> State | None:
    """The state of the newest sound checkpoint, where there is one."""

    def read() -> bytes:
        found = next(writer.sound_checkpoints(), None)
        return b"" if found is None else (found[1] / FILE).read_bytes()

    data = job.ranks.of_first(read)
    return State.read(data, job.base.device, writer.layout.checkpoints) if data else None


@dataclass(frozen=True)
class Entry:
    """A run among several, and its directory: new, or one to go on with."""

    resolved: Resolved
    root: Path


def train_together(
    entries: Sequence[Entry], *, announce: Announce | None = None, watch: Watch | None = None
) -> list[Outcome]:
    """Start runs, or go on with them, that share every forward; each is a run like any other.

    All of them must be alike in what `can_share` looks at. Those that are finished are left alone.
    A run that diverges ends as `failed`, with its error in its outcome, and the others go on. When
    runs were interrupted they go on from the newest step that all of them have saved; one that had
    diverged by then stays as it ended.
    """
    done = [RunLayout(entry.root).done.exists() for entry in entries]
    open_entries = [entry for entry, is_done in zip(entries, done, strict=True) if not is_done]
    outcomes: dict[Path, Outcome] = {}
    if open_entries:
        for entry in open_entries:
            refuse_unjudged(entry.resolved.config)
        clock = Stopwatch(runs=len(open_entries))
        first = load_job(open_entries[0].resolved, clock)
        jobs = [first, *(replace(first, resolved=e.resolved) for e in open_entries[1:])]
        with closing(first), ExitStack() as writers:
            opened, over = _open_all(jobs, [entry.root for entry in open_entries], writers)
            outcomes = {o.root: o for o in [*over, *_go(opened, announce, watch)]}
    return [outcomes.get(entry.root) or finished(entry.root) for entry in entries]


def can_share(a: RunConfig, b: RunConfig) -> bool:
    """Whether runs can go through one forward: alike but for seeds, rates, rounds and lengths."""

    def essence(config: RunConfig) -> RunConfig:
        return config.model_copy(update=dict.fromkeys(OF_ITS_OWN))

    weights = any(c.boost is not None and c.boost.merge == "weights" for c in (a, b))
    return not weights and not a.base_dropout and essence(a) == essence(b)


OF_ITS_OWN = (
    "name",
    "description",
    "optimiser",
    "boost",
    "steps",
    "epochs",
    "eval",
    "keep",
    "seed",
    "seeds",
)
"""What may differ between runs that share their forwards."""


@contextmanager
def _started(job: Job, root: Path) -> Iterator[Opened]:
    """A new run, with all that is known before its first step."""
    with job.clock("initial population"):
        theta_LP = job.initial_theta
    with job.clock("hashing the base"):
        manifest = manifest_of(job, theta_LP, root.name)
    text, diff = job.resolved.text, code_state().diff
    job.ranks.refuse_unlike(manifest.fingerprints)

    def create() -> RunWriter:
        return RunWriter.create(root, manifest, text, diff, clock=job.clock)

    with _writer(job, root, manifest, create) as writer:
        job.news.to(writer.notice)
        state = State.fresh(theta_LP)
        _keep_beginnings(job, writer)
        trail.begin(job, state, writer)
        _preflight(job, state, writer)
        yield Opened(job, state, writer)


def _reopened(job: Job, writer: RunWriter, saved: State | None) -> Opened:
    """A run as it was when that was saved; None: at its beginning."""
    job.news.to(writer.notice)
    state = State.fresh(job.initial_theta) if saved is None else saved
    writer.resume_at(state.step)
    if state.step == 0:  # it may have been killed before that was done
        _keep_beginnings(job, writer)
        trail.begin(job, state, writer)
        _preflight(job, state, writer)
    trail.go_on(state, writer)
    for notice in changes(writer.manifest, job):
        writer.notice(notice)
    return Opened(job, state, writer)


def _open_all(
    jobs: Sequence[Job], roots: Sequence[Path], writers: ExitStack
) -> tuple[list[Opened], list[Outcome]]:
    """Start what is new, and take the rest back to the newest step that all of them have.

    What has diverged before that step is over, and comes second.
    """
    reopened: dict[Path, RunWriter] = {}
    for job, root in zip(jobs, roots, strict=True):
        if RunLayout(root).manifest.exists():
            reopened[root] = writers.enter_context(RunWriter.reopen(root, clock=job.clock))
            refuse_changed(reopened[root].manifest, job)
    saved = {root: dict(writer.sound_checkpoints()) for root, writer in reopened.items()}
    diverged = {
        root: event
        for root, writer in reopened.items()
        for event in writer.manifest.events
        if event["kind"] == DIVERGED
    }
    others = _common(saved.get(root, ()) for root in roots if root not in diverged)
    past = {r for r, event in diverged.items() if others is not None and others >= event["step"]}
    common = _common(saved.get(root, ()) for root in roots if root not in past)
    opened, over = [], []
    for job, root in zip(jobs, roots, strict=True):
        if root in past:
            error = NumericError(diverged[root]["problem"])
            over.append(failed(job, max(saved[root]), reopened[root], error))
        elif root in reopened:
            found = None if common is None else saved[root][common]
            state = None if found is None else State.load(found, job.base.device)
            opened.append(_reopened(job, reopened[root], state))
        else:
            opened.append(writers.enter_context(_started(job, root)))
    return opened, over


def _common(saved: Iterable[Collection[int]]) -> int | None:
    """The newest step that is in all of them."""
    steps = [set(each) for each in saved]
    return max(set.intersection(*steps), default=None) if steps else None


def _keep_beginnings(job: Job, writer: RunWriter) -> None:
    """The adapter that the run was given, and the noise that it measured: for a replay."""
    given = job.given
    if given is not None:
        dropout, sites = job.config.adapter.dropout, job.base.sites
        writer.start(
            lambda place: write_adapter(
                given, place, base_ref=job.config.base, dropout=dropout, sites=sites
            )
        )
    if job.noise is not None:
        record = noise_record(job.magnitudes, job.layout, job.noise, job.initial_theta)
        writer.result(NOISE, record)
        notice = job.magnitudes.notice()
        if notice is not None:
            writer.notice(notice)


def _preflight(job: Job, state: State, writer: RunWriter) -> None:
    """The method's own look before the first step, recorded."""
    looked = any(event["kind"] == PREFLIGHT for event in writer.manifest.events)
    if looked or job.method.preflight is None:
        return
    (ground, *_) = job.grounds(state.stacks)
    point = job.point(state).part(ground.start, ground.stop)
    found = job.method.preflight(job.config.method, point, job.scorer(ground))
    if found is None:
        return
    if found.warning is not None:
        writer.notice(found.warning)
    writer.event(PREFLIGHT, **found.facts)  # last: says that this is done


def _only(outcomes: Sequence[Outcome]) -> Outcome:
    (outcome,) = outcomes
    if outcome.error is not None:
        raise outcome.error
    return outcome


def _go(
    opened: Sequence[Opened],
    announce: Announce | None,
    watch: Watch | None,
    ranks: Ranks = ALONE,
) -> list[Outcome]:
    if announce:
        announce(opened)
    stop = StopRequest(ranks)
    with stop.listening():
        parts = [Part(each.job, each.state, each.writer) for each in opened]
        states, errors = fit(parts, stop, watch)
        return [
            end(each.job, state, each.writer, errors.get(number))
            for number, (each, state) in enumerate(zip(opened, states, strict=True))
        ]


def _refuse_occupied(root: Path) -> None:
    """Before anything is loaded; the writer checks again when it takes the directory."""
    if RunLayout(root).manifest.exists():
        raise InputError(
            f"the directory {root} holds a run",
            hint=f"go on with it with `weft train --resume {root}`, or choose another --run-dir",
        )
