"""What an experiment came to, from its files alone: curves, scores, and paired differences.

A seed is the unit: adapters of one seed saw the same rows in the same order in every arm, so
differences are taken seed by seed, and intervals are Student's over seeds. One seed has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import numpy as np

from weft.analysis.statistics import Interval, t_interval
from weft.core.files import Record
from weft.runs.experiment import (
    BASE,
    ArmRecord,
    ArmStatus,
    ExperimentReader,
    ExperimentRecord,
)
from weft.runs.reader import RunReader


@dataclass(frozen=True)
class Point:
    """One member at one step; a loss that was not measured there is None."""

    step: int
    forwards: int
    train: float | None = None  # at theta
    perturbed: float | None = None  # mean over the perturbed points, where that is what is known
    valid: float | None = None
    accuracy: float | None = None  # on the validation rows, of what the objective counts as right


@dataclass(frozen=True)
class Score:
    """What the kept adapter scores on the rows that the experiment ends on."""

    metric: float
    loss: float


@dataclass(frozen=True)
class SeedRun:
    """One adapter of an arm."""

    seed: int
    points: tuple[Point, ...]
    commits: tuple[int, ...]  # steps
    kept_step: int | None
    kept_commits: int | None  # those that the kept adapter consists of; None without boosting
    score: Score | None

    @property
    def valid(self) -> tuple[Point, ...]:
        """The points at which the validation loss was measured."""
        return tuple(point for point in self.points if point.valid is not None)


@dataclass(frozen=True)
class Spread:
    """Mean over seeds with its 95 % interval, and the standard deviation; NaN with one seed."""

    mean: Interval
    sd: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of one value a seed; None without any."""
        if not values:
            return None
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(t_interval(values), sd, len(values))


@dataclass(frozen=True)
class Measure:
    """What of a score is compared, and which way is better."""

    name: Literal["metric", "loss"]
    sign: int

    def of(self, score: Score) -> float:
        """Its value."""
        value: float = getattr(score, self.name)
        return value


METRIC = Measure("metric", +1)
LOSS = Measure("loss", -1)


@dataclass(frozen=True)
class Difference:
    """An arm minus the reference, paired by seed; a win is a seed on which the arm is better."""

    mean: Interval
    wins: int
    ties: int
    losses: int

    @property
    def seeds(self) -> int:
        """The seeds that both have."""
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class Arm:
    """One arm, as far as it came."""

    name: str
    record: ArmRecord
    status: ArmStatus
    trouble: str | None  # what was not finite
    seeds: tuple[SeedRun, ...]
    seconds_per_step: float | None
    shares_with: tuple[str, ...]

    @property
    def step(self) -> int:
        """Steps taken."""
        return max((run.points[-1].step for run in self.seeds if run.points), default=0)

    @property
    def forwards(self) -> int:
        """Forwards taken for one adapter."""
        return max((run.points[-1].forwards for run in self.seeds if run.points), default=0)

    @property
    def scores(self) -> dict[int, Score]:
        """By seed."""
        return {run.seed: run.score for run in self.seeds if run.score is not None}

    def over_seeds(self, measure: Measure) -> Spread | None:
        """A measure over seeds."""
        return Spread.of([measure.of(score) for score in self.scores.values()])

    @property
    def metric(self) -> Spread | None:
        """The task's metric over seeds."""
        return self.over_seeds(METRIC)

    @property
    def loss(self) -> Spread | None:
        """The loss over seeds."""
        return self.over_seeds(LOSS)


@dataclass(frozen=True)
class Findings:
    """An experiment, read."""

    record: ExperimentRecord
    arms: tuple[Arm, ...]
    base: Score | None
    split: str
    rows: int
    metric: str

    @property
    def of_rewards(self) -> bool | None:
        """Whether the arms' losses are minus their rewards; None where only some are."""
        kinds = {arm.record.settings["objective"]["name"] == "reward" for arm in self.arms}
        return kinds.pop() if len(kinds) == 1 else None

    @property
    def reference(self) -> Arm:
        """The arm that the others are compared with."""
        return next(arm for arm in self.arms if arm.name == self.record.reference)

    def difference(self, arm: Arm, measure: Measure = METRIC) -> Difference | None:
        """An arm minus the reference; None for the reference itself and without common seeds."""
        if arm.name == self.record.reference:
            return None
        return paired(self.reference.scores, arm.scores, measure)


