"""`python -m benchmarks.growth_data FILE`: what a run does with its data up to its first batch.

The calls are those of `weft train`, in its order: splits, the largest token id, the fingerprints of
the manifest, the first batch. The process reports its seconds and the memory that it took, both
without the imports. It has no cache on disk: every start does all of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.device import CPU, Clock, Memory
from benchmarks.harness import Trace
from weft.core.files import Record
from weft.core.keys import Key
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.stream import batch_at
from weft.data.tokenizer import load_tokenizer

if TYPE_CHECKING:  # the process that starts on data needs none of it
    from benchmarks.growth_points import Setting, Steps

ROOT = Path(__file__).parent.parent
TINY, SEED = "weft/tiny", 0
SYLLABLES = ("ba", "do", "ki", "lu", "me", "no", "pa", "re", "si", "tu")
WORDS = tuple(a + b for a in SYLLABLES for b in SYLLABLES)
WORDS_OF_A_TEXT = 12


def of_rows(value: int, setting: Setting) -> Steps:
    """A start on a file of so many rows, by a process of its own."""
    rows = value // 10 if setting.quick else value

    def steps(count: int) -> Trace:
        found = []
        with written(rows) as path:
            for _ in range(count):
                command = [sys.executable, "-m", "benchmarks.growth_data", str(path)]
                done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
                found.append(json.loads(done.stdout))
        memory = Memory(
            max(each["baseline_bytes"] for each in found),
            max(each["peak_bytes"] for each in found),
        )
        return Trace(tuple(each["seconds"] for each in found), (), memory)

    return steps


@contextmanager
def written(rows: int) -> Iterator[Path]:
    """A file of so many prompts and responses; no two prompts are the same."""
    draw = Key.of(SEED).fold("texts").numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w") as file:
            for number in range(rows):
                picked = draw.integers(len(WORDS), size=2 * WORDS_OF_A_TEXT)
                words = [WORDS[i] for i in picked]
                prompt, response = words[:WORDS_OF_A_TEXT], words[WORDS_OF_A_TEXT:]
                row = {
                    "prompt": " ".join([str(number), *prompt]),
                    "completion": " " + " ".join(response),
                }
                file.write(json.dumps(row) + "\n")
        yield path


def started(path: Path) -> Record:
    """Seconds and bytes of one start."""
    load_tokenizer(TINY)("imported, and read once")
    clock = Clock(CPU)
    with CPU.memory() as memory, clock.step():
        splits = load_splits(DataConfig(path=path), load_tokenizer(TINY), limit_context=1024)
        for split in splits.values():
            assert split.largest_id and split.fingerprint and split.rows_fingerprint
        batch_at(splits["train"].examples, 0, 4, Key.of(SEED))
    return {
        "seconds": clock.seconds[0],
        "baseline_bytes": memory.baseline_bytes,
        "peak_bytes": memory.peak_bytes,
    }


if __name__ == "__main__":
    print(json.dumps(started(Path(sys.argv[1]))))
