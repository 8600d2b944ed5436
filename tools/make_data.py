"""Make the bundled task data: `python -m tools.make_data` (or `--check` to compare only)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tools.tasks import conciseness, countdown, instruct, reviews, tables
from tools.tasks.splits import SPLITS, Row

DATA = Path(__file__).resolve().parents[1] / "weft" / "assets" / "data"
TASKS: dict[str, Callable[[], dict[str, list[Row]]]] = {
    "instruct": instruct.splits,
    "tables": tables.splits,
    "reviews": reviews.splits,
    "countdown": countdown.splits,
    "countdown-easy": countdown.easy_splits,
    "conciseness": conciseness.splits,
}


def encode(rows: list[Row]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def main() -> int:
    """Write all files, or with --check report those that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="regenerate and compare")
    check = parser.parse_args().check
    wrong = 0
    for task, make in TASKS.items():
        splits = make()
        for split in SPLITS:
            path, content = DATA / task / f"{split}.jsonl", encode(splits[split])
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            elif not path.exists() or path.read_bytes() != content:
                wrong += 1
                print(f"differs: {path}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
