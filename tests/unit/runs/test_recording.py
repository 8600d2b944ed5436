"""A recording reads back as it was written, goes on where it was cut, and keeps to its budget."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from weft.core.errors import InputError
from weft.runs.evidence import Check, Happened, Notice, Pass
from weft.runs.recording import About, Recording, RecordingWriter, is_recording


def seen(index, **more):
    return Pass(model="m", index=index, phase="score", rows=1, length=2, **more)


@pytest.fixture
def root(tmp_path):
    """Three events, two of them with arrays."""
    writer = RecordingWriter(tmp_path / "r", About(source="script", name="s.py"))
    writer.add(seen(0, ids="ids"), {"ids": np.array([[1, 2]])})
    writer.add(Happened(what="merge", step=3, facts={"norm": float("nan")}))
    writer.add(seen(1, ids="ids"), {"ids": np.array([[3, 4]])})
    return tmp_path / "r"


def test_events_and_their_arrays_read_back(root):
    recording = Recording(root)
    first, merge, second = recording.events
    assert (first.index, merge.what, second.index) == (0, "merge", 1)
    assert recording.array(first.ids).tolist() == [[1, 2]]
    assert recording.array(second.ids).tolist() == [[3, 4]]
    assert recording.about.status == "recording"


def test_a_number_that_is_not_finite_reads_back(tmp_path):
    writer = RecordingWriter(tmp_path / "r", About(source="script", name="s.py"))
    writer.add(Check(name="ulp", unit="nats", values=(float("inf"), 1.0)))
    (check,) = Recording(tmp_path / "r").events
    assert check.values == (float("inf"), 1.0)


def test_a_torn_last_line_counts_for_nothing(root):
    with (root / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "notice", "te')
    assert len(Recording(root).events) == 3
    writer = RecordingWriter.reopen(root)
    writer.add(Notice(text="again"))
    assert [each.kind for each in Recording(root).events] == ["pass", "event", "pass", "notice"]


def test_what_came_after_a_moment_is_forgotten_with_its_arrays(root):
    writer = RecordingWriter.reopen(root, lambda event: event["kind"] != "event")
    assert [each.index for each in Recording(root).events] == [0]
    assert [path.stem for path in (root / "tensors").iterdir()] == ["000000"]
    writer.add(seen(7, ids="ids"), {"ids": np.array([[5, 6]])})
    recording = Recording(root)
    assert [recording.array(each.ids).tolist() for each in recording.events] == [[[1, 2]], [[5, 6]]]


def test_arrays_past_the_budget_are_left_out_and_said_so(tmp_path):
    writer = RecordingWriter(tmp_path / "r", About(source="script", name="s"), budget_mib=1)
    writer.add(seen(0, logits="at the end"), {"at the end": np.zeros((1, 2**17))})
    writer.add(seen(1, logits="at the end"), {"at the end": np.zeros((1, 2))})
    first, notice, second = Recording(tmp_path / "r").events
    assert first.logits is not None
    assert notice.text.startswith("no room for the arrays of a pass event")
    assert second.logits is None
    writer = RecordingWriter.reopen(tmp_path / "r", budget_mib=1)
    writer.add(seen(2, logits="at the end"), {"at the end": np.zeros((1, 2**16))})
    assert Recording(tmp_path / "r").events[-1].logits is None, "what is there already counts"


@pytest.mark.parametrize(
    ("field", "array", "problem"),
    [
        ("ids", np.zeros((1, 3), np.int64), r"shape \[1, 3\], not \[B, T\] with B = 1, T = 2"),
        ("ids", np.zeros((1, 2)), "real numbers, not integers"),
        ("mask", np.ones((2, 2), bool), r"shape \[2, 2\], not \[B, T\+\]"),
        ("logits", np.zeros((1, 9), complex), "no numbers of NumPy"),
        ("sketch", np.zeros((4, 1, 2, 5), np.float32), r"not \[L\+1, B-, T, P\]"),
    ],
)
def test_an_array_that_is_not_as_promised_is_left_out_and_said_so(tmp_path, field, array, problem):
    writer = RecordingWriter(tmp_path / "r", About(source="script", name="s"))
    loss = np.zeros((1, 1), np.float32)
    for index in (0, 1):
        writer.add(seen(index, nll="nll", **{field: "odd"}), {"odd": array, "nll": loss})
    notice, first, second = Recording(tmp_path / "r").events
    assert re.search(f"the {field} of a pass event .*{problem}.*left out", notice.text)
    assert [getattr(each, field) for each in (first, second)] == [None, None]
    assert Recording(tmp_path / "r").array(second.nll).tolist() == [[0]]


def test_a_recording_that_goes_on_is_sealed_again_at_its_end(root):
    assert not Recording(root).whole
    assert Recording(root).lacks("r") == (
        "r was cut off while it was recorded, after 3 events: what came after is not in it",
    )
    writer = RecordingWriter.reopen(root)
    writer.finish(status="interrupted")
    digest = Recording(root).about.digest
    assert (Recording(root).about.events, Recording(root).lacks("r")) == (3, ())
    writer = RecordingWriter.reopen(root, lambda event: event.get("index") != 1)
    assert not Recording(root).whole, "killed from here on, it is cut off again"
    writer.add(seen(1, ids="ids"), {"ids": np.array([[3, 4]])})
    writer.finish(status="finished")
    assert Recording(root).about.digest == digest
    assert len(Recording(root).events) == 3


def test_a_recording_that_did_not_note_what_is_in_it_says_so(root):
    RecordingWriter.reopen(root).finish(status="finished")
    about = json.loads((root / "recording.json").read_text())
    (root / "recording.json").write_text(json.dumps(about | {"digest": None, "events": None}))
    assert "damage would not be seen" in Recording(root).lacks("r")[0]


def test_a_directory_that_is_no_recording_is_refused(tmp_path):
    assert not is_recording(tmp_path)
    with pytest.raises(InputError, match="no recording"):
        Recording(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is there already"):
        RecordingWriter(tmp_path, About(source="script", name="s.py"))


def test_a_broken_event_is_named_by_its_line(root):
    lines = (root / "events.jsonl").read_text().splitlines()
    lines[1] = '{"kind": "event"}'
    (root / "events.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"events\.jsonl, line 2: .*what"):
        _ = Recording(root).events
