"""The writer of a process that is not the first writes nothing, and knows the same manifest."""

from __future__ import annotations

import inspect

import pytest

from weft.runs.layout import RunLayout
from weft.runs.manifest import Manifest
from weft.runs.silent import SilentWriter
from weft.runs.writer import RunWriter


def both(tmp_path):
    manifest = Manifest(name="run", command="weft train", config={}, origins={}, fingerprints={})
    writer = RunWriter.create(tmp_path / "run", manifest)
    return writer, SilentWriter(RunLayout(tmp_path / "silent"), manifest)


def use(writer):
    """What a run does, up to a resumption."""
    writer.event("preflight", step=0, fine=True)
    writer.notice("careful")
    writer.fingerprint("first_loss", "abc")
    for step in (1, 2):
        writer.step({"step": step})
        writer.evidence({"step": step})
        writer.event("commit", step=step)
    writer.sample({"text": "x"})
    writer.result("eval", {"eval_loss": 1.0})
    writer.start(lambda place: place.mkdir())
    writer.save_checkpoint(2, lambda place: None)
    writer.resume_at(1)


def without_times(manifest):
    events = [{k: v for k, v in event.items() if k != "time"} for event in manifest.events]
    return manifest.model_dump(exclude={"events", "created"}), events


def test_it_knows_what_the_writer_knows_and_writes_nothing(tmp_path):
    writer, silent = both(tmp_path)
    with writer, silent:
        use(writer)
        use(silent)
        assert without_times(writer.manifest) == without_times(silent.manifest)
        silent.finish("finished")
    assert not (tmp_path / "silent").exists()


def test_an_error_passes_through_it(tmp_path):
    _, silent = both(tmp_path)
    with pytest.raises(RuntimeError), silent:
        raise RuntimeError
    assert not (tmp_path / "silent").exists()


def test_whatever_writes_is_silenced():
    """Of all that the writer can do, only what changes the manifest is as it was."""
    of_manifest = {"event", "notice", "fingerprint"}
    of_opening = {"create", "reopen", "sound_checkpoints"}
    public = {
        name for name, it in inspect.getmembers(RunWriter, callable) if not name.startswith("_")
    }
    assert public - set(vars(SilentWriter)) == of_manifest | of_opening
