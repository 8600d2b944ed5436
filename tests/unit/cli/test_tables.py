"""`weft train tables` on a user's own file: two metrics, on every screen that shows one."""

from __future__ import annotations

import json

import pytest

TABLE = "table: t-{0}\ncolumns: the cat, on\nQ: is {0}?\nA: SELECT on FROM t-{1}"


@pytest.fixture
def questions(tmp_path):
    """A function that writes questions, each on its own table unless it is said otherwise."""

    def write(*tables):
        rows = (json.dumps({"text": TABLE.format(i, t)}) for i, t in enumerate(tables))
        path = tmp_path / "questions.jsonl"
        path.write_text("\n".join(rows) + "\n")
        return path

    return write


def test_both_metrics_are_shown_and_written(cli, questions, small_base, tmp_path):
    path = questions(*range(12))
    short = ("steps=2", "batch_size=2", "eval.every=1", f"base={small_base}")
    said = cli("train", "tables", f"data.path={path}", *short, "--run-dir", "mine")
    assert said.code == 0, said.err
    assert f"note: format tables, by the text of {path}:1\n" in said.err
    table = said.out.partition("\n\n")[0].splitlines()
    shown = ["loss", "perplexity", "exact", "match", "logical", "form"]
    assert table[0].split() == ["held-out", *shown]
    assert table[1].split()[-2:] == ["-", "-"]

    again = cli("eval", "mine")
    assert again.out.split("\n")[0].split() == [*shown[:2], "token", "accuracy", *shown[2:]]
    record = json.loads((tmp_path / "mine" / "results" / "eval.json").read_text())
    assert record["metric"] == "exact_match"
    assert (record["exact_match"], record["logical_form"]) == (0, 0)

    assert cli("compare", "base", "mine", "--out", "mine/results/compare.json").code == 0
    assert cli("report", "mine").code == 0
    page = (tmp_path / "mine" / "report.html").read_text()
    assert "exact match" in page and "logical form" in page


def test_a_question_on_another_table_stops_the_run_with_file_and_line(cli, questions, tmp_path):
    path = questions(0, 1, 1, 3)
    said = cli("train", "tables", f"data.path={path}")
    assert said.code == 2
    assert f"  {path}:3: the query reads FROM `t-1`, and the row's table is t-2\n" in said.err
    assert "`data.on_bad_row=skip`" in said.err
    assert not (tmp_path / "runs").exists()
    said = cli("check", "tables", f"data.path={path}", "data.on_bad_row=skip")
    assert said.code == 0
    assert f"train: bad rows skipped: 1, the first: {path}:3: the query reads FROM" in said.err
