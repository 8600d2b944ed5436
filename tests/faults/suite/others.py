"""Pairs that are not one fault: benign ones, two faults at once, and faults that cancel."""

from __future__ import annotations

from dataclasses import replace

from tests.faults.suite.case import Case, Patch, Side
from tests.faults.suite.faults import (
    ANSWERS,
    CARRIED,
    FRESH,
    HALF_PLACES,
    HELD_OUT,
    LOADED,
    NO_PLACES,
    OPEN,
    READ,
    ROTATED,
    SPARE,
    TEXT,
    TURN,
    every_scaling,
    weaker,
)
from tests.faults.suite.sides import (
    ANSWER,
    BATCH,
    COMPLETE,
    LAYERS,
    MERGE,
    SCORE,
    SMALL_ANSWER,
    SMALL_BATCH,
    SMALL_SCORE,
    SMALL_TUNE,
    SPOKEN,
    TUNE,
    WOVEN,
    main,
    parts,
    plan,
    woven,
)


def benign(what: str, a: Side, b: Side, *, held_out: bool = False, tolerance: float = 1e-4) -> Case:
    return Case(
        f"benign {a.subject} {what}", "benign", a, b, held_out=held_out, tolerance=tolerance
    )


def cancelling(what: str, a: Side, b: Side, *, held_out: bool = False) -> Case:
    return Case(f"cancel {a.subject} {what}", "cancel", a, b, held_out=held_out)


def double(one: str, other: str, a: Side, *b: Patch, **links: str) -> Case:
    """Two faults at once; their order is that of the ladder."""
    held_out = bool({one, other} & HELD_OUT)
    two = (ANSWERS[one], replace(ANSWERS[other], place=None, steps=None))
    b_side = a.patched(*b).given(**links)
    return Case(f"{one}+{other} {a.subject}", "double", a, b_side, two, "", held_out)


GREEDY = main("TEMPERATURE = 0.7", "TEMPERATURE = 0")
EAGER = parts("dtype=torch.float32)", 'dtype=torch.float32, attn_implementation="eager")')
MERGED = parts(LOADED, LOADED + "    model = model.merge_and_unload()\n")
BF16 = parts("dtype=torch.float32", "dtype=torch.bfloat16")
RECOMPUTED = (
    parts(CARRIED, "        cache = None\n"),
    parts(
        "        given = torch.tensor([[token]])\n",
        "        given = torch.cat([given, torch.tensor([[token]])], -1)\n        seen = 0\n",
    ),
)
CENTRED = parts(
    LOADED,
    "    head = torch.nn.Linear(*reversed(model.lm_head.weight.shape), bias=False)\n"
    "    with torch.no_grad():\n"
    "        head.weight.copy_(model.lm_head.weight - model.lm_head.weight.mean(0))\n"
    "    model.lm_head = head\n" + LOADED,
)
OTHER_NAMES = (
    main(
        "SEED = 7\nTOKENS = 40\nTEMPERATURE = 0.7\nTOP_P = 0.95\n",
        "RANDOM_STATE = 7\nMAX_NEW = 40\nHEAT = 0.7\nNUCLEUS = 0.95\n",
    ),
    main("manual_seed(SEED)", "manual_seed(RANDOM_STATE)"),
    main("TOKENS, TEMPERATURE, TOP_P", "MAX_NEW, HEAT, NUCLEUS"),
)

BENIGN = (
    benign(
        "rows of a batch in another order",
        BATCH,
        BATCH.patched(
            main("group = rows[start : start + BATCH]", "group = rows[start : start + BATCH][::-1]")
        ),
    ),
    benign("batches of 2, not of 3", BATCH, BATCH.patched(main("BATCH = 3", "BATCH = 2"))),
    benign("more padding", BATCH, BATCH.patched(SPARE)),
    benign("eager for sdpa", SCORE, SCORE.patched(EAGER)),
    benign("merged for unmerged", SCORE, SCORE.patched(MERGED)),
    benign("other factors", SCORE.given(adapter="wide"), SCORE.given(adapter="wide-gauge")),
    benign("saved again", ANSWER, ANSWER.given(adapter="wide-reversed")),
    benign("other names of settings", ANSWER, ANSWER.patched(*OTHER_NAMES)),
    benign("a centred head", SCORE, SCORE.patched(CENTRED)),
    benign(
        "two threads, bf16",
        SCORE.patched(BF16),
        SCORE.patched(BF16).where(OMP_NUM_THREADS="2"),
        tolerance=0.02,
    ),
    benign("recomputed for cached", ANSWER.patched(GREEDY), ANSWER.patched(GREEDY, *RECOMPUTED)),
    benign(
        "another seed, greedy",
        ANSWER.patched(GREEDY),
        ANSWER.patched(GREEDY, main("SEED = 7", "SEED = 8")),
    ),
    benign(
        "a longer limit that nothing reaches",
        ANSWER,
        ANSWER.patched(main("TOKENS = 40", "TOKENS = 60")),
    ),
    benign("micro-batches of 4, not of 2", TUNE, TUNE.patched(main("MICRO = 2", "MICRO = 4"))),
    benign("the base's file in bf16", COMPLETE, COMPLETE.given(model="bundled")),
    benign("the same again", COMPLETE, COMPLETE.where(LC_TIME="C")),
    benign("the same again", LAYERS, LAYERS.where(LC_TIME="C")),
    benign(
        "rows a forward", WOVEN, WOVEN.patched(plan("micro_batch_size: 2", "micro_batch_size: 4"))
    ),
    benign(
        "order and names in a configuration",
        WOVEN,
        WOVEN.patched(
            plan("base: model\n", ""),
            plan("seed: 3", "description: once more\nname: again\nseed: 3\nbase: model"),
        ),
    ),
    benign(
        "prompts one by one",
        SPOKEN,
        SPOKEN.patched(parts('"--seed=5"', '"--batch-size=1", "--seed=5"')),
    ),
    benign(
        "merged in bf16 and survived",
        MERGE.patched(
            parts("    model.merge_and_unload()", "    model.merge_and_unload().to(torch.bfloat16)")
        ),
        MERGE.patched(parts("= torch.float32\n", "= torch.bfloat16\n")),
        held_out=True,
        tolerance=0.02,
    ),
    benign("eager for sdpa, other family", SMALL_SCORE, SMALL_SCORE.patched(EAGER), held_out=True),
    benign(
        "batches of 2, other family",
        SMALL_BATCH,
        SMALL_BATCH.patched(main("BATCH = 3", "BATCH = 2")),
        held_out=True,
    ),
    benign(
        "recomputed, other family",
        SMALL_ANSWER.patched(GREEDY),
        SMALL_ANSWER.patched(GREEDY, *RECOMPUTED),
        held_out=True,
    ),
    benign(
        "micro-batches of 4, other family",
        SMALL_TUNE,
        SMALL_TUNE.patched(main("MICRO = 2", "MICRO = 4")),
        held_out=True,
    ),
)

