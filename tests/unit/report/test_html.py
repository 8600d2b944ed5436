"""The report is one well-formed page that escapes every text and asks the network for nothing."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from weft.analysis.statistics import Interval
from weft.report.html import (
    Figure,
    Metric,
    Report,
    Sample,
    Table,
    change_headline,
    difference,
    interval,
    number,
    write_report,
)

EVIL = """<script>alert("1")</script>&amp;'"""
REPORT = Report(
    title="a run",
    headline="Held-out loss 3.10 → 1.42",
    summary=[("base", "weft/tiny")],
    metrics=[Metric("held-out loss", 3.104, 1.421, Interval(-1.771, -1.598, -1.683))],
    metrics_note="On 512 examples.",
    figures=[Figure("Loss over the steps.", b"\x89PNG")],
    samples=[Sample(f"prompt {i}", "left text", "right text", "a reference") for i in range(6)],
    notices=["12 rows were cut"],
    configuration=[("seed", "0")],
    sites=Table(("site", "rank", "norm"), [("layers.0.q_proj", 8, 0.123456)]),
    provenance=[("weft", "0.1.0")],
    commands=["weft train a.yaml", "weft eval runs/a"],
)
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """The tags and the texts of a page; every tag must be closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture
def page_of(tmp_path):
    """Write a report; the source of its page and the parsed page."""

    def write(report):
        write_report(tmp_path / "report.html", report)
        source = (tmp_path / "report.html").read_text()
        return source, Page(source)

    return write


def test_everything_in_the_report_is_on_the_page(page_of):
    _, page = page_of(REPORT)
    for text in (
        "a run",
        "Held-out loss 3.10 → 1.42",
        "weft/tiny",
        "held-out loss",
        "3.104",
        "\N{MINUS SIGN}1.771 to \N{MINUS SIGN}1.598",
        "better",
        "On 512 examples.",
        "Loss over the steps.",
        "prompt 5",
        "a reference",
        "12 rows were cut",
        "layers.0.q_proj",
        "0.1235",
        "weft train a.yaml\nweft eval runs/a",
    ):
        assert text in page.text, text


def test_the_page_loads_nothing(page_of):
    source, page = page_of(REPORT)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    links = [attrs[k] for _, attrs in page.tags for k in ("src", "href") if k in attrs]
    assert links == ["data:image/png;base64,iVBORw=="]
    assert not re.search(r"https?:|@import|url\(", source)
    assert "default-src 'none'" in source  # a browser refuses even what a mistake would ask for


def test_every_text_is_escaped(page_of):
    rows = [(EVIL, EVIL)]
    source, page = page_of(
        Report(
            title=EVIL,
            headline=EVIL,
            summary=rows,
            sides=(EVIL, EVIL),
            metrics=[Metric(EVIL, 1.0, 2.0)],
            metrics_note=EVIL,
            figures=[Figure(EVIL, b"")],
            samples=[Sample(EVIL, EVIL, EVIL, EVIL)] * 5,
            notices=[EVIL],
            configuration=rows,
            sites=Table((EVIL,), [(EVIL,)]),
            provenance=rows,
            commands=[EVIL],
        )
    )
    assert "<script" not in source
    assert page.text.count(EVIL) == 18 + 5 * 6  # six in each sample
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img"] == [EVIL]


def test_parts_that_are_empty_are_left_out(page_of):
    _, page = page_of(Report(title="a run", headline="Nothing was measured"))
    assert {"section", "table", "ul", "dl", "figure"} & {tag for tag, _ in page.tags} == set()


def test_texts_keep_their_spaces_and_say_when_there_is_none(page_of):
    source, page = page_of(replace(REPORT, samples=[Sample("  a\n  b", "", " \n", None)]))
    assert '<div class="text" dir="auto">  a\n  b</div>' in source
    assert source.count("nothing</div>") == 2
    assert "reference" not in page.text


def test_broken_unicode_does_not_lose_the_report(page_of):
    _, page = page_of(replace(REPORT, headline="lone \ud800 surrogate"))
    assert "lone ? surrogate" in page.text


@pytest.mark.parametrize(
    ("metric", "verdict"),
    [
        (Metric("loss", 3, 2, Interval(-1.1, -0.9, -1)), "better"),
        (Metric("loss", 2, 3, Interval(0.9, 1.1, 1)), "worse"),
        (Metric("accuracy", 0, 1, Interval(0.9, 1.1, 1), lower_is_better=False), "better"),
        (Metric("accuracy", 1, 0, Interval(-1.1, -0.9, -1), lower_is_better=False), "worse"),
        (Metric("loss", 2, 3, Interval(-0.1, 2.1, 1)), "no clear difference"),
        (Metric("loss", 2, 3, Interval(math.nan, math.nan, 1)), ""),
        (Metric("seconds", None, 3), ""),
    ],
)
def test_a_verdict_says_what_the_interval_supports(metric, verdict):
    assert metric.verdict == verdict


@pytest.mark.parametrize(
    ("left", "right", "sentence"),
    [
        (3.104, 1.421, "Held-out loss 3.10 → 1.42 (-54 %)"),
        (2.0, 2.5, "Held-out loss 2.00 → 2.50 (+25 %)"),
        (2.0, 2.001, "Held-out loss 2.00 → 2.00 (no change)"),
        (0.0, 1.0, "Held-out loss 0.00 → 1.00"),
        (3.0, math.inf, "Held-out loss 3.00 → ∞"),
        (3.0, math.nan, "Held-out loss 3.00 → \N{EN DASH}"),
    ],
)
def test_the_headline_is_a_sentence(left, right, sentence):
    assert change_headline("Held-out loss", left, right) == sentence.replace(
        "(-", "(\N{MINUS SIGN}"
    )


def test_numbers_are_written_for_readers():
    assert number(-1.5, ".1f") == "\N{MINUS SIGN}1.5"
    assert number(0.683, ".1%") == "68.3 %"
    assert number(None) == number(math.nan) == "\N{EN DASH}"
    assert number(-math.inf) == "\N{MINUS SIGN}∞"
    assert difference(0.271, ".1%") == "+27.1 pp"
    assert difference(-2.0, ".2f") == "\N{MINUS SIGN}2.00"
    assert interval(Interval(-0.01, 0.06, 0.03), ".1%") == "\N{MINUS SIGN}1.0 to +6.0 pp"
