"""`weft eval` and `weft compare`: numbers for people, the same numbers as JSON, and files."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from weft.analysis.compare import _continuable


@pytest.fixture
def mine(run, tmp_path):
    """A copy of the run, to write into."""
    return shutil.copytree(run, tmp_path / "mine")


def test_evaluating_a_run_repeats_its_own_evaluation(cli, mine):
    before = json.loads((mine / "results" / "eval.json").read_text())
    said = cli("eval", mine)
    assert said.code == 0
    assert said.out.splitlines()[0].split() == ["loss", "perplexity", "token", "accuracy"]
    assert f"{before['eval_loss']:.4f}" in said.out
    assert f"written: {mine}/results/eval.json" in said.err
    after = json.loads((mine / "results" / "eval.json").read_text())
    assert after.keys() == before.keys()
    assert after["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-6)
    assert after["kept"] == "best"


def test_another_measurement_gets_another_file(cli, mine, rows_dir):
    own = (mine / "results" / "eval.json").read_bytes()
    assert cli("eval", mine, "--split", "train", "--rows", 5).code == 0
    shutil.copy(f"{rows_dir}/valid.jsonl", "rows (1).jsonl")
    said = cli("eval", mine, "--data", "rows (1).jsonl")
    assert "valid: 12 rows" in said.err  # all of the file: nothing is held out of it
    assert "note: format prompt_completion" in said.err
    assert (mine / "results" / "eval.json").read_bytes() == own
    names = sorted(path.name for path in (mine / "results").glob("eval*"))
    assert names == ["eval-rows--1-.json", "eval-train-first-5.json", "eval.json"]


def test_another_engine_measures_the_same_and_gets_another_file(cli, mine):
    pytest.importorskip("mlx_lm", reason="the extra weft[mlx] is not installed")
    own = (mine / "results" / "eval.json").read_bytes()
    said = cli("eval", mine, "--engine", "mlx")
    assert said.code == 0 and "engine: mlx" in said.err
    assert (mine / "results" / "eval.json").read_bytes() == own
    found, local = json.loads((mine / "results" / "eval-mlx.json").read_text()), json.loads(own)
    assert found["eval_loss"] == pytest.approx(local["eval_loss"], rel=1e-5)
    assert (found["engine"]["name"], local["engine"]["name"]) == ("mlx", "local")
    assert {"mlx", "mlx-lm"} <= found["engine"].keys()


def test_an_unknown_engine_is_an_error_and_nothing_is_written(cli, mine):
    before = sorted((mine / "results").iterdir())
    said = cli("eval", mine, "--engine", "mxl")
    assert said.code == 2 and "there is no engine 'mxl'" in said.err and "`mlx`" in said.err
    assert sorted((mine / "results").iterdir()) == before


@pytest.mark.parametrize(
    "other", [{"num_examples": 5}, {"metric": "exact_match"}, {"split": "test"}]
)
def test_the_runs_own_evaluation_of_something_else_stays(cli, mine, other):
    own = mine / "results" / "eval.json"
    own.write_text(json.dumps(json.loads(own.read_text()) | other))
    before = own.read_bytes()
    said = cli("eval", mine)
    assert "results/eval-valid-12-rows-token_accuracy.json" in said.err
    assert own.read_bytes() == before
    written = json.loads((own.parent / "eval-valid-12-rows-token_accuracy.json").read_text())
    assert written["num_examples"] == 12 and "kept" not in written


def test_json_is_the_record_and_what_is_written(cli, mine, run, small_base, rows_dir):
    said = cli("eval", mine, "--json")
    record = json.loads(said.out)
    promised = {"eval_loss", "perplexity", "num_batches", "supervised_tokens", "split"}
    assert promised | {"batch_size", "max_length", record["metric"]} <= record.keys()
    data = ("--data", rows_dir, "--out", "base.json")
    on_base = json.loads(cli("eval", small_base, *data, "--json").out)
    assert json.loads((mine.parent / "base.json").read_text()) == on_base
    assert on_base["eval_loss"] > record["eval_loss"]


def test_an_adapter_in_a_run_has_the_runs_data(cli, mine):
    of_run = json.loads(cli("eval", mine, "--json").out)
    of_adapter = json.loads(cli("eval", mine / "adapter", "--json").out)
    assert of_adapter["eval_loss"] == of_run["eval_loss"]


def test_compare_shows_scores_divergences_and_texts(cli, run):
    said = cli("compare", "base", run, "--prompts", 2, "--max-tokens", 5)
    assert said.code == 0
    assert said.out.startswith("A     base\nB     ")
    for label in ("loss ", "perplexity ", "token accuracy ", "KL(A || B)", "KL(B || A)", "JS"):
        assert f"\n{label}" in said.out
    assert said.out.count("prompt  the ") == 2
    assert said.out.count("A: base") == 2


def test_compare_as_json(cli, run, tmp_path):
    said = cli("compare", run / "adapter_last", run, "--prompts", 1, "--json", "--out", "c.json")
    found = json.loads(said.out)
    assert json.loads((tmp_path / "c.json").read_text()) == found
    assert found["examples"] == 12 and len(found["samples"]) == 1
    low, high = (found["loss_difference"][end] for end in ("low", "high"))
    assert low <= found["loss_difference"]["estimate"] <= high


def test_one_row_is_too_few_for_an_interval(cli, run):
    said = cli("compare", "base", run, "--rows", 1, "--prompts", 0, "--json")
    assert json.loads(said.out)["loss_difference"]["low"] is None
    assert "nan" not in cli("compare", "base", run, "--rows", 1, "--prompts", 0).out


def test_a_prompt_that_is_empty_or_fills_the_context_is_not_continued(cli, run, tmp_path):
    rows = [{"text": "the cat sat on a mat"}] * 3
    (tmp_path / "plain.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = cli("compare", "base", run, "--data", "plain.jsonl", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["examples"] == 3 and found["samples"] == []
    assert any("3 of the first 3 prompts are not continued" in text for text in found["notices"])
    items = [SimpleNamespace(prompt_length=length) for length in (0, 5, 8, 9)]
    kept, notices = _continuable(items, 8)
    assert kept == (items[1],)
    assert [text.partition(":")[0] for text in notices] == [
        f"{count} of the first 4 prompts are not continued" for count in (1, 2)
    ]
