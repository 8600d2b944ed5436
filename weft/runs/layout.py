"""The names of the files in a run directory, and in the directory of an experiment: this module is
the only one that knows them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from weft.core.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+@ -]*")


@dataclass(frozen=True)
class RunLayout:
    """Paths of a run directory. Nothing is created or checked here."""

    root: Path

    @property
    def manifest(self) -> Path:
        """Status, resolved configuration, fingerprints, versions."""
        return self.root / "manifest.json"

    @property
    def config(self) -> Path:
        """The configuration as it was given."""
        return self.root / "config.yaml"

    @property
    def code_diff(self) -> Path:
        """What the code had that its commit has not."""
        return self.root / "code.diff"

    @property
    def steps(self) -> Path:
        """One line a step."""
        return self.root / "steps.jsonl"

    @property
    def evidence(self) -> Path:
        """Keys and scalars of zeroth-order directions: enough to replay theta."""
        return self.root / "evidence.jsonl"

    @property
    def samples(self) -> Path:
        """Generated text."""
        return self.root / "samples.jsonl"

    @property
    def recording(self) -> Path:
        """What of the run stands nowhere else, as events: tokens, weights, first passes."""
        return self.root / "recording"

    @property
    def lines(self) -> tuple[Path, ...]:
        """The files that grow line by line."""
        return (self.steps, self.evidence, self.samples)

    @property
    def tables(self) -> Path:
        """Directory of score tables."""
        return self.root / "tables"

    def table(self, name: str) -> Path:
        """One score table."""
        return self.tables / f"{_checked(name)}.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Directory of resumable states."""
        return self.root / "checkpoints"

    @property
    def start(self) -> Path:
        """A copy of the adapter that the run began with, where that was a given one."""
        return self.root / "start"

    @property
    def adapter(self) -> Path:
        """The adapter to use: a PEFT directory."""
        return self.root / "adapter"

    @property
    def adapter_last(self) -> Path:
        """The adapter after the last step, where `adapter` is the best one."""
        return self.root / "adapter_last"

    @property
    def results(self) -> Path:
        """Directory of evaluation results."""
        return self.root / "results"

    def result(self, name: str) -> Path:
        """One result file."""
        return self.results / f"{_checked(name)}.json"

    @property
    def figures(self) -> Path:
        """Directory of figures."""
        return self.root / "figures"

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.root / "report.html"

    @property
    def done(self) -> Path:
        """Written when the run is complete: only samples, figures and reports may come after it."""
        return self.root / "DONE.json"

    @property
    def lock(self) -> Path:
        """Held by the one process that writes the run."""
        return self.root / ".lock"

    @property
    def members(self) -> Path:
        """Directory of the members of a run that trains several adapters."""
        return self.root / "members"

    def member(self, name: str) -> RunLayout:
        """The layout of one member."""
        return RunLayout(self.members / _checked(name))


@dataclass(frozen=True)
class ExperimentLayout:
    """Paths of an experiment: several runs, which are its arms, and what they come to."""

    root: Path

    @property
    def record(self) -> Path:
        """What the experiment is: arms, what each really uses, and how far it came."""
        return self.root / "experiment.json"

    @property
    def config(self) -> Path:
        """The configuration as it was given."""
        return self.root / "config.yaml"

    def arm(self, slug: str) -> RunLayout:
        """The run of one arm."""
        return RunLayout(self.root / "arms" / _checked(slug))

    @property
    def scores(self) -> Path:
        """Directory of the arms' scores on the rows that the experiment ends on."""
        return self.root / "scores"

    def score(self, slug: str) -> Path:
        """The scores of one arm, or of the base."""
        return self.scores / f"{_checked(slug)}.json"

    @property
    def results(self) -> Path:
        """One line an arm and seed."""
        return self.root / "results.csv"

    @property
    def curves(self) -> Path:
        """One line an arm, seed and step."""
        return self.root / "curves.csv"

    @property
    def summary(self) -> Path:
        """The table of the experiment."""
        return self.root / "summary.json"

    @property
    def figures(self) -> Path:
        """Directory of figures."""
        return self.root / "figures"

    @property
    def loss_figure(self) -> Path:
        """The arms' losses, with a band over seeds."""
        return self.figures / "loss.png"

    @property
    def reward_figure(self) -> Path:
        """The arms' rewards, where that is what they train for."""
        return self.figures / "reward.png"

    @property
    def times_figure(self) -> Path:
        """Where the time of the training went."""
        return self.figures / "time_breakdown.png"

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.root / "report.html"

    @property
    def lock(self) -> Path:
        """Held by the one process that writes the experiment."""
        return self.root / ".lock"


def _checked(name: str) -> str:
    """`name`, if it is a plain file name on every system and not one of our temporary ones."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"`{name}` cannot be a file name in a run directory",
            hint="use letters, digits, spaces and _ . , = + @ -, starting with a letter or digit",
        )
    return name