def paired(
    reference: Mapping[int, Score], arm: Mapping[int, Score], measure: Measure = METRIC
) -> Difference | None:
    """Differences of a measure, seed by seed."""
    shared = [seed for seed in arm if seed in reference]
    if not shared:
        return None
    differences = [measure.of(arm[seed]) - measure.of(reference[seed]) for seed in shared]
    return Difference(
        t_interval(differences),
        wins=sum(measure.sign * difference > 0 for difference in differences),
        ties=sum(difference == 0 for difference in differences),
        losses=sum(measure.sign * difference < 0 for difference in differences),
    )


def read_experiment(root: Path) -> Findings:
    """Everything that the files of an experiment say, finished or not."""
    reader = ExperimentReader(root)
    record = reader.record
    base = reader.scores(BASE)
    return Findings(
        record,
        tuple(_arm(reader, record, name) for name in record.arms),
        base=_score(base, BASE),
        split=base.get("split", ""),
        rows=base.get("rows", 0),
        metric=base.get("metric", ""),
    )


def _arm(reader: ExperimentReader, record: ExperimentRecord, name: str) -> Arm:
    arm = record.arms[name]
    run = reader.run(arm)
    group = next((group for group in record.groups if name in group), (name,))
    steps = run.steps() if run else []
    scores = reader.scores(arm.slug)
    alone = len(arm.members) == 1
    seeds = [
        _seed_run(run, steps, scores, member, seed, alone)
        if run
        else SeedRun(seed, (), (), None, None, None)
        for member, seed in arm.members.items()
    ]
    seconds = {step["step"]: step["seconds"] for step in steps}
    return Arm(
        name,
        arm,
        reader.status(arm),
        reader.trouble(arm),
        tuple(seeds),
        median(seconds.values()) if seconds else None,
        tuple(each for each in group if each != name),
    )


def _seed_run(
    run: RunReader,
    steps: Sequence[Record],
    scores: Mapping[str, Any],
    member: str,
    seed: int,
    alone: bool,
) -> SeedRun:
    points = {0: Point(0, 0)}
    for line in steps:
        if alone or line["member"] == member:
            step = line["step"]
            points[step] = Point(
                step, line["forwards"], line.get("loss"), line.get("loss_perturbed")
            )
    judged = run.hits()
    judged = {"reward": judged["reward"]} if "reward" in judged else judged  # without its parts
    right = {step: table for tables in judged.values() for step, table in tables}
    for step, table in run.evaluations():
        if step in points:
            hits = right[step].row(member).mean if step in right else None
            points[step] = replace(points[step], valid=table.row(member).mean, accuracy=hits)
    commits = [
        event["step"]
        for event in run.manifest.events
        if event["kind"] == "commit" and event.get("member", member) == member
    ]
    name = "eval" if alone else f"eval-{member}"
    kept = run.results(name) if name in run.result_names() else {}
    if points[0].valid is None:
        del points[0]
    return SeedRun(
        seed,
        tuple(points[step] for step in sorted(points)),
        tuple(commits),
        kept.get("step"),
        kept.get("commits"),
        _score(scores, member),
    )


def _score(scores: Mapping[str, Any], member: str) -> Score | None:
    record = scores.get("members", {}).get(member)
    if record is None or record["eval_loss"] is None:  # nothing of it could be graded
        return None
    return Score(record[scores["metric"]], record["eval_loss"])


@dataclass(frozen=True)
class Line:
    """An arm's validation loss at the points that all its seeds have: mean, lowest, highest."""

    x: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    commits: tuple[tuple[float, float], ...] = ()  # (x, mean loss there), by interpolation
    diverged: bool = False


def rewards_of(line: Line) -> Line:
    """A line of losses that are minus rewards, as rewards."""
    return replace(
        line,
        mean=tuple(-value for value in line.mean),
        low=tuple(-value for value in line.high),
        high=tuple(-value for value in line.low),
        commits=tuple((x, -value) for x, value in line.commits),
    )


def line(arm: Arm, axis: str) -> Line | None:
    """The curve of an arm over `steps` or `forwards`; None without an evaluation."""
    per_seed = [{point.step: point for point in run.valid} for run in arm.seeds]
    steps = sorted(set.intersection(*map(set, per_seed))) if per_seed else []
    if not steps:
        return None
    at = [[points[step] for points in per_seed] for step in steps]
    losses = [[point.valid for point in points if point.valid is not None] for points in at]
    x = [points[0].forwards if axis == "forwards" else points[0].step for points in at]
    mean = [fmean(values) for values in losses]
    committed = sorted({step for run in arm.seeds for step in run.commits})
    commits = [
        (float(np.interp(step, steps, x)), float(np.interp(step, steps, mean)))
        for step in committed
    ]
    return Line(
        tuple(x),
        tuple(mean),
        tuple(min(values) for values in losses),
        tuple(max(values) for values in losses),
        tuple(commits),
        arm.status == "diverged",
    )
