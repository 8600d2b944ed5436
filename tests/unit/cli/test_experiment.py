"""`weft experiment`: what is asked, printed and written."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

import weft
from weft.cli import experiment as verb


@pytest.fixture
def source(small_base, rows_dir, tmp_path):
    """A file of an experiment that takes a second, with test rows."""
    rows = shutil.copytree(rows_dir, tmp_path / "rows")
    shutil.copy(rows / "valid.jsonl", rows / "test.jsonl")
    run = {
        "base": small_base,
        "data": {"path": "rows"},
        "adapter": {"rank": 1, "alpha": 16, "targets": ["q_proj"]},
        "method": {"name": "mezo"},
        "batch_size": 2,
        "eval": {"every": 1},
    }
    arms = {"mezo": {}, "rank 2": {"adapter.rank": 2}}
    values = {"run": run, "seeds": [0, 1], "budget": {"steps": 2}, "arms": arms}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return "my.yaml"


def test_tables_go_to_stdout_and_files_to_the_directory(cli, source, tmp_path):
    said = cli("experiment", source)
    assert said.code == 0
    root = tmp_path / "runs" / "my"
    for name in ("results.csv", "curves.csv", "summary.json", "report.html", "figures/loss.png"):
        assert (root / name).is_file()
    arms, scores = (said.out.split("\n\n")[i].splitlines() for i in (0, 2))
    assert arms[0].split()[:5] == ["arm", "method", "rank", "scale", "lr"]
    assert [line[:8].strip() for line in scores] == ["arm", "base", "mezo", "rank 2"]
    assert {len(line) for line in scores} == {len(scores[0])}  # aligned
    assert "On 12 test rows. Means over 2 seeds" in said.out
    assert "rank 2: moves 4 times slower a direction" in said.err
    assert "runs/my/report.html" in said.err


def test_an_arm_is_a_run_for_every_other_command(cli, source, tmp_path):
    assert cli("experiment", source, "seeds=[0]", "--out", "out").code == 0
    assert cli("report", "out/arms/mezo").code == 0
    assert cli("eval", "out/arms/rank-2", "--split", "test").code == 0
    assert cli("compare", "out/arms/mezo", "out/arms/rank-2", "--prompts", 0).code == 0


def test_the_page_can_be_made_again(cli, source, made_experiment):
    root = made_experiment({"mezo": [0.7, 0.8], "boosted": [0.8, 0.8]})
    said = cli("report", root)
    names = ("figures/loss.png", "figures/time_breakdown.png", "report.html")
    assert said.out.split() == [f"{root}/{name}" for name in names]
    assert all((root / name).is_file() for name in names)


def test_an_experiment_is_not_trained_as_a_run(cli, source):
    for command in ("check", "train"):
        said = cli(command, source)
        assert said.code == 2 and "it is an experiment" in said.err
        assert "weft experiment my.yaml --dry-run" in said.err


def test_a_dry_run_prints_every_arm_and_writes_nothing(cli, source, tmp_path):
    said = cli("experiment", source, "budget.forwards=9", "--dry-run")
    assert said.code == 0
    assert "rank 1, alpha 16, scale 16" in said.out and "rank 2, alpha 16, scale 8" in said.out
    assert "4 steps of 2 rows" in said.out and said.out.count("4 steps of 2 rows") == 1
    assert "all arms: 1 of the budget's forwards are not used" in said.err
    assert not (tmp_path / "runs").exists()
    found = json.loads(cli("experiment", source, "--dry-run", "--json").out)
    assert found["record"]["arms"]["rank 2"]["settings"]["scale"] == 8
    assert list(found["blocks"]) == ["mezo", "rank 2"]


def test_shared_forwards_are_said_before_training(cli, source):
    said = cli("experiment", source, "arms.rank 2.adapter.rank=1", "arms.rank 2.optimiser.lr=1e-3",
               "--dry-run")  # fmt: skip
    assert "share every forward: mezo, rank 2" in said.out


def test_json_is_the_summary(cli, source, tmp_path):
    said = cli("experiment", source, "--json", "--out", "out")
    assert json.loads(said.out) == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_what_was_interrupted_says_how_to_go_on(cli, source, monkeypatch, tmp_path):
    def stop(self, progress):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verb._Display, "step", stop)
        said = cli("experiment", source, "--out", "out")
    assert said.code == 130
    assert "interrupted; resume with: weft experiment --resume out" in said.err
    refused = cli("experiment", source, "--out", "out")
    assert refused.code == 2 and "weft experiment --resume out" in refused.err
    assert cli("experiment", source, "seeds=[5]", "--resume", "out").code == 2
    assert cli("experiment", source, "--resume", "out").code == 0
    assert cli("experiment", "--resume", "out").code == 0  # it is finished: the tables again


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give the name or the YAML file of an experiment"),
        (["--resume", "nowhere"], "there is no directory nowhere"),
        (["--resume", "."], "is not the directory of an experiment"),
        (["my.yaml", "--resume", "a", "--out", "b"], "leave out --out"),
        (["my.yaml", "--resume", "a", "--dry-run"], "leave out --resume"),
        (["seeds=[1]", "--resume", "a"], "keeps its configuration"),
        (["nowhere.yaml"], "there is no experiment and no file 'nowhere.yaml'"),
        (["my.yaml", "budget.forwards=1"], "`budget.forwards` is 1, and one step of mezo takes 2"),
        (["my.yaml", "run.data.path=nowhere"], "nowhere"),
        (["my.yaml", "--out", "my.yaml"], "my.yaml is a file"),
    ],
)
def test_a_slip_is_an_answer_and_not_a_traceback(cli, source, arguments, said, tmp_path):
    found = cli("experiment", *arguments)
    assert found.code == 2 and said in found.err
    assert not (tmp_path / "runs").exists()


def test_in_python(cli, source):
    found = weft.experiment(source, ["seeds=[0]"], out="out")
    assert [arm.name for arm in found.arms] == ["mezo", "rank 2"]
    assert [list(arm.scores) for arm in found.arms] == [[0], [0]]
    again = weft.experiment(resume="out")
    assert again.base == found.base
    with pytest.raises(weft.core.errors.InputError, match="give the file of an experiment"):
        weft.experiment()