HALVED = (
    parts(") / count\n", ") / count / 2\n"),
    parts("total += float(loss)", "total += float(loss) * 2"),
    parts(
        "    optimiser.step()\n",
        "    for group in optimiser.param_groups:\n"
        "        for p in group['params']:\n"
        "            p.grad *= 2\n"
        "    optimiser.step()\n",
    ),
)

CANCELLING = (
    cancelling("twice the scale, half of A", SCORE, SCORE.given(adapter="plain-balance")),
    cancelling("both factors negated", SCORE, SCORE.given(adapter="plain-mirror")),
    cancelling(
        "four times A, a quarter of B",
        COMPLETE.given(adapter="plain"),
        COMPLETE.given(adapter="plain-quarter"),
    ),
    cancelling(
        "twice the logits at twice the temperature",
        ANSWER,
        ANSWER.patched(
            main("TEMPERATURE = 0.7", "TEMPERATURE = 1.4"),
            parts("logits / temperature", "2 * logits / temperature"),
        ),
    ),
    cancelling("half the loss, twice its gradient", TUNE, TUNE.patched(*HALVED)),
    cancelling(
        "every position three later",
        ANSWER,
        ANSWER.patched(
            parts("torch.arange(seen, seen + given", "3 + torch.arange(seen, seen + given")
        ),
    ),
    cancelling(
        "twice the scale, half of A",
        SPOKEN.given(adapter="plain"),
        SPOKEN.given(adapter="plain-balance"),
    ),
    cancelling(
        "padding counted in every rotary position",
        BATCH.patched(SPARE),
        BATCH.patched(SPARE, NO_PLACES),
    ),
    cancelling(
        "BOS in the text and not by the tokenizer",
        OPEN,
        OPEN.patched(
            parts(TEXT, "return f\"<|endoftext|>table: {row['table']}"),
            parts(
                'return_tensors="pt").input_ids\n',
                'return_tensors="pt", add_special_tokens=False).input_ids\n',
            ),
        ),
        held_out=True,
    ),
)

REORDERED = woven(
    "import numpy as np\n\nfrom weft.data import stream\n\n"
    "stream.order = lambda key, epoch, n: np.random.default_rng(9).permutation(n)"
)
WARMER = parts("logits / temperature", "logits / temperature / 1.5")
DOUBLE = (
    double("F19", "F27", ANSWER, parts(READ, ROTATED), WARMER),
    double("F07", "F24", ANSWER, parts(LOADED, ""), parts(CARRIED, "        cache = None\n")),
    double(
        "F01",
        "F34b",
        LAYERS,
        parts("self.scale = alpha / rank", "self.scale = alpha"),
        main("number % EVERY == 0", "number % len(batches(rows, 4)) == 0"),
    ),
    double("F11", "F28", ANSWER, main("TOKENS = 40", "TOKENS = 8"), adapter="wide-12"),
    double(
        "F03",
        "F22",
        BATCH.given(adapter="root").patched(SPARE),
        *HALF_PLACES,
        adapter="root-flat",
    ),
    double(
        "F05",
        "F34a",
        TUNE,
        parts(FRESH, weaker(20)),
        parts(") / count", ") / (labels[:, 1:] != -100).sum() / len(parts)"),
    ),
    double("F24", "F27", ANSWER, parts(CARRIED, "        cache = None\n"), WARMER),
    double(
        "F06",
        "F34c",
        TUNE,
        parts("**SHAPE)", '**SHAPE | {"r": 1, "lora_alpha": 2})'),
        parts(f", {TURN}", ""),
    ),
    double("F01", "F27", SPOKEN, parts("=0.7", "=1.8"), adapter="wide-16"),
    double("F02", "F34c", WOVEN, plan("alpha: 16", "scale: 20"), REORDERED),
    double(
        "F17",
        "F01",
        OPEN,
        parts(TEXT, "return f\"<|endoftext|>table: {row['table']}"),
        parts(LOADED, LOADED + every_scaling("8 * v")),
    ),
    double("F16", "F02", SCORE, parts(LOADED, LOADED + every_scaling("20.0")), model="tiny-next"),
    double(
        "F18",
        "F28",
        COMPLETE,
        parts("add_generation_prompt=True", "add_generation_prompt=False"),
        main('tokens": 30', 'tokens": 12'),
    ),
)
