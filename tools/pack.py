"""Tokenise the corpus and pack it into training rows: `python -m tools.pack`.

A row starts with a document and is filled with whole documents, each followed by the
end-of-text token; what is left over at the end of a row is padding and is not trained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from tokenizers import Tokenizer

from tools.corpus.build import GENRES

ROW = 512
EOS_ID, PAD_ID = 0, 1
HELD_OUT_EVERY = 150
POOL = 64


STAGES: dict[str, dict[str, float]] = {
    # share of a genre's documents in a stage, where it is not all of them
    "one": {"echoes": 0.0, "letters": 0.0, "reviews": 0.33376},
    "two": {"stories": 0.4, "letters": 0.0, "reviews": 0.33376},
    "three": {"stories": 0.4, "scenes": 0.5, "echoes": 0.2, "letters": 0.0},
    "four": {"stories": 0.4, "scenes": 0.5, "echoes": 0.2, "sql": 0.6, "lookups": 0.6},
}


def tokens(
    folder: Path, tokenizer: Tokenizer, shares: dict[str, float]
) -> Iterator[tuple[int, list[int]]]:
    """Documents as token ids with a running number inside their genre."""
    for genre in GENRES:
        lines = (folder / f"{genre}.jsonl").read_text(encoding="utf-8").splitlines()
        lines = lines[: int(len(lines) * shares.get(genre, 1.0))]
        for start in range(0, len(lines), 5000):
            batch = [json.loads(line) for line in lines[start : start + 5000]]
            for index, encoding in enumerate(tokenizer.encode_batch_fast(batch), start):
                if len(encoding.ids) < ROW:
                    yield index, [*encoding.ids, EOS_ID]


def pack(docs: list[list[int]], rng: Random) -> np.ndarray:
    """Shuffle documents and fill rows; from a small pool the longest one that fits is taken."""
    rng.shuffle(docs)
    rows: list[list[int]] = []
    pool: list[list[int]] = []
    row: list[int] = []
    source = iter(docs)
    while True:
        while len(pool) < POOL and (doc := next(source, None)) is not None:
            pool.append(doc)
        if not pool:
            break
        room = ROW - len(row)
        if not row:
            row = list(pool.pop(0))
            continue
        fits = [i for i, doc in enumerate(pool) if len(doc) <= room]
        if not fits:
            rows.append(row + [PAD_ID] * room)
            row = []
            continue
        first = fits[0] if room > ROW // 2 else max(fits, key=lambda i: len(pool[i]))
        row += pool.pop(first)
    if row:
        rows.append(row + [PAD_ID] * (ROW - len(row)))
    rng.shuffle(rows)
    return np.asarray(rows, dtype=np.uint16)


def main() -> None:
    """Write train.npy and held_out.npy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=Path("weft/assets/tiny/tokenizer.json"))
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train: list[list[int]] = []
    held: list[list[int]] = []
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    for index, ids in tokens(args.corpus, tokenizer, STAGES[args.stage]):
        (held if index % HELD_OUT_EVERY == 0 else train).append(ids)
    for name, docs in (("train", train), ("held_out", held)):
        rows = pack(docs, Random(f"{args.seed}/pack/{name}"))
        np.save(args.out / f"{name}.npy", rows)
        real = int((rows != PAD_ID).sum())
        print(
            f"{name}: {len(docs)} documents, {len(rows)} rows, {real} tokens, "
            f"{1 - real / rows.size:.2%} padding"
        )


if __name__ == "__main__":
    main()
