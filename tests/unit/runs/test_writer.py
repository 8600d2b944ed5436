from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from weft.core.errors import InputError, NumericError, WeftError
from weft.core.table import ScoreTable
from weft.runs.manifest import Manifest
from weft.runs.reader import RunReader
from weft.runs.timing import Stopwatch
from weft.runs.writer import RunWriter

MANIFEST = Manifest(name="test", config={"steps": 3})


def create(root: Path) -> RunWriter:
    return RunWriter.create(root, MANIFEST, "steps: 3\n", "diff\n")


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if entry.name != ".lock")


def save(path: Path) -> None:
    (path / "state.json").write_text("{}")


def test_a_complete_run(tmp_path):
    root = tmp_path / "runs" / "a"
    with create(root) as writer:
        writer.step({"step": 1, "loss": np.float64(2.0)})
        writer.evidence({"step": 1, "scalar": 0.5})
        writer.sample({"step": 1, "text": "hi"})
        writer.table("valid", ScoreTable(("a",), ("v:1",), [[1.0]], [[2]]))
        writer.result("eval", {"loss": 0.5})
        writer.fingerprint("outcome", "abc")
        writer.event("boosted", step=1, rank=np.int64(8))
        writer.notice("the rank was forced")
        writer.notice("the rank was forced")
        writer.finish("finished")
    reader = RunReader(root)
    assert reader.done
    assert reader.manifest.status == "finished"
    assert reader.manifest.fingerprints == {"outcome": "abc"}
    assert reader.manifest.notices == ("the rank was forced",)
    assert reader.manifest.events[0]["rank"] == 8
    assert reader.config_text() == "steps: 3\n"
    assert reader.code_diff() == "diff\n"
    assert reader.steps() == [{"step": 1, "loss": 2.0}]
    assert reader.evidence() == [{"step": 1, "scalar": 0.5}]
    assert reader.samples() == [{"step": 1, "text": "hi"}]
    assert reader.tables()["valid"].means()[0] == 0.5
    assert reader.results("eval") == {"loss": 0.5}


def test_empty_directory_is_free(tmp_path):
    with create(tmp_path):
        pass
    assert RunReader(tmp_path).manifest.status == "interrupted"


def test_directory_of_an_early_kill_is_free(tmp_path):
    (tmp_path / ".lock").write_text("1\n")
    (tmp_path / ".manifest.json.0123456789ab.tmp").write_text("{")
    with create(tmp_path):
        assert names(tmp_path) == ["code.diff", "config.yaml", "manifest.json"]


def test_occupied_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty") as caught:
        create(tmp_path)
    assert "--resume" in caught.value.hint
    assert "--run-dir" in caught.value.hint
    assert names(tmp_path) == ["thesis.txt"]
    assert not (tmp_path / ".lock").exists()


def test_file_in_the_way(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(InputError, match="is a file"):
        create(tmp_path / "run")
    with pytest.raises(InputError, match="cannot create the run directory"):
        create(tmp_path / "run" / "below")


def test_same_process_cannot_write_twice(tmp_path):
    with create(tmp_path / "run"), pytest.raises(InputError, match="another process"):
        RunWriter.reopen(tmp_path / "run")
    RunWriter.reopen(tmp_path / "run").__exit__(None, None, None)


def test_reopen_refuses_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run directory") as caught:
        RunWriter.reopen(tmp_path)
    assert "without --resume" in caught.value.hint
    assert names(tmp_path) == []


def test_reopen_refuses_a_finished_run(tmp_path):
    with create(tmp_path / "run") as writer:
        writer.finish("finished")
    with pytest.raises(InputError, match="is finished"):
        RunWriter.reopen(tmp_path / "run")
    assert RunReader(tmp_path / "run").manifest.status == "finished"


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("boom"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_exception_ends_the_run_and_frees_it(tmp_path, error, status):
    root = tmp_path / "run"
    with pytest.raises(type(error)), create(root):
        raise error
    manifest = RunReader(root).manifest
    assert manifest.status == status
    assert [event["error"] for event in manifest.events] == (
        ["RuntimeError: boom"] if status == "failed" else []
    )
    with RunWriter.reopen(root) as writer:
        assert RunReader(root).manifest.status == "running"
        writer.finish("finished")
    assert RunReader(root).done


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, None])
def test_where_time_went_is_known_however_a_run_ends(tmp_path, error):
    clock = Stopwatch()
    with (
        suppress(RuntimeError, KeyboardInterrupt),
        RunWriter.create(tmp_path / "run", MANIFEST, clock=clock) as writer,
    ):
        assert RunReader(tmp_path / "run").times() is None
        with clock("update"):
            if error:
                raise error
        writer.finish("finished")
    assert "update" in [phase.name for phase in RunReader(tmp_path / "run").times().phases]


def test_time_adds_up_over_the_processes_of_a_run(tmp_path):
    def take(writer, clock, seconds):
        with clock("update"):
            ticks[0] += seconds
        writer.save_checkpoint(1, save)
        return {phase.name: phase.seconds for phase in RunReader(root).times().phases}

    root, ticks = tmp_path / "run", [0.0]
    clock = Stopwatch(lambda: ticks[0])
    with RunWriter.create(root, MANIFEST, clock=clock) as writer:
        assert take(writer, clock, 3)["update"] == 3
        assert take(writer, clock, 2)["update"] == 5
    clock = Stopwatch(lambda: ticks[0])
    with RunWriter.reopen(root, clock=clock) as writer:
        writer.resume_at(1)
        assert take(writer, clock, 10)["update"] == 15
    found = RunReader(root).times()
    assert (found.since_step, found.processes) == (0, 2)


