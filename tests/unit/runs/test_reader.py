from __future__ import annotations

import json

import pytest

from weft.core.errors import InputError
from weft.core.table import ScoreTable
from weft.runs.manifest import Manifest
from weft.runs.reader import RunReader
from weft.runs.writer import RunWriter


@pytest.fixture
def root(tmp_path):
    with RunWriter.create(tmp_path / "run", Manifest(name="test")) as writer:
        writer.result("eval", {"loss": 1.0})
    return tmp_path / "run"


def test_fresh_run_has_nothing_yet(root):
    reader = RunReader(root)
    assert not reader.done
    assert reader.steps() == reader.evidence() == reader.samples() == []
    assert reader.tables() == {}
    assert reader.member_names() == []


def test_files_of_a_start_that_was_killed_may_be_missing(root):
    (root / "config.yaml").unlink()
    (root / "code.diff").unlink()
    assert RunReader(root).config_text() == RunReader(root).code_diff() == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "there is no run directory"),
        ("file", "is a file, not a run directory"),
        ("empty", r"is not a run directory: it has no manifest\.json"),
    ],
)
def test_other_paths_are_refused_with_a_hint(tmp_path, name, message):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        RunReader(tmp_path / name)
    assert caught.value.hint


def test_unknown_result_says_what_there_is(root):
    with pytest.raises(
        InputError, match=r"has no result `evla` \(it has: eval, time_breakdown\)"
    ) as caught:
        RunReader(root).results("evla")
    assert caught.value.hint == "did you mean `eval`?"
    with pytest.raises(InputError, match=r"has no table `valid` \(it has: none\)"):
        RunReader(root).table("valid")


def test_temporaries_of_a_writer_are_not_listed(root):
    (root / "results" / ".eval.json.0123456789ab.tmp").touch()
    (root / "results" / "eval.png").touch()
    assert RunReader(root).result_names() == ["eval", "time_breakdown"]


def test_members_are_layouts_below(root):
    reader = RunReader(root)
    member = reader.layout.member("lr=1e-3")
    member.adapter.mkdir(parents=True)
    assert reader.member_names() == ["lr=1e-3"]
    assert member.root == root / "members" / "lr=1e-3"


def test_manifest_problems_are_reported_together(root):
    (root / "manifest.json").write_text('{"schema_version": 1, "status": "fine", "extra": 1}')
    with pytest.raises(InputError) as caught:
        _ = RunReader(root).manifest
    for part in ("manifest.json is not a run manifest", "status: ", "name: ", "extra: "):
        assert part in caught.value.problem


def test_manifest_of_the_future_asks_for_an_update(root):
    (root / "manifest.json").write_text('{"schema_version": 2, "new": true}')
    with pytest.raises(InputError, match="schema version 2; this Weft reads up to 1"):
        _ = RunReader(root).manifest


def test_manifest_that_is_no_object(root):
    (root / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="is not a run manifest"):
        _ = RunReader(root).manifest


def test_manifest_keeps_the_order_of_the_block(tmp_path):
    manifest = Manifest(name="test", block={"base": "weft/tiny", "adapter": "rank 8"})
    manifest.save(tmp_path / "manifest.json")
    raw = json.loads((tmp_path / "manifest.json").read_text())
    assert list(raw)[:3] == ["schema_version", "status", "name"]
    assert list(raw["block"]) == ["base", "adapter"]
    assert Manifest.load(tmp_path / "manifest.json") == manifest


def test_evaluations_are_losses_and_what_was_right_by_step(root):
    with RunWriter.create(root.with_name("scored"), Manifest(name="scored")) as writer:
        for name in (
            "valid",
            "choice",
            *(f"{n}-step-{s}" for n in ("valid", "choice") for s in (10, 0, 5)),
        ):
            writer.table(name, ScoreTable(("adapter",), ("a", "b"), [[1, 0]], [[1, 1]]))
    reader = RunReader(root.with_name("scored"))
    assert [step for step, _ in reader.evaluations()] == [0, 5, 10]
    assert {metric: [s for s, _ in at] for metric, at in reader.hits().items()} == {
        "choice": [0, 5, 10]
    }
    assert reader.hits()["choice"][0][1].means() == [0.5]
