"""Measurements to a table on the terminal, a dated JSON file and a page of the documentation."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Measurement, Spread

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "mlx-lm")
MIB = 2**20
QUIET = 0.7
"""Load average above which something else is running."""


@dataclass(frozen=True)
class Report:
    """One benchmark's result, with what is needed to judge and repeat it."""

    benchmark: str
    command: str
    date: str
    workload: str
    hardware: str
    versions: Mapping[str, str]
    load_at_start: float

    @property
    def page(self) -> Path:
        """Where it is published."""
        return PAGE

    @property
    def rows(self) -> list[list[str]]:
        """The table: a heading, then the rest."""
        raise NotImplementedError

    @property
    def facts(self) -> list[str]:
        """Lines that say what was run, on what."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [
            self.workload,
            f"{self.hardware}; {versions}; load average at the start {self.load_at_start:.1f}",
            f"`{self.command}`, {self.date}",
        ]


@dataclass(frozen=True)
class Speeds(Report):
    """Contenders beside one of them."""

    subject: str
    measurements: tuple[Measurement, ...]

    @property
    def rows(self) -> list[list[str]]:
        """A heading, then one row a contender."""
        (subject,) = (m for m in self.measurements if m.contender == self.subject)
        times, share = (f"{subject.what}: {word}" for word in ("speed", "memory"))
        heading = ["", "tokens/s", "s/step", "peak MiB", "process", times, share]
        return [heading, *(_row(m, subject) for m in self.measurements)]


def hardware() -> str:
    """Processor, cores, threads, memory."""
    memory = psutil.virtual_memory().total / 2**30
    cores = psutil.cpu_count(logical=False)
    return f"{_processor()}, {cores} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB"


def versions() -> dict[str, str]:
    """Of Python and of the packages that take part."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"Python": platform.python_version(), **found}


def load() -> float:
    """The load average of the last minute; nan where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def show(report: Report, console: Console) -> None:
    """Print the table and what it rests on."""
    head, *body = report.rows
    table = Table(title=report.benchmark, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left", no_wrap=not number)
    for row in body:
        table.add_row(*row)
    console.print(table)
    for line in report.facts:
        console.print(line, highlight=False, markup=False)
    if report.load_at_start > QUIET:
        console.print(
            f"the machine was busy (load average {report.load_at_start:.1f}): do not quote this",
            style="bold",
        )


def save(report: Report) -> Path:
    """Write the whole report, every reading included, under its date."""
    path = RESULTS / f"{report.date[:10]}-{report.benchmark}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n")
    return path


def publish(report: Report) -> None:
    """Replace this benchmark's part of the documentation page, between its markers."""
    start, end = (f"<!-- {report.benchmark}: {word} -->" for word in ("start", "end"))
    text = report.page.read_text()
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    assert rest and after, f"{report.page} lost the markers of {report.benchmark}"
    head, *body = ("| " + " | ".join(row) + " |" for row in report.rows)
    rule = "|---" + "|---:" * (len(report.rows[0]) - 1) + "|"
    facts = "\n".join(f"* {line}" for line in report.facts)
    part = "\n".join([start, head, rule, *body, "", facts, end])
    report.page.write_text(before + part + after)


def now() -> str:
    """The time of a report, to the minute."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _row(measured: Measurement, subject: Measurement) -> list[str]:
    own, whole = (m.median for m in (measured.peak_increase_bytes, measured.peak_bytes))
    row = [
        measured.what,
        _spread(measured.tokens_per_second, "{:.0f}"),
        f"{measured.step_seconds.median:.2f}",
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


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines: Sequence[str] = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
