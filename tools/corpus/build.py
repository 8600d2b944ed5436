"""Build the corpus: `python -m tools.corpus.build --out DIR`.

Document number i of a genre depends on (seed, genre, i) only, so any slice can be made again
alone. The text is not kept in the repository; `tools/corpus/recipe.json` holds its checksums.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tools.corpus import (
    answers,
    arithmetic,
    copying,
    dialogues,
    echoes,
    letters,
    lookups,
    reviews,
    scenes,
    sql,
    stories,
    world,
)

RECIPE = Path(__file__).with_name("recipe.json")
SEED = 20
GENRES: dict[str, tuple[Callable[[Random], str], float]] = {
    # genre: (maker of one document, megabytes in a full build)
    "stories": (stories.document, 28.0),
    "scenes": (scenes.document, 7.0),
    "world": (world.document, 9.0),
    "dialogues": (dialogues.document, 6.0),
    "answers": (answers.document, 6.0),
    "copying": (copying.document, 8.0),
    "lookups": (lookups.document, 8.0),
    "sql": (sql.document, 9.0),
    "arithmetic": (arithmetic.document, 9.0),
    "reviews": (reviews.document, 18.0),
    "echoes": (echoes.document, 24.0),
    "letters": (letters.document, 24.0),
}


def document(genre: str, index: int, seed: int = SEED) -> str:
    """The document with this number."""
    return GENRES[genre][0](Random(f"{seed}/{genre}/{index}"))


def documents(genre: str, size: int, seed: int = SEED) -> Iterator[str]:
    """Documents of a genre until their bytes reach the size."""
    total = index = 0
    while total < size:
        text = document(genre, index, seed)
        total += len(text.encode())
        index += 1
        yield text


def sample_digest(genre: str, count: int = 40) -> str:
    """Checksum of the first documents: a quick test that a generator has not changed."""
    texts = [document(genre, index) for index in range(count)]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def write(genre: str, out: Path, scale: float) -> dict[str, object]:
    """Write one genre as JSON strings, one document a line; returns its entry for the recipe."""
    path = out / f"{genre}.jsonl"
    count = size = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for text in documents(genre, int(GENRES[genre][1] * scale * 1e6)):
            file.write(json.dumps(text, ensure_ascii=False) + "\n")
            count += 1
            size += len(text.encode())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "documents": count,
        "text_bytes": size,
        "sha256": digest,
        "sample_sha256": sample_digest(genre),
    }


def main() -> int:
    """Build all genres; with --check compare the checksums with the recorded ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="1.0 is the full size")
    parser.add_argument("--check", action="store_true", help="compare with recipe.json")
    parser.add_argument("--record", action="store_true", help="write recipe.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = {
        "seed": SEED,
        "scale": args.scale,
        "genres": {genre: write(genre, args.out, args.scale) for genre in GENRES},
    }
    if args.record:
        RECIPE.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    if args.check and recipe != json.loads(RECIPE.read_text(encoding="utf-8")):
        print("differs from recipe.json")
        return 1
    print(json.dumps(recipe, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
