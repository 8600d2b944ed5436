"""A recording that was damaged is refused by what and where, or says what it lacks: never a
traceback, and never a verdict as if nothing were missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import weft
from weft.cli.main import main
from weft.runs.recording import Recording


@pytest.fixture(scope="module")
def whole(small_base, tmp_path_factory) -> Path:
    """A script that trains an adapter for two steps and lets it speak."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("damage") / "whole"
    with weft.record(root):
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(small_base)
        model = AutoModelForCausalLM.from_pretrained(small_base)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        rows = tokenizer(["the cat sat", "a dog ran"], return_tensors="pt", padding=True)
        for _ in range(2):
            model(**rows, labels=rows["input_ids"]).loss.backward()
            optimiser.step()
        asked = tokenizer("the small cat", return_tensors="pt")
        model.eval().generate(**asked, max_new_tokens=3, do_sample=False)
    return root


def lines_of(root: Path) -> list[bytes]:
    return (root / "events.jsonl").read_bytes().splitlines(keepends=True)


def place_of(root: Path, kind: str, needs: str = "") -> int:
    """The first event of a kind, by its line from 0, that names an array in the field `needs`."""
    for number, event in enumerate(Recording(root).events):
        if event.kind == kind and (not needs or getattr(event, needs)):
            return number
    raise AssertionError(kind)


def lines(change: Callable[[list[bytes]], Any]) -> Callable[[Path], None]:
    """Damage to events.jsonl, by its lines; a list takes their place."""

    def damage(root: Path) -> None:
        found = lines_of(root)
        made = change(found)
        (root / "events.jsonl").write_bytes(b"".join(made if isinstance(made, list) else found))

    return damage


def event(kind: str, /, **fields: Any) -> Callable[[Path], None]:
    """The first event of a kind says something else."""

    def damage(root: Path) -> None:
        at, found = place_of(root, kind), lines_of(root)
        found[at] = json.dumps(json.loads(found[at]) | fields).encode() + b"\n"
        (root / "events.jsonl").write_bytes(b"".join(found))

    return damage


def arrays(
    kind: str, field: str, change: Callable[[dict[str, np.ndarray], str], Any]
) -> Callable[[Path], None]:
    """Damage to the arrays of the first event of a kind that has one in `field`."""

    def damage(root: Path) -> None:
        at = place_of(root, kind, field)
        seen = Recording(root).events[at]
        value = getattr(seen, field)
        if field == "modules":
            value = next(iter(value.values())).a
        name = value if isinstance(value, str) else next(iter(value.values()))
        path = root / "tensors" / f"{at:06d}.safetensors"
        held = load_file(path)
        change(held, name.partition("/")[2])
        save_file({key: np.ascontiguousarray(array) for key, array in held.items()}, path)

    return damage


