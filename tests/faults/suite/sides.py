"""The sides that are right: each subject with what it is given."""

from __future__ import annotations

import zlib

from tests.faults.suite.case import Patch, Side


def parts(old: str, new: str) -> Patch:
    """In the module that holds what the script is made of: nothing declares the change."""
    return Patch("parts.py", old, new)


def main(old: str, new: str) -> Patch:
    """In the script itself, mostly one of its settings."""
    return Patch("main.py", old, new)


def plan(old: str, new: str) -> Patch:
    """In the configuration of a run of Weft."""
    return Patch("plan.yaml", old, new)


def woven(code: str) -> Patch:
    """Code that a run of Weft is started behind."""
    return parts("ARGUMENTS =", f"{code}\n\nARGUMENTS =")


TESTED = {"model": "tiny", "adapter": "wide", "rows.jsonl": "mixed.jsonl"}
TRAINED = {"model": "tiny", "rows.jsonl": "train.jsonl"}

ANSWER = Side("answer", links=TESTED)
COMPLETE = Side("complete", links=TESTED)
BATCH = Side("batch", links=TESTED)
EVEN = BATCH.given(**{"rows.jsonl": "even.jsonl"})
SCORE = Side("score", links=TESTED | {"adapter": "plain"})
MERGE = Side("merge", links=TESTED | {"adapter": "plain"})
TUNE = Side("tune", links=TRAINED)
RESUME = Side(
    "tune",
    (
        main(
            "[p for p in model.parameters() if p.requires_grad]",
            "list(model.parameters())",
        ),
    ),
    TRAINED | {"adapter": "plain"},
)
LAYERS = Side("layers", links=TRAINED)

WOVEN = Side("woven", links={"model": "tiny", "rows.jsonl": "weft.jsonl"})
BOOSTED = WOVEN.patched(
    plan("rank: 8, alpha: 16", "rank: 1, alpha: 2"),
    plan("seed: 3", "boost: {steps_per_iteration: 4}\nseed: 3"),
    plan("batch_size: 4\n", "batch_size: 8\n"),
)
MEZO = WOVEN.patched(
    plan(
        "optimiser: {name: adamw, lr: 2e-3, schedule: constant}",
        "method: {name: mezo}\noptimiser: {name: sgd, lr: 1e-2, schedule: constant, clip: null}",
    )
)
POPULATION = WOVEN.patched(
    plan(
        "optimiser: {name: adamw, lr: 2e-3, schedule: constant}",
        "method: {name: es, population: 6}",
    ),
    plan("steps: 10", "steps: 4"),
)
SPOKEN = Side(
    "spoken", links={"model": "tiny", "adapter": "wide", "prompts.jsonl": "prompts.jsonl"}
)

# the second family is kept for cases that are held out
SMALL_SCORE = SCORE.given(model="small", adapter="small-plain")
SMALL_ANSWER = ANSWER.given(model="small", adapter="small-plain")
SMALL_COMPLETE = COMPLETE.given(model="small", adapter="small-plain")
SMALL_BATCH = EVEN.given(model="small", adapter="small-plain")
SMALL_TUNE = TUNE.given(model="small").patched(parts('["q_proj", "v_proj"]', '["c_attn"]'))


OTHER_LINKS = {
    "weft.jsonl": "weft-2.jsonl",
    "prompts.jsonl": "prompts-2.jsonl",
    "wide": "wide-2",
}
"""What is given as well: rows that were drawn, and an adapter that was made, with another seed."""


def varied(name: str, *sides: Side, dtype: str | None = None) -> tuple[Side, ...]:
    """Runs of Weft with a seed, rows, an adapter and a dtype that follow from a case's name.

    All sides get the same; `dtype` where the case is about one. What they differ in stays.
    """
    drawn = zlib.crc32(name.encode())
    seed, chosen = 10 + drawn % 89, dtype or ("bfloat16" if drawn % 4 == 0 else "float32")
    first, *rest = (dict(side.links) for side in sides)
    shared = {k: v for k, v in first.items() if all(other.get(k) == v for other in rest)}
    links = {k: OTHER_LINKS.get(v, v) for k, v in shared.items()} if drawn // 4 % 2 else {}
    change = {
        "woven": plan("seed: 3", f"seed: {seed}\ndtype: {chosen}"),
        "spoken": parts('"--seed=5"', f'"--seed={seed}", "--dtype={chosen}"'),
    }
    return tuple(side.patched(change[side.subject]).given(**links) for side in sides)
