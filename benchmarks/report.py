"""Measurements to a table on the terminal, a dated JSON file and a page of the documentation."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.device import Device
from benchmarks.harness import Measurement, Spread
from benchmarks.limit import Limit
from weft.core.errors import InputError

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "mlx-lm")
MIB = 2**20
QUIET = 0.7
"""Load average above which something else is running."""


Rows = list[list[str]]
"""A table: a heading, then the rest."""


@dataclass(frozen=True)
class Report:
    """One benchmark's result, with what is needed to judge and repeat it."""

    benchmark: str
    device: str
    command: str
    date: str
    workload: str
    hardware: str
    versions: Mapping[str, str]
    load_at_start: float

    @property
    def label(self) -> str:
        """What it is called among results: a GPU's stand beside those of the CPU."""
        return self.benchmark if self.device == "cpu" else f"{self.benchmark}-{self.device}"

    @property
    def tables(self) -> list[Rows]:
        """What was found."""
        raise NotImplementedError

    @property
    def notes(self) -> list[str]:
        """Lines that say more about what was found."""
        return []

    @property
    def facts(self) -> list[str]:
        """Lines that say what was run, on what."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [
            self.workload,
            *self.notes,
            f"{self.hardware}; {versions}; load average at the start {self.load_at_start:.1f}",
            f"`{self.command}`, {self.date}",
        ]


@dataclass(frozen=True)
class Speeds(Report):
    """Contenders beside one of them."""

    subject: str
    measurements: tuple[Measurement, ...]
    limits: tuple[Limit, ...] = ()
    profile: Mapping[str, Mapping[str, float]] | None = None
    """Seconds of one step by kind of work, of every contender."""

    @property
    def tables(self) -> list[Rows]:
        """One row a contender; one row a kind of work."""
        (subject,) = (m for m in self.measurements if m.contender == self.subject)
        times, share = (f"{subject.what}: {word}" for word in ("speed", "memory"))
        heading = ["", "tokens/s", "s/step", "peak MiB", "process", times, share]
        speeds = [heading, *(_row(m, subject) for m in self.measurements)]
        return [speeds, _profile_rows(self.profile)] if self.profile else [speeds]

    @property
    def notes(self) -> list[str]:
        """How near everyone comes to what is possible."""
        return [limit.said_of(self.measurements) for limit in self.limits]


def origin(name: str, workload: str, load: float, device: Device) -> dict[str, Any]:
    """What every report begins with: what was run, where, when, on what."""
    return {
        "benchmark": name,
        "device": device.name,
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "workload": workload,
        "hardware": device.what,
        "versions": versions(),
        "load_at_start": load,
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that take part, where they are installed."""
    there = [name for name in PACKAGES if find_spec(name.replace("-", "_"))]
    found = {name: importlib.metadata.version(name) for name in there}
    return {"Python": platform.python_version(), **found}


def load() -> float:
    """The load average of the last minute; nan where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def show(report: Report, console: Console) -> None:
    """Print the tables and what they rest on."""
    for number, rows in enumerate(report.tables):
        show_table(rows, None if number else report.label, console)
    for line in report.facts:
        console.print(line, highlight=False, markup=False)
    if report.load_at_start > QUIET:
        console.print(
            f"the machine was busy (load average {report.load_at_start:.1f}): do not quote this",
            style="bold",
        )


def show_table(rows: Rows, title: str | None, console: Console) -> None:
    """Words on the left, numbers on the right."""
    head, *body = rows
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(head):
        table.add_column(name, justify="right" if column else "left", no_wrap=not column)
    for row in body:
        table.add_row(*row)
    console.print(table)


def save(report: Report) -> Path:
    """Write the whole report, every reading included, under its date."""
    path = RESULTS / f"{report.date[:10]}-{report.label}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n")
    return path


def publish(report: Report, page: Path) -> None:
    """Replace this report's part of a page; a GPU's, when it is new, comes after the CPU's."""
    if report.label != report.benchmark and not has_place(report.label, page):
        _, end = markers(report.benchmark)
        both = "\n".join(markers(report.label))
        check_place(report.benchmark, page)
        text = page.read_text().replace(end, f"{end}\n\nOn a GPU:\n\n{both}")
        page.write_text(text)
    facts = "\n".join(f"* {line}" for line in report.facts)
    write_part(report.label, "\n\n".join([*map(markdown, report.tables), facts]), page)


def markers(name: str) -> tuple[str, str]:
    """The lines between which a part of a page is written by this program."""
    return f"<!-- {name}: start -->", f"<!-- {name}: end -->"


def has_place(name: str, page: Path) -> bool:
    """Whether a page has the markers."""
    start, end = markers(name)
    return end in page.read_text().partition(start)[2]


def check_place(name: str, page: Path) -> None:
    """Before anything is measured that is to be written there."""
    if not has_place(name, page):
        raise InputError(
            f"{page.name} has no place for {name}",
            "write a line {} and, below it, a line {} where its tables belong".format(
                *markers(name)
            ),
        )


def write_part(name: str, text: str, page: Path) -> None:
    """Put `text` between the markers."""
    check_place(name, page)
    start, end = markers(name)
    before, _, rest = page.read_text().partition(start)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{start}\n{text}\n{end}{after}")


def markdown(rows: Rows) -> str:
    """A table: words on the left, numbers on the right."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    rule = "|---" + "|---:" * (len(rows[0]) - 1) + "|"
    return "\n".join([head, rule, *body])


def _profile_rows(profile: Mapping[str, Mapping[str, float]]) -> Rows:
    kinds = next(iter(profile.values()))
    rows = [[kind, *(f"{its[kind]:.4f}" for its in profile.values())] for kind in kinds]
    total = ["all", *(f"{sum(its.values()):.4f}" for its in profile.values())]
    return [["seconds of one step", *profile], *rows, total]


def _row(measured: Measurement, subject: Measurement) -> list[str]:
    own, whole = (m.median for m in (measured.peak_increase_bytes, measured.peak_bytes))
    row = [
        measured.what,
        _spread(measured.tokens_per_second, "{:.0f}"),
        f"{measured.step_seconds.median:.3g}",
        f"{own / MIB:,.0f}",
        f"{whole / MIB:,.0f}",
    ]
    if measured is subject:
        return [*row, "", ""]
    faster = subject.times_faster_than(measured)
    return [
        *row,
        _spread(faster, "{:.1f}" if faster.median >= 2 else "{:.2f}") + "x",
        f"{subject.peak_increase_bytes.median / own:.0%}",
    ]


def _spread(spread: Spread, form: str) -> str:
    middle, low, high = (form.format(v) for v in (spread.median, spread.low, spread.high))
    return f"{middle} ({low}-{high})"