def array(kind: str, field: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Another array in the place of one."""

    def put(held: dict[str, np.ndarray], name: str) -> None:
        held[name] = change(held[name])

    return arrays(kind, field, put)


def file(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Path], None]:
    """Damage to a file, by its bytes; None deletes it."""

    def damage(root: Path) -> None:
        made = change((root / name).read_bytes())
        (root / name).unlink() if made is None else (root / name).write_bytes(made)

    return damage


def about(**fields: Any) -> Callable[[Path], None]:
    """recording.json says something else."""
    return file("recording.json", lambda data: json.dumps(json.loads(data) | fields).encode())


def tensors(change: Callable[[list[Path]], Any]) -> Callable[[Path], None]:
    """Damage to the files of arrays."""
    return lambda root: change(sorted((root / "tensors").iterdir()))


def swap_files(paths: list[Path]) -> None:
    one, other = paths[0].read_bytes(), paths[1].read_bytes()
    paths[0].write_bytes(other)
    paths[1].write_bytes(one)


def swap(found: list[bytes], one: int, other: int) -> None:
    found[one], found[other] = found[other], found[one]


def nan_at_first(values: np.ndarray) -> np.ndarray:
    made = values.astype(np.float32)
    made.flat[0] = np.nan
    return made


def one_more(values: np.ndarray) -> np.ndarray:
    made = values.copy()
    made.flat[0] += 1
    return made


SHAPES: dict[str, Callable[[Path], None]] = {
    f"{what} of {field}": array(kind, field, change)
    for kind, fields in {
        "pass": ("ids", "mask", "positions", "labels", "logits", "nll", "hidden", "sketch"),
        "adapter": ("modules",),
        "weights": ("sketches",),
    }.items()
    for field in fields
    for what, change in {
        "an axis less": lambda values: values[0],
        "one row too many": lambda values: np.concatenate([values, values]),
        "another kind of number": lambda values: (
            nan_at_first(values) if values.dtype.kind in "iub" else values.astype(np.int64)
        ),
    }.items()
}
"""What an array promises is checked by itself, without the hash of a recording that ended."""

OTHERS: dict[str, Callable[[Path], None]] = {
    "a line deleted": lines(lambda found: found.pop(3)),
    "the first line deleted": lines(lambda found: found.pop(0)),
    "the last line deleted": lines(lambda found: found.pop()),
    "a line twice": lines(lambda found: found.insert(4, found[4])),
    "two lines swapped": lines(lambda found: swap(found, 1, -2)),
    "no lines": lines(lambda found: []),
    "half a line at the end": lines(lambda found: [*found, found[-1][:20]]),
    "cut within a line": file("events.jsonl", lambda data: data[: len(data) // 2]),
    "a line of noise": lines(lambda found: found.insert(3, b"\xff\x00 noise\n")),
    "a line that is no object": lines(lambda found: found.insert(3, b"[1, 2]\n")),
    "an empty line": lines(lambda found: found.insert(3, b"\n")),
    "an event of no kind": event("pass", kind="sneeze"),
    "an event without its fields": lines(lambda found: found.insert(3, b'{"kind": "pass"}\n')),
    "another length": event("pass", length=99),
    "another number of rows": event("pass", rows=7),
    "another number of a pass": event("pass", index=5),
    "the array of another event": event("pass", ids="000001/ids"),
    "an array outside of the recording": event("pass", ids="../../x/ids"),
    "an array without a name": event("pass", ids="ids"),
    "another text": event("encoded", text="the dog"),
    "another token": event("generation", tokens=[[1, 2]]),
    "no events": file("events.jsonl", lambda data: None),
    "no about": file("recording.json", lambda data: b""),
    "half an about": file("recording.json", lambda data: data[:40]),
    "an about of something else": file("recording.json", lambda data: b"[]"),
    "a newer version": about(schema_version=2),
    "an older version": about(schema_version=0),
    "no version": about(schema_version=None),
    "an unknown status": about(status="asleep"),
    "a file of arrays deleted": tensors(lambda paths: paths[0].unlink()),
    "all arrays deleted": tensors(lambda paths: [path.unlink() for path in paths]),
    "an empty file of arrays": tensors(lambda paths: paths[0].write_bytes(b"")),
    "a cut file of arrays": tensors(lambda paths: paths[0].write_bytes(paths[0].read_bytes()[:-9])),
    "noise for arrays": tensors(lambda paths: paths[-1].write_bytes(b"noise" * 99)),
    "two files of arrays swapped": tensors(swap_files),
    "an array dropped": arrays("pass", "ids", lambda held, name: held.pop(name)),
    "one id changed": array("pass", "ids", one_more),
    "one weight changed": array("adapter", "modules", one_more),
    "one logit not finite": array("pass", "logits", nan_at_first),
    "other vocabulary": array("pass", "logits", lambda values: values[:, :-1]),
    "a narrower state": array("pass", "hidden", lambda values: values[..., :-1]),
}


def said(capsys: Any, words: list[str]) -> tuple[int, str, str]:
    code = main(words)
    read = capsys.readouterr()
    return code, read.out, read.err


def copied(whole: Path, place: Path) -> Path:
    return Path(shutil.copytree(whole, place / "damaged"))


@pytest.mark.parametrize("damage", [*SHAPES, *OTHERS])
def test_damage_is_refused_by_what_and_where(whole, tmp_path, capsys, damage):
    root = copied(whole, tmp_path)
    (SHAPES | OTHERS)[damage](root)
    for words in (["diff", str(root), str(whole)], ["doctor", str(root)]):
        code, out, err = said(capsys, words)
        assert (code, out) == (2, ""), out
        assert str(root) in err and "Traceback" not in err
        assert "hint: " in err
        assert "VERDICT" not in out


@pytest.mark.parametrize(
    "damage",
    [each for each in SHAPES if each != "one row too many of sketches"],  # outputs are not told
)
def test_what_an_array_has_to_be_holds_also_where_the_recording_was_cut_off(
    whole, tmp_path, capsys, damage
):
    root = copied(whole, tmp_path)
    about(status="recording", events=None, digest=None)(root)
    SHAPES[damage](root)
    code, _, err = said(capsys, ["doctor", str(root)])
    assert code == 2
    assert "of events.jsonl" in err and ("has shape" in err or "holds" in err)


@pytest.mark.parametrize("left", [0.2, 0.5, 0.8, 0.95, 1.0])
def test_what_was_killed_is_read_to_its_last_whole_line_and_says_so(whole, tmp_path, capsys, left):
    root = copied(whole, tmp_path)
    about(status="recording", events=None, digest=None, exit_code=None)(root)
    file("events.jsonl", lambda data: data[: int(len(data) * left)])(root)
    count = (root / "events.jsonl").read_bytes().count(b"\n")
    assert len(Recording(root).events) == count
    for words in (["diff", str(root), str(whole)], ["doctor", str(root)]):
        code, out, err = said(capsys, [*words, "--json"])
        assert code in (0, 1) and not err
        told = json.loads(out)
        assert any(
            f"was cut off while it was recorded, after {count} events" in each
            for each in told["not_checked"]
        )
        assert told.get("verdict") != "same"


def test_the_whole_one_is_what_it_was(whole, capsys, tmp_path):
    root = copied(whole, tmp_path)
    code, out, _ = said(capsys, ["diff", str(root), str(whole), "--json"])
    assert (code, json.loads(out)["verdict"]) == (0, "same")
    assert said(capsys, ["doctor", str(root)])[0] == 0