def test_a_run_whose_earlier_times_are_lost_says_since_when_they_count(tmp_path):
    with create(tmp_path / "run") as writer:
        writer.save_checkpoint(7, save)
    writer.layout.result("time_breakdown").unlink()
    with RunWriter.reopen(tmp_path / "run") as writer:
        writer.resume_at(7)
    assert RunReader(tmp_path / "run").times().since_step == 7


def test_newest_two_checkpoints_stay(tmp_path):
    with create(tmp_path / "run") as writer:
        for step in (8, 9, 10):
            writer.save_checkpoint(step, save)
        assert names(writer.layout.checkpoints) == ["step-10", "step-9"]
        assert next(writer.sound_checkpoints(), None) == (10, writer.layout.checkpoints / "step-10")


def test_failed_checkpoint_leaves_the_one_before(tmp_path):
    def fail(path: Path) -> None:
        save(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with create(tmp_path / "run") as writer:
        writer.save_checkpoint(1, save)
        with pytest.raises(WeftError, match=r"cannot write .*step-2: No space left"):
            writer.save_checkpoint(2, fail)
        assert names(writer.layout.checkpoints) == ["step-1"]
        assert next(writer.sound_checkpoints(), None) == (1, writer.layout.checkpoints / "step-1")


@pytest.mark.parametrize("damage", ["change", "remove", "unlist"])
def test_damaged_checkpoint_is_skipped_with_a_notice(tmp_path, damage):
    with create(tmp_path / "run") as writer:
        writer.save_checkpoint(1, save)
        writer.save_checkpoint(2, save)
        newest = writer.layout.checkpoints / "step-2"
        if damage == "change":
            (newest / "state.json").write_text("[]")
        elif damage == "remove":
            (newest / "state.json").unlink()
        else:
            (newest / "files.json").write_text("{")
        assert next(writer.sound_checkpoints(), None) == (1, writer.layout.checkpoints / "step-1")
        assert "skipped the checkpoint of step 2" in writer.manifest.notices[0]
        writer.resume_at(1)
        assert names(writer.layout.checkpoints) == ["step-1"]


def test_resume_forgets_what_came_after(tmp_path):
    with create(tmp_path / "run") as writer:
        for step in (1, 2, 3):
            writer.step({"step": step})
            writer.evidence({"step": step})
            writer.sample({"step": step})
            writer.event("boosted", step=step)
    with (tmp_path / "run" / "steps.jsonl").open("a") as file:
        file.write('{"step": 4')
    with RunWriter.reopen(tmp_path / "run") as writer:
        writer.resume_at(2)
        writer.step({"step": 3, "again": True})
    reader = RunReader(tmp_path / "run")
    assert reader.steps() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert reader.evidence() == reader.samples() == [{"step": 1}, {"step": 2}]
    events = [(event["kind"], event["step"]) for event in reader.manifest.events]
    assert events == [("boosted", 1), ("boosted", 2), ("resumed", 2)]


@pytest.mark.parametrize("reward", [0.5, 0.25])
def test_a_step_that_is_taken_again_is_compared_with_what_it_was(tmp_path, reward):
    with suppress(KeyboardInterrupt), create(tmp_path) as writer:
        writer.save_checkpoint(1, save)
        for step in (2, 3):
            writer.evidence({"step": step, "rewards": [0.5, 1.0]})
        raise KeyboardInterrupt
    with RunWriter.reopen(tmp_path) as writer:
        writer.resume_at(1)
        writer.evidence({"step": 2, "rewards": [0.5, 1.0]})
        writer.evidence({"step": 3, "rewards": [reward, 1.0]})
        writer.evidence({"step": 4, "rewards": [0.0, 0.0]})
    manifest = RunReader(tmp_path).manifest
    (event,) = [event for event in manifest.events if event["kind"] == "taken again"]
    assert (event["lines"], event["same"]) == (2, 1 + (reward == 0.5))
    said = [notice for notice in manifest.notices if "step 3 was taken again" in notice]
    assert bool(said) == (reward != 0.5)


def test_full_disk_leaves_the_manifest_readable(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(WeftError, match=r"manifest\.json: No space left"),
        create(tmp_path) as writer,
    ):
        writer.notice("before")
        monkeypatch.setattr(os, "write", full)
        writer.notice("after")
    monkeypatch.undo()
    assert RunReader(tmp_path).manifest.notices == ("before",)
    with RunWriter.reopen(tmp_path) as writer:
        writer.finish("finished")


def test_not_finite_step_is_refused_and_nothing_written(tmp_path):
    with create(tmp_path / "run") as writer:
        with pytest.raises(NumericError, match="loss"):
            writer.step({"step": 1, "loss": float("nan")})
        assert RunReader(tmp_path / "run").steps() == []


def test_names_cannot_leave_the_directory(tmp_path):
    with create(tmp_path / "run") as writer:
        for name in ("../eval", "a/b", "", ".hidden", "a:b"):
            with pytest.raises(InputError, match="cannot be a file name"):
                writer.result(name, {})
        writer.result("lr=1e-3,rank=8 seed_0@best", {})
