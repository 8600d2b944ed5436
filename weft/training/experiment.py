"""An experiment from start to end: plan its arms, train those together that can be, score them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from weft.core.errors import InputError, NumericError
from weft.core.files import free_directory, write_atomic, write_json
from weft.data.dataset import available_splits
from weft.data.split import Split
from weft.engines.local import LocalEngine
from weft.engines.reward import Reward
from weft.model.bank import Bank
from weft.model.facts import skeleton
from weft.model.sites import choose_sites
from weft.runs.experiment import (
    BASE,
    DIVERGED,
    ArmRecord,
    ExperimentReader,
    ExperimentRecord,
    slug_of,
)
from weft.runs.layout import ExperimentLayout
from weft.runs.writer import refuse_occupied, take_lock
from weft.training.block import configuration_block
from weft.training.completions import with_kl
from weft.training.config import RunConfig
from weft.training.draft import pairs
from weft.training.evaluate import evaluate
from weft.training.experiment_config import Design, remarks
from weft.training.fit import Watch
from weft.training.objective import judging
from weft.training.plan import load_data
from weft.training.refs import load_split, open_subject
from weft.training.resolve import Resolved, from_record
from weft.training.train import Announce, Entry, can_share, train_together


@dataclass(frozen=True)
class Plan:
    """What an experiment will do: its record before the first step, and its arms."""

    record: ExperimentRecord
    arms: dict[str, Resolved]


def _nobody(*facts: Any) -> None:
    """Is told, and does nothing."""


@dataclass(frozen=True)
class Watchers:
    """Who is told how an experiment goes."""

    group: Callable[[Sequence[str], int, int], None] = _nobody
    """The names of the arms that train now, which group they are, and of how many."""
    announce: Announce = _nobody
    step: Watch = _nobody
    scoring: Callable[[str, int, int], None] = _nobody
    """The arm that is scored, rows done, and rows in all."""
    notice: Callable[[str], None] = _nobody


NOBODY = Watchers()
SHOWN = 8
"""Changed keys that an error lists."""


def plan(design: Design) -> Plan:
    """Give every arm its steps, and find out which arms share their forwards.

    Raises `InputError` where the budget is less than one step of an arm.
    """
    budget = design.config.budget
    costs = {name: forwards_per_step(config) for name, config in _any_length(design).items()}
    if budget.forwards is not None:
        dearest = max(costs, key=costs.__getitem__)
        if costs[dearest] > budget.forwards:
            raise InputError(
                f"{design.source}: `budget.forwards` is {budget.forwards}, and one step of "
                f"{dearest} takes {costs[dearest]}",
                hint=f"give at least {costs[dearest]}",
            )
        steps = {name: budget.forwards // cost for name, cost in costs.items()}
    else:
        assert budget.steps is not None
        steps = dict.fromkeys(costs, budget.steps)
    arms = design.arms(steps)
    reference = arms[design.reference].config
    records: dict[str, ArmRecord] = {}
    for name, resolved in arms.items():
        config = resolved.config
        left = 0 if budget.forwards is None else budget.forwards - steps[name] * costs[name]
        records[name] = ArmRecord(
            slug=slug_of(name, [record.slug for record in records.values()]),
            config=config.model_dump(mode="json"),
            origins=resolved.origins,
            members={lane.name: lane.seed for lane in config.lanes},
            steps=steps[name],
            forwards_per_step=costs[name],
            unused_forwards=left,
            settings=_settings(config),
            notices=(*resolved.notices, *_remainder(left, costs[name])),
            remarks=() if name == design.reference else remarks(config, reference),
        )
    record = ExperimentRecord(
        name=design.name,
        description=design.config.description,
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        text=design.text,
        seeds=design.config.seeds,
        budget=budget.record(),
        reference=design.reference,
        x=design.config.x,
        arms=records,
        groups=_groups({name: resolved.config for name, resolved in arms.items()}),
    )
    return Plan(record, arms)


def blocks(planned: Plan) -> dict[str, dict[str, str]]:
    """The configuration block of every arm: what it really uses. Loads data, and no weights."""
    splits: dict[str, dict[str, Split]] = {}
    found = {}
    for name, resolved in planned.arms.items():
        config = resolved.config
        rows = f"{config.base} {config.data} {config.objective}"
        if rows not in splits:
            splits[rows] = load_data(config)
        layout = choose_sites(skeleton(config.base), config.adapter)
        found[name] = configuration_block(resolved, layout, splits[rows])
    return found


def start(planned: Plan, root: Path | None = None, watchers: Watchers = NOBODY) -> Path:
    """Run an experiment in `root` (default: a new directory below `runs/`); returns the directory.

    After Ctrl-C the record says `interrupted`.
    """
    root = root or free_directory(Path("runs"), planned.record.name)
    layout = ExperimentLayout(root)
    _refuse_occupied(root)
    lock = take_lock(layout, "experiment", "--out")
    try:
        planned.record.save(layout.record)
        write_atomic(layout.config, planned.record.text)
        _go(ExperimentReader(root), planned.arms, watchers)
    finally:
        lock.release()
    return root


def resume(root: Path, planned: Plan | None = None, watchers: Watchers = NOBODY) -> Path:
    """Go on with an experiment: arms that are over stay, others go on from their checkpoints.

    `planned` is what the configuration says now, where it was given again: it must be the same.
    """
    reader = ExperimentReader(root)
    record = reader.record
    _refuse_changed(reader, record, planned)
    arms = {
        name: from_record(arm.config, arm.origins, str(reader.layout.record))
        for name, arm in record.arms.items()
    }
    lock = take_lock(reader.layout, "experiment", "--out")
    try:
        _go(reader, arms, watchers)
    finally:
        lock.release()
    return root


def forwards_per_step(config: RunConfig) -> int:
    """Passes of one batch through the base in a step; a backward pass counts as one."""
    return config.method.forwards


def _any_length(design: Design) -> dict[str, RunConfig]:
    """The arms, whose length does not matter yet."""
    arms = design.arms(dict.fromkeys(design.drafts, 1))
    return {name: resolved.config for name, resolved in arms.items()}


def _remainder(left: int, cost: int) -> list[str]:
    if not left:
        return []
    return [f"{left} of the budget's forwards are not used: a step takes {cost}"]


def _settings(config: RunConfig) -> dict[str, Any]:
    """What the tables show of an arm."""
    return {
        "method": config.method.name,
        "optimiser": config.optimiser.name,
        "lr": config.optimiser.lrs[0],
        "rank": config.adapter.rank,
        "alpha": config.adapter.effective_alpha,
        "scale": config.adapter.effective_scale,
        # None: all there are
        "batch_size": getattr(config.method, "samples_per_generation", config.batch_size),
        "objective": config.objective.model_dump(mode="json"),
    }


def _groups(arms: dict[str, RunConfig]) -> tuple[tuple[str, ...], ...]:
    """Arms that can all share a forward, in the order of the first of each."""
    groups: list[list[str]] = []
    for name, config in arms.items():
        for group in groups:
            if all(can_share(arms[other], config) for other in group):
                group.append(name)
                break
        else:
            groups.append([name])
    return tuple(map(tuple, groups))


def _go(reader: ExperimentReader, arms: dict[str, Resolved], watchers: Watchers) -> None:
    """Train and score whatever is not yet, and record how it ended."""
    record = reader.record
    status = "failed"
    try:
        record.model_copy(update={"status": "running"}).save(reader.layout.record)
        done = _train(reader, arms, watchers)
        if done:
            _score(reader, arms, watchers)
        status = "finished" if done else "interrupted"
    except KeyboardInterrupt:
        status = "interrupted"  # nothing is lost: what is not whole is done again
    finally:
        record.model_copy(update={"status": status}).save(reader.layout.record)


def _train(reader: ExperimentReader, arms: dict[str, Resolved], watchers: Watchers) -> bool:
    """Train the groups one after the other; False when somebody asked to stop."""
    layout, record = reader.layout, reader.record
    for number, group in enumerate(record.groups):
        due = [
            name
            for name in group
            if not reader.trained(record.arms[name]) and not reader.trouble(record.arms[name])
        ]
        if not due:
            continue
        watchers.group(due, number, len(record.groups))
        slugs = [record.arms[name].slug for name in due]
        entries = [
            Entry(arms[name], layout.arm(slug).root) for name, slug in zip(due, slugs, strict=True)
        ]
        outcomes = train_together(entries, announce=watchers.announce, watch=watchers.step)
        for name, slug, outcome in zip(due, slugs, outcomes, strict=True):
            if outcome.error is not None:
                _record_divergence(layout.score(slug), name, outcome.error, watchers)
        if not all(outcome.finished or outcome.error for outcome in outcomes):
            return False
    return True


def _score(reader: ExperimentReader, arms: dict[str, Resolved], watchers: Watchers) -> None:
    """Score the kept adapters of the arms, and what the reference starts from: an adapter, or the
    untouched base.
    """
    layout, record = reader.layout, reader.record
    due = {
        name: arm.slug
        for name, arm in record.arms.items()
        if reader.trained(arm) and not layout.score(arm.slug).is_file()
    }
    jobs = [(name, layout.score(slug), str(layout.arm(slug).root)) for name, slug in due.items()]
    if not layout.score(BASE).is_file():
        reference = record.arms[record.reference]
        given = arms[record.reference].config.start is not None
        start = str(layout.arm(reference.slug).start) if given else BASE
        jobs.insert(0, (BASE, layout.score(BASE), start))
    for name, path, ref in jobs:
        config = arms[record.reference if name == BASE else name].config
        members = (BASE,) if name == BASE else tuple(record.arms[name].members)
        try:
            write_json(path, scores(ref, members, config, partial(watchers.scoring, name)))
        except NumericError as error:
            _record_divergence(path, name, error, watchers)


def scores(
    ref: str, members: Sequence[str], config: RunConfig, watch: Callable[[int, int], None]
) -> dict[str, Any]:
    """What the adapters of a run, or `base`, score on the test rows; validation rows without.

    The adapters of a run have the names of its members; a single one has that of `ref`.
    """
    subject = open_subject([ref], base=config.base, dtype=config.dtype, device=config.device)
    name = "test" if "test" in available_splits(config.data) else "valid"
    split = load_split(subject, config.data, name, config.objective)
    adapters = list(subject.adapters.values())
    named = subject.adapters if len(members) > 1 else dict(zip(members, adapters, strict=True))
    with judging(config, split) as (objective, _):
        found = evaluate(
            LocalEngine(subject.local.base, config.members_per_forward, config.micro_batch_size),
            Bank.of({member: named[member] for member in members}),
            split,
            batch_size=config.eval.batch_size,
            objective=objective,
            watch=watch,
        )
    if isinstance(objective, Reward):
        found = with_kl(found, subject.local, named, split)
    return {
        "split": name,
        "rows": len(split.items),
        "metric": found.metric,
        "members": {member: found.record(member) for member in members},
    }


def _record_divergence(path: Path, name: str, error: NumericError, watchers: Watchers) -> None:
    write_json(path, {DIVERGED: error.problem})
    watchers.notice(f"{name} diverged, and the others go on: {error.problem}")


def _refuse_changed(reader: ExperimentReader, record: ExperimentRecord, now: Plan | None) -> None:
    """An experiment goes on as it began: its stored file, and the one given, must say the same."""
    layout = reader.layout
    if not layout.config.exists():  # the process was killed right at the start
        write_atomic(layout.config, record.text)
    if layout.config.read_text("utf-8") != record.text:
        raise InputError(
            f"{layout.config} is not as it was when the experiment started",
            hint="put it back, or start a new experiment with it",
        )
    if now is None:
        return
    before, after = (_essence(each) for each in (record, now.record))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if changed:
        lines = [f"  {key}: {before.get(key)} became {after.get(key)}" for key in changed[:SHOWN]]
        more = [f"  and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
        raise InputError(
            f"the configuration is not the one with which {layout.root} started:\n"
            + "\n".join([*lines, *more]),
            hint=f"go on with `weft experiment --resume {layout.root}`, or start a new experiment",
        )


def _essence(record: ExperimentRecord) -> dict[str, Any]:
    """What must not change, by dotted key."""
    facts: dict[str, Any] = {
        "seeds": list(record.seeds),
        "reference": record.reference,
        "x": record.x,
        "arms": list(record.arms),
    }
    for name, arm in record.arms.items():
        facts |= dict(pairs(arm.config, f"arms.{name}"))
    return facts


def _refuse_occupied(root: Path) -> None:
    layout = ExperimentLayout(root)
    if layout.record.exists():
        raise InputError(
            f"the directory {root} holds an experiment",
            hint=f"go on with it with `weft experiment --resume {root}`, or choose another --out",
        )
    refuse_occupied(root, "--out")
