"""A run again from what it recorded: configuration, seeds, slopes and commits; no data, no forward.

Shapes: L lanes, P parameters of one adapter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from weft.core.errors import CheckFailed, InputError
from weft.core.files import Record
from weft.core.keys import Key
from weft.formats.peft import read_adapter
from weft.methods.boosting import chain
from weft.methods.estimate import Point
from weft.methods.registry import METHODS
from weft.methods.trigger import Trigger
from weft.model.adapter import Adapter, Layout
from weft.model.facts import skeleton
from weft.model.sites import choose_sites
from weft.runs.layout import RunLayout
from weft.runs.reader import RunReader
from weft.training.advance import Course, end_rounds, move
from weft.training.begin import NOISE, read_start, recorded_noise, starts
from weft.training.config import RunConfig
from weft.training.plan import total_steps, trigger_of
from weft.training.resolve import from_record
from weft.training.state import State

ROUND_ENDS = ("commit", "restart")
"""The kinds of events that end a round of boosting."""

Which = Literal["adapter", "adapter_last"]


@dataclass(frozen=True)
class Verdict:
    """One adapter of a run beside what the replay made."""

    member: str
    which: Which
    path: Path
    step: int
    commits: int
    difference: str | None  # in words; None: the same numbers, bit for bit


@dataclass(frozen=True, eq=False)
class Replay:
    """The records of a run, read and checked, and what they come to."""

    reader: RunReader
    course: Course
    trigger: Trigger | None
    evidence: tuple[tuple[Record, ...], ...]  # of each step, one line a lane
    ends: Mapping[int, Sequence[Record]]  # by step, the rounds that ended there
    initial_sha256: str

    @property
    def steps(self) -> int:
        """The steps that the records cover."""
        return len(self.evidence)

    def states(self) -> Iterator[State]:
        """The lanes before the first step and after each one: theta, optimiser and stacks.

        A round that was over by counting has ended; one that ended on a plateau is as the
        evaluation saw it.
        """
        state, seen = State.fresh(self._initial()), {}
        named = {event["of_step"] for events in self.ends.values() for event in events}
        for step in range(self.steps + 1):
            if step:
                state = move(self.course, state, self._direction(state)).state
            if not self._on_plateau:
                state = self._end_rounds(state, {step: state.theta_LP})
            if step in named:
                seen[step] = state.theta_LP
            yield state
            if self._on_plateau:
                state = self._end_rounds(state, seen)

    def check(self) -> tuple[Verdict, ...]:
        """Every adapter that the finished run wrote beside the replayed one."""
        if not self.reader.done:
            raise InputError(
                f"the run {self.reader.layout.root} has no adapter yet: it is "
                f"{self.reader.manifest.status}",
                hint=f"finish it with `weft train --resume {self.reader.layout.root}`",
            )
        wanted = self._written()
        made: dict[tuple[int, int], tuple[Adapter, int]] = {}
        for state in self.states():
            for lane in {lane for lane, _, _, step in wanted if step == state.step}:
                stack_KP, theta_P = state.stacks[lane], state.theta_LP[lane]
                adapter = chain(self.course.layout, stack_KP.cpu(), theta_P.cpu())
                made[lane, state.step] = adapter, len(stack_KP)
        verdicts = []
        for lane, which, path, step in wanted:
            adapter, commits = made[lane, step]
            told = _difference(read_adapter(path).adapter, adapter)
            name = self.course.lanes[lane].name
            verdicts.append(Verdict(name, which, path, step, commits, told))
        return tuple(verdicts)

    @cached_property
    def _on_plateau(self) -> bool:
        return self.trigger is not None and self.trigger.patience is not None

    def _initial(self) -> torch.Tensor:
        """Each lane's first adapter, made again and compared with the run's by its hash."""
        theta_LP = self.course.start_LP
        if hashlib.sha256(theta_LP.cpu().numpy().tobytes()).hexdigest() != self.initial_sha256:
            raise CheckFailed(
                f"the run {self.reader.layout.root} began with another adapter than this one",
                hint="its configuration was changed, or another version of Weft wrote it",
            )
        return theta_LP

    def _direction(self, state: State) -> torch.Tensor:
        """The direction of the next step, from its line of evidence."""
        config = self.course.config
        again = METHODS[config.method.name].replay
        assert again is not None
        keys = [Key.of(lane.seed).fold("step", state.step) for lane in self.course.lanes]
        free_LP = self.course.free(state.rounds)
        if free_LP is not None:
            free_LP = free_LP.to(state.theta_LP.device)
        noise_LP = self.course.noise_LP
        point = Point(state.theta_LP, free_LP, (), keys, noise_LP, state.step)
        return again(config.method, point, self.evidence[state.step])

    def _end_rounds(self, state: State, seen: Mapping[int, torch.Tensor]) -> State:
        """End the rounds whose end was recorded at this step; `seen` has theta by step."""
        names = [lane.name for lane in self.course.lanes]
        for event in self.ends.get(state.step, ()):
            lane, of_step = names.index(event["member"]), event["of_step"]
            its = replace(state.rounds[lane], best_P=seen[of_step][lane], best_step=of_step)
            rounds = (*state.rounds[:lane], its, *state.rounds[lane + 1 :])
            state, (ended,) = end_rounds(
                self.course, replace(state, rounds=rounds), [lane], at_best=self._on_plateau
            )
            said = {name: event.get(name) for name in ended.event()}
            if said != ended.event():
                raise CheckFailed(
                    f"{self.reader.layout.manifest} does not fit the run's own records: at step "
                    f"{state.step} it has {said}, and the replay comes to {ended.event()}"
                )
        return state

    def _written(self) -> list[tuple[int, Which, Path, int]]:
        """Every adapter of the finished run: lane, which one, where, and of which step."""
        run, lanes = self.reader.layout, self.course.lanes
        best, found = self.course.config.keep == "best", list[tuple[int, Which, Path, int]]()
        for index, lane in enumerate(lanes):
            alone = len(lanes) == 1
            place = run if alone else run.member(lane.name)
            kept = self.steps
            if best:
                kept = self.reader.kept_step(None if alone else lane.name)
                found.append((index, "adapter_last", place.adapter_last, self.steps))
            found.append((index, "adapter", place.adapter, kept))
        return sorted(found, key=lambda each: each[:2])


def replay(root: Path) -> Replay:
    """Read what a run recorded of its steps.

    Raises `InputError` for a run whose method keeps no evidence, and for evidence or commits that
    are missing, torn or of another configuration.
    """
    reader = RunReader(root)
    manifest, layout = reader.manifest, reader.layout
    config = from_record(manifest.config, manifest.origins, str(layout.manifest)).config
    if METHODS[config.method.name].replay is None:
        raise InputError(
            f"the run {root} cannot be replayed: `{config.method.name}` leaves no evidence",
            hint="only runs of methods without gradients (mezo, es) can be",
        )
    rows = manifest.data["train"]["kept"]
    trigger, steps = trigger_of(config, rows), total_steps(config, rows)
    chosen = choose_sites(skeleton(config.base), config.adapter)
    evidence = _evidence(reader, config, steps if reader.done else None)
    ends: dict[int, list[Record]] = {}
    for event in manifest.events:
        if event["kind"] in ROUND_ENDS and event["step"] <= len(evidence):
            ends.setdefault(event["step"], []).append(event)
    _check_ends(layout, config, trigger, ends, len(evidence))
    first = manifest.fingerprints["initial_adapter"]
    return Replay(reader, _course(reader, config, chosen, steps), trigger, evidence, ends, first)


def _course(reader: RunReader, config: RunConfig, chosen: Layout, steps: int) -> Course:
    """How the lanes moved, with the noise that the run recorded."""
    device, given = _device(config.device), None
    if config.start is not None:
        given = read_start(str(reader.layout.start), chosen, skeleton(config.base))
    noise_LP = None
    if METHODS[config.method.name].calibrate is not None:
        noise_LP = recorded_noise(reader.results(NOISE), chosen).to(device)
    return Course(config, chosen, steps, starts(config, chosen, given).to(device), noise_LP)


def _evidence(
    reader: RunReader, config: RunConfig, steps: int | None
) -> tuple[tuple[Record, ...], ...]:
    """The lines of each step in the order of the lanes; `steps` None: as far as they go."""
    path, lanes = reader.layout.evidence, config.lanes
    found: dict[tuple[int, str], Record] = {}
    for number, line in enumerate(reader.evidence(), 1):
        where = f"{path}, line {number}"
        step, member = line.get("step"), line.get("member", lanes[0].name)
        lane = next((each for each in lanes if each.name == member), None)
        if not isinstance(step, int) or step < 1 or lane is None:
            raise InputError(f"{where}: no step of this run: step {step!r} of {member!r}")
        if (step, member) in found:
            raise InputError(f"{where}: a second line for step {step} of {member}")
        key = Key.of(lane.seed).fold("step", step - 1).value
        if line.get("key") != key:
            raise InputError(
                f"{where}: step {step} of {member} has key {line.get('key')}, and the "
                f"configuration gives {key}",
                hint="the file belongs to another run, or the configuration was changed",
            )
        _check_scalars(line, config, f"{where}: step {step} of {member}")
        found[step, member] = line
    last = steps if steps is not None else max((step for step, _ in found), default=0)
    whole = []
    for step in range(1, last + 1):
        missing = [lane.name for lane in lanes if (step, lane.name) not in found]
        if missing and step == last and steps is None:
            break  # the run was stopped between two lines
        if missing:
            raise InputError(
                f"{path} has no line for step {step} of {', '.join(missing)}, of {last} steps",
                hint="a replay needs every step; the file was cut, torn or changed",
            )
        whole.append(tuple(found[step, lane.name] for lane in lanes))
    return tuple(whole)


def _check_scalars(line: Record, config: RunConfig, where: str) -> None:
    """One finite number for each direction or member."""
    scalars = METHODS[config.method.name].scalars
    assert scalars is not None
    name, count = scalars(config.method)
    given = line.get(name)
    numbers = given if isinstance(given, list) else []
    if len(numbers) != count or not all(
        type(number) in (float, int) and math.isfinite(number) for number in numbers
    ):
        raise InputError(f"{where} must have {count} {name} that are numbers, has {given!r}")


def _check_ends(
    layout: RunLayout,
    config: RunConfig,
    trigger: Trigger | None,
    ends: Mapping[int, Sequence[Record]],
    steps: int,
) -> None:
    """Rounds that end by counting have all ended when they should, and no others."""
    names = [lane.name for lane in config.lanes]
    for event in (event for events in ends.values() for event in events):
        of_step = event.get("of_step")
        known = event.get("member") in names and isinstance(of_step, int) and of_step >= 0
        if not known or of_step > event["step"]:
            raise InputError(
                f"{layout.manifest} has a {event['kind']} at step {event['step']} of member "
                f"{event.get('member')!r} and of step {of_step!r}, which this run cannot have"
            )
    if trigger is not None and trigger.patience is not None:
        return
    for step in range(1, steps + 1):
        due = len(config.lanes) if trigger is not None and trigger.due(step) else 0
        if len(ends.get(step, ())) != due:
            raise InputError(
                f"{layout.manifest} has {len(ends.get(step, ()))} commits at step {step}, where "
                f"the configuration asks for {due}",
                hint="the file was changed, or the run was made by another version of Weft",
            )


def _difference(written: Adapter, again: Adapter) -> str | None:
    """What tells two adapters apart, in words; None where every number has the same bits."""
    theirs, ours = written.layout.by_name, again.layout.by_name
    if theirs.keys() != ours.keys():
        odd = sorted(theirs.keys() ^ ours.keys())
        return f"other sites: {odd[0]}" + (f" and {len(odd) - 1} more" if len(odd) > 1 else "")
    for name, slot in ours.items():
        found = theirs[name]
        if (found.rank, found.scale) != (slot.rank, slot.scale):
            return (
                f"{name} has rank {found.rank} and scale {found.scale:g}, the replay rank "
                f"{slot.rank} and scale {slot.scale:g}"
            )
    apart = {
        name: max(
            float((a - b).abs().max())
            for a, b in zip(written.sites[name], again.sites[name], strict=True)
        )
        for name in ours
        if not all(map(_same_bits, written.sites[name], again.sites[name]))
    }
    if not apart:
        return None
    worst = max(apart, key=lambda name: apart[name])
    return f"{len(apart)} of {len(ours)} sites, by up to {apart[worst]:.3g} ({worst})"


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))  # 0.0 and -0.0 are two


def _device(name: str) -> torch.device:
    """Where the run's own arithmetic was done: elsewhere the last bits may be others."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            f"the run was made on {name}, which this machine has not: elsewhere the last bits of a "
            "replay may be others",
            hint="replay it on a machine that has it",
        )
    return torch.device(name)
