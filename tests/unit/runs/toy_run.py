"""A run of a few steps that can be killed before, after and within each thing it does to the disk.

toy_run.py complete DIR       one run in DIR, from the start or from what is there
toy_run.py resume DIR         the same for every directory in DIR
toy_run.py kill DIR           DIR/<n>: the run, killed at its n-th operation, for every n
toy_run.py hold DIR           start a run, say so, and wait
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from weft.core.files import read_json, write_atomic, write_json
from weft.core.table import ScoreTable
from weft.runs.evidence import Pass, Snapshot
from weft.runs.layout import RunLayout
from weft.runs.manifest import Manifest
from weft.runs.writer import RunWriter

STEPS = 5
OPERATIONS = ["open", "write", "close", "fsync", "replace", "mkdir", "unlink", "rmdir"]


def complete(root: Path, pause: float = 0.0) -> None:
    """The protocol as training follows it; `theta` depends on every step."""
    if RunLayout(root).done.exists():
        return
    step, theta = 0, 1.0
    if RunLayout(root).manifest.exists():
        writer = RunWriter.reopen(root)
        if found := next(writer.sound_checkpoints(), None):
            step, theta = found[0], read_json(found[1] / "state.json")["theta"]
        writer.resume_at(step)
    else:
        writer = RunWriter.create(root, Manifest(name="toy"), "steps: 5\n", "")
    with writer:
        if step == 0:
            writer.record(Snapshot(model="toy", when="use", step=0, style="weft", modules={}))
        while step < STEPS:
            step += 1
            if pause:
                print(step, flush=True)
                time.sleep(pause)
            theta = theta * 1.1 + step
            writer.step({"step": step, "theta": theta})
            writer.evidence({"step": step, "scalar": -theta})
            if step in (2, 3):  # before and after a checkpoint
                seen = Pass(model="toy", index=step - 1, phase="train", rows=1, length=1, ids="ids")
                writer.record(seen, {"ids": np.array([[step]])})
            if step % 2 == 0:
                writer.table(f"eval-{step}", ScoreTable(("toy",), ("v:1",), [[theta]], [[1]]))
                writer.save_checkpoint(step, lambda path, theta=theta: save(path, theta))
        writer.event("evaluated", step=step)
        writer.result("eval", {"theta": theta})
        writer.finish("finished")


def save(path: Path, theta: float) -> None:
    write_json(path / "state.json", {"theta": theta})
    write_atomic(path / "padding.bin", b"x" * 100)


def kill_everywhere(directory: Path) -> None:
    count = 0
    while True:
        count += 1
        child = os.fork()
        if child == 0:
            die_at(count)
            complete(directory / f"{count}")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return  # there are fewer operations than this


def die_at(count: int) -> None:
    """Kill this process at its `count`-th operation; a write is torn in the middle."""
    left = count

    def dying(name, original):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                if name == "write":
                    original(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, dying(name, getattr(os, name)))


def main(verb: str, directory: Path) -> None:
    os.fsync = lambda descriptor: None  # slow; a machine that stops needs it, a kill does not
    if verb == "complete":
        complete(directory)
    elif verb == "slowly":
        complete(directory, pause=0.01)
    elif verb == "resume":
        for root in directory.iterdir():
            complete(root)
    elif verb == "kill":
        kill_everywhere(directory)
    elif verb == "hold":
        with RunWriter.create(directory, Manifest(name="held")) as writer:
            writer.step({"step": 1})
            print("holding", flush=True)
            time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
