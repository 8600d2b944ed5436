"""Runs and experiments as one HTML file: no scripts or requests, figures inside, text escaped."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from weft.analysis.statistics import Interval
from weft.core.files import write_atomic

Rows = Sequence[tuple[str, str]]
"""(label, value), in the order to show them."""

_POINTS = " pp"  # percentage points


@dataclass(frozen=True)
class Metric:
    """One measured quantity on both sides, and right minus left where both were measured."""

    label: str
    left: float | None
    right: float | None
    difference: Interval | None = None
    lower_is_better: bool | None = True  # None: neither way is better
    style: str = ".3f"  # a format specification; ".1%" shows differences in percentage points

    @property
    def verdict(self) -> str:
        """What the interval of the difference supports; empty without one."""
        if self.difference is None or math.isnan(self.difference.low):
            return ""
        if not self.difference.excludes_zero:
            return "no clear difference"
        if self.lower_is_better is None:
            return "differs"
        return "better" if (self.difference.estimate < 0) == self.lower_is_better else "worse"


@dataclass(frozen=True)
class Sample:
    """What both sides wrote for one prompt."""

    prompt: str
    left: str
    right: str
    reference: str | None = None
    notes: tuple[str, str] = ("", "")  # what is said of each


@dataclass(frozen=True)
class Figure:
    """A PNG image and the sentence below it."""

    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The image as text that a page can hold."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Table:
    """A table of words and numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True)
class Report:
    """Everything that the page shows. Empty parts are left out."""

    title: str
    headline: str
    summary: Rows = ()
    sides: tuple[str, str] = ("base", "adapter")
    metrics: Sequence[Metric] = ()
    metrics_note: str = ""
    figures: Sequence[Figure] = ()
    population: Rows = ()
    times: Table | None = None
    times_figures: Sequence[Figure] = ()
    times_note: str = ""
    checks: Rows = ()
    samples: Sequence[Sample] = ()
    notices: Sequence[str] = ()
    configuration: Rows = ()
    sites: Table | None = None
    provenance: Rows = ()
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class ExperimentReport:
    """Everything that the page of an experiment shows."""

    title: str
    headline: str
    summary: Rows
    notices: Sequence[str]
    scores: Table
    losses: Table | None
    scores_notes: Sequence[str]
    figure: Figure | None
    times: Table | None
    times_figure: Figure | None
    arms: Table
    arms_notes: Sequence[str]
    differences: Table
    configuration: Rows
    provenance: Rows
    commands: Sequence[str]


def write_report(path: Path, report: Report | ExperimentReport) -> None:
    """Write the page at `path`, whole or not at all."""
    name = "experiment" if isinstance(report, ExperimentReport) else "report"
    write_page(path, name, report)


def write_page(path: Path, template: str, report: object) -> None:
    """Write what a template makes of `report`, whole or not at all."""
    page = _templates().get_template(f"{template}.html.j2").render(report=report)
    write_atomic(path, page.encode("utf-8", errors="replace"))  # JSON may hold lone surrogates


def change_headline(what: str, left: float, right: float, style: str = ".2f") -> str:
    """One sentence such as "Held-out loss 3.10 → 1.42 (-54 %)", with a true minus sign."""
    sentence = f"{what} {number(left, style)} → {number(right, style)}"
    if left == 0 or not math.isfinite(left) or not math.isfinite(right):
        return sentence
    percent = round(100 * (right - left) / abs(left))
    change = f"{_minus(f'{percent:+d}')} %" if percent else "no change"
    return f"{sentence} ({change})"


def number(value: float | None, style: str = ".3f") -> str:
    """A number for the reader: a true minus sign, and a word where there is no number."""
    if value is None or math.isnan(value):
        return "\N{EN DASH}"
    if math.isinf(value):
        return _minus(f"{value:+}").replace("inf", "∞").removeprefix("+")
    return _minus(format(value, style)).replace("%", " %")


def difference(value: float | None, style: str = ".3f") -> str:
    """A signed number; shares differ by percentage points."""
    if value is None or not math.isfinite(value):
        return number(value)
    if style.endswith("%"):
        return _minus(format(100 * value, f"+{style[:-1]}f")) + _POINTS
    return _minus(format(value, f"+{style}"))


def interval(ends: Interval, style: str = ".3f") -> str:
    """Both ends of a difference, with its unit once."""
    low, high = difference(ends.low, style), difference(ends.high, style)
    return f"{low.removesuffix(_POINTS)} to {high}"


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("weft.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "difference": difference, "interval": interval}
    return environment
