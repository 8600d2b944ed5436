"""Faults F01 to F34, each as small changes of a side that is right.

Every fault is here at two severities at least in plain scripts, and some are in runs of Weft; the
other ones inside of Weft are in `own` and `held`. What is wrong is said by `ANSWERS`, and by a case
where it is more specific.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.faults.suite.case import Answer, Case, Side
from tests.faults.suite.sides import (
    ANSWER,
    BATCH,
    BOOSTED,
    COMPLETE,
    EVEN,
    LAYERS,
    MERGE,
    MEZO,
    POPULATION,
    RESUME,
    SCORE,
    SMALL_ANSWER,
    SMALL_BATCH,
    SMALL_COMPLETE,
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

HELD_OUT = frozenset(["F04", "F10", "F13", "F15", "F16", "F17", "F18", "F20", "F21", "F26", "F33"])
"""Types that nobody who wrote a rule has seen a case of."""


def answer(fault: str, labels: str, *rungs: int, **more: Any) -> Answer:
    return Answer(fault, frozenset(labels.split()), frozenset(rungs), **more)


ADAPTED = r"all|adapted|proj|c_attn"
STEPS_OF_START = frozenset({1})

ANSWERS = {
    each.fault: each
    for each in (
        answer("F01", "scale", 4, 5, place=ADAPTED),
        answer("F02", "scale", 4, 5, place=ADAPTED),
        answer("F03", "scale", 4, 5, place=ADAPTED),
        answer("F04", "scale-pattern", 4, 5, place="proj"),
        answer("F05", "init", 4, 10, place=ADAPTED),
        answer("F06", "rank", 4, place=ADAPTED),
        # an adapter that is not there is one whose scale is 0
        answer("F07", "attach", 4, 5, place=ADAPTED, value=0.0, aliases=frozenset({"scale"})),
        answer("F08", "attach-partial", 4, 5, place="layers|modules"),
        answer("F09", "key-map", 5, place="proj|modules"),
        answer("F10", "layout", 5, place="proj|modules"),
        answer("F11", "checkpoint", 4, 5),
        # an adapter that is there twice is one of twice the scale
        answer("F12", "double-apply", 3, 5, 6, value=2.0, aliases=frozenset({"scale"})),
        answer("F13", "tied", 3, place="head|embed"),
        answer("F14", "base", 3),
        answer("F15", "merge-precision", 3),
        answer("F16", "base", 3),
        answer("F17", "tokens", 2, place="prompt|row"),
        answer("F18", "template", 2),
        answer("F19", "data", 2, place="prompt|row|slot|column"),
        answer("F20", "truncation", 2),
        answer("F21", "tokenizer", 2),
        answer("F22", "positions", 2, 8),
        answer("F23", "mask", 2, 8),
        answer("F24", "cache", 8),
        answer("F25", "cache-pos", 8),
        answer("F26", "mode", 0),
        answer("F27", "sampler", 9),
        answer("F28", "stop", 9),
        answer("F29", "seed", 0, 9),
        answer("F30", "overflow", 0, 6, place=r"layers\.3\.mlp"),
        answer("F31", "trainable", 4),
        answer("F32", "trainable", 4, 11, steps=STEPS_OF_START),
        answer("F33", "labels", 2, 10),
        answer("F34a", "normaliser", 10, 11, steps=STEPS_OF_START),
        answer("F34b", "schedule", 10, 11, steps=frozenset({4, 5})),
        answer("F34c", "order", 10, 11, steps=STEPS_OF_START),
    )
}


def single(
    fault: str,
    severity: str,
    a: Side,
    b: Side,
    *,
    family: bool = False,
    fails: bool = False,
    **told: Any,
) -> Case:
    """One fault. `told` is what this case says more exactly than `ANSWERS` does."""
    held_out = family or fault in HELD_OUT
    name = f"{fault} {a.subject} {severity}"
    the_answer = replace(ANSWERS[fault], **told)
    return Case(name, "single", a, b, (the_answer,), severity, held_out, fails=fails)


def every_scaling(value: str) -> str:
    """Code that sets the scale of each adapted module of a PEFT model."""
    return (
        "    for m in model.modules():\n"
        '        if isinstance(getattr(m, "scaling", None), dict):\n'
        f"            m.scaling = {{k: {value} for k, v in m.scaling.items()}}\n"
    )


CARRIED = "        cache = out.past_key_values\n"
LOADED = "    model = PeftModel.from_pretrained(model, adapter)\n"
FRESH = 'get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **SHAPE))\n'
RESUMED = 'PeftModel.from_pretrained(model, "adapter", is_trainable=True)\n'


def weaker(factor: int) -> str:
    """Code that makes the initial A of a PEFT model smaller."""
    return (
        FRESH + "        for name, p in model.named_parameters():\n"
        '            if "lora_A" in name:\n'
        f"                p.data /= {factor}\n"
    )


def shortened(layers: str) -> str:
    """Code that freezes the adapter of some layers."""
    return (
        RESUMED + "        for name, p in model.named_parameters():\n"
        f'            if any(f".{{n}}." in name for n in {layers}):\n'
        "                p.requires_grad = False\n"
    )


SCALE = [
    single("F01", "ratio 8, in the file", SCORE, SCORE.given(adapter="plain-16"), place=ADAPTED),
    single(
        "F01",
        "ratio 1.5, in code",
        ANSWER,
        ANSWER.patched(parts(LOADED, LOADED + every_scaling("1.5 * v"))),
    ),
    single(
        "F01",
        "ratio 8, by hand",
        LAYERS,
        LAYERS.patched(parts("self.scale = alpha / rank", "self.scale = alpha")),
    ),
    single("F01", "ratio 1.5, declared", WOVEN, WOVEN.patched(plan("alpha: 16", "alpha: 24"))),
    single(
        "F01",
        "ratio 8, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "from weft.model.config import AdapterConfig\n\n"
                "AdapterConfig.effective_scale = property(lambda self: self.alpha)"
            )
        ),
    ),
    single("F01", "ratio 8, in the file", SPOKEN, SPOKEN.given(adapter="wide-16")),
    single(
        "F01",
        "ratio 1.5, in code, other family",
        SMALL_SCORE,
        SMALL_SCORE.patched(parts(LOADED, LOADED + every_scaling("1.5 * v"))),
        family=True,
    ),
    single(
        "F02",
        "20 for 2, in code",
        COMPLETE,
        COMPLETE.patched(parts(LOADED, LOADED + every_scaling("20.0"))),
    ),
    single(
        "F02",
        "20 for 16, in the file",
        SCORE.given(adapter="plain-16"),
        SCORE.given(adapter="plain-160"),
    ),
    single("F02", "20 for 2, declared", WOVEN, WOVEN.patched(plan("alpha: 16", "scale: 20"))),
    single(
        "F02",
        "20 for 2, other family",
        SMALL_COMPLETE,
        SMALL_COMPLETE.patched(parts(LOADED, LOADED + every_scaling("20.0"))),
        family=True,
    ),
    single(
        "F03",
        "factor 4, in the file",
        SCORE.given(adapter="root"),
        SCORE.given(adapter="root-flat"),
    ),
    single(
        "F03",
        "factor 2, in the file",
        BATCH.given(adapter="root-4"),
        BATCH.given(adapter="root-4-flat"),
    ),
    single(
        "F03",
        "factor 2.8, declared",
        WOVEN.patched(plan("alpha: 16", "alpha: 16, rslora: true")),
        WOVEN,
    ),
    single(
        "F03",
        "factor 2.8, other family",
        SMALL_SCORE.given(adapter="small-root"),
        SMALL_SCORE.given(adapter="small-root-flat"),
        family=True,
    ),
    single(
        "F04",
        "seven modules",
        SCORE.given(adapter="patterned"),
        SCORE.given(adapter="patterned-flat"),
    ),
    single(
        "F04",
        "one module",
        ANSWER.given(adapter="patterned"),
        ANSWER.given(adapter="patterned-one"),
        place=r"layers\.5\.self_attn\.q_proj",
    ),
]

ADAPTER = [
    single("F05", "20 times", TUNE, TUNE.patched(parts(FRESH, weaker(20)))),
    single("F05", "2 times", TUNE, TUNE.patched(parts(FRESH, weaker(2)))),
    single(
        "F05",
        "20 times, by hand",
        LAYERS,
        LAYERS.patched(parts("in_features) / rank)", "in_features) / rank / 20)")),
    ),
    single(
        "F05",
        "20 times, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "from weft.model import adapter\n\ndraw = adapter.uniform\n"
                "adapter.uniform = lambda shape, low, high, key: draw(shape, low, high, key) / 20"
            )
        ),
    ),
    single(
        "F05",
        "20 times, a population's noise",
        POPULATION,
        POPULATION.patched(plan("population: 6", "population: 6, noise: {init_scale: 0.05}")),
        rungs=frozenset({1, 4, 10, 11}),
        place=None,
    ),
    single(
        "F05",
        "20 times, other family",
        SMALL_TUNE,
        SMALL_TUNE.patched(parts(FRESH, weaker(20))),
        family=True,
    ),
    single(
        "F06",
        "1 for 8",
        TUNE,
        TUNE.patched(parts("**SHAPE)", '**SHAPE | {"r": 1, "lora_alpha": 2})')),
    ),
    single(
        "F06",
        "6 for 8",
        TUNE,
        TUNE.patched(parts("**SHAPE)", '**SHAPE | {"r": 6, "lora_alpha": 12})')),
    ),
    single(
        "F06",
        "1 for 8, by hand",
        LAYERS,
        LAYERS.patched(parts("RANK, ALPHA)", "1, ALPHA / RANK)")),
    ),
    single(
        "F06",
        "1 for 8, declared",
        WOVEN,
        WOVEN.patched(plan("rank: 8, alpha: 16", "rank: 1, alpha: 2")),
    ),
    single(
        "F06",
        "1 for 8, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "from weft.model import sites\n\nmake = sites.Slot\n"
                "sites.Slot = lambda site, rank, scale: make(site, 1, scale)"
            )
        ),
    ),
    single("F07", "all of it", ANSWER, ANSWER.patched(parts(LOADED, ""))),
    single(
        "F07",
        "disabled",
        COMPLETE,
        COMPLETE.patched(parts(LOADED, LOADED + "    model.base_model.disable_adapter_layers()\n")),
    ),
    single(
        "F07",
        "after the first forward",
        BATCH,
        BATCH.patched(
            parts(CARRIED, CARRIED + "        model.base_model.disable_adapter_layers()\n")
        ),
    ),
    single("F07", "the base", SPOKEN, SPOKEN.patched(parts('"adapter",', '"model",'))),
    single(
        "F07",
        "all of it, other family",
        SMALL_ANSWER,
        SMALL_ANSWER.patched(parts(LOADED, "")),
        family=True,
    ),
    single(
        "F08",
        "three layers of six",
        SCORE.given(adapter="wide"),
        SCORE.given(adapter="wide-loose"),
        place=r"layers|modules",
    ),
    single("F08", "one layer", BATCH, BATCH.given(adapter="wide-loose-1"), place=r"layers\.2|7 "),
    single("F08", "three layers of six", SPOKEN, SPOKEN.given(adapter="wide-part")),
    single(
        "F09",
        "k and v, everywhere",
        SCORE.given(adapter="wide"),
        SCORE.given(adapter="wide-turn"),
        place="k_proj|v_proj|12 ",
    ),
    single(
        "F09",
        "q and o of one layer",
        ANSWER,
        ANSWER.given(adapter="wide-turn-1"),
        place=r"layers\.4\.self_attn",
    ),
    single("F09", "k and v, everywhere", SPOKEN, SPOKEN.given(adapter="wide-turn")),
    single(
        "F10",
        "every q and k",
        SCORE.given(adapter="wide"),
        SCORE.given(adapter="wide-weave"),
        place="q_proj|k_proj|12 ",
    ),
    single("F10", "one layer", ANSWER, ANSWER.given(adapter="wide-weave-1"), place=r"layers\.3"),
    single("F11", "step 12 for 40", ANSWER, ANSWER.given(adapter="wide-12")),
    single("F11", "step 36 for 40", SCORE.given(adapter="wide"), SCORE.given(adapter="wide-36")),
    single("F11", "step 12 for 40", SPOKEN, SPOKEN.given(adapter="wide-12")),
]

ONE_LAYER_TWICE = (
    "    for name, m in model.named_modules():\n"
    '        if "layers.3." in name and hasattr(m, "get_delta_weight"):\n'
    '            m.base_layer.weight.data += m.get_delta_weight("default")\n'
)
UNTIED = "    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())\n"
EXTRA = '    extra = Path("extra.safetensors")\n'
FP16 = parts("dtype=torch.float32", "dtype=torch.float16")


def loud(side: Side, rows: str) -> Side:
    return side.given(**{"extra.safetensors": rows})


BASE = [
    single(
        "F12",
        "all modules",
        SCORE,
        SCORE.patched(
            parts(LOADED, LOADED + "    model = model.merge_and_unload()\n" + LOADED),
        ),
    ),
    single(
        "F12",
        "one layer",
        SCORE,
        SCORE.patched(parts(LOADED, LOADED + ONE_LAYER_TWICE)),
        place=r"layers\.3",
    ),
    single(
        "F12",
        "all modules",
        BATCH,
        BATCH.patched(
            parts(LOADED, LOADED + "    model = model.merge_and_unload()\n" + LOADED),
        ),
    ),
    single(
        "F13",
        "far apart",
        loud(MERGE, "rows-loud.safetensors"),
        loud(MERGE, "rows-loud.safetensors").patched(parts(EXTRA, UNTIED + EXTRA)),
    ),
    single(
        "F13",
        "close",
        loud(MERGE, "rows-soft.safetensors"),
        loud(MERGE, "rows-soft.safetensors").patched(parts(EXTRA, UNTIED + EXTRA)),
    ),
    single(
        "F14",
        "4 bits",
        MERGE.given(model="tiny-4", adapter="coarse"),
        MERGE.given(model="tiny", adapter="coarse"),
    ),
    single(
        "F14",
        "6 bits",
        MERGE.given(model="tiny-6", adapter="coarse-6"),
        MERGE.given(model="tiny", adapter="coarse-6"),
    ),
    single(
        "F14",
        "4 bits, not merged",
        SCORE.given(model="tiny-4", adapter="coarse"),
        SCORE.given(model="tiny", adapter="coarse"),
    ),
    single(
        "F15",
        "most of it",
        MERGE.given(adapter="wide-faint"),
        MERGE.given(adapter="wide-faint").patched(parts("= torch.float32\n", "= torch.bfloat16\n")),
    ),
    single(
        "F15",
        "all of it",
        MERGE.given(adapter="wide-fainter"),
        MERGE.given(adapter="wide-fainter").patched(
            parts("= torch.float32\n", "= torch.bfloat16\n")
        ),
    ),
    single("F16", "trained further", SCORE, SCORE.given(model="tiny-next")),
    single(
        "F16", "one tensor", COMPLETE, COMPLETE.given(model="tiny-touched"), place=r"layers\.2|up"
    ),
    single("F16", "trained further", WOVEN, WOVEN.given(model="tiny-next")),
    single("F16", "one tensor", SPOKEN, SPOKEN.given(model="tiny-touched"), place=r"layers\.2|up"),
]

OPEN = ANSWER.given(model="tiny-open")
MARKED = ANSWER.given(model="tiny-marks")
ROTATED = (
    "    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]\n"
    "    return [row | {'columns': rows[i - 1]['columns']} for i, row in enumerate(rows)]\n"
)
ROTATED_ONE = (
    "    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]\n"
    "    return [*rows[:2], rows[2] | {'columns': rows[5]['columns']}, *rows[3:]]\n"
)
READ = "    return [json.loads(line) for line in Path(path).read_text().splitlines()]\n"
TEXT = "return f\"table: {row['table']}"


def cut(side: Side, length: int) -> Side:
    return side.patched(parts("LONGEST = 160", f"LONGEST = {length}"))


TEXTS = [
    single(
        "F17",
        "every prompt",
        OPEN,
        OPEN.patched(parts(TEXT, "return f\"<|endoftext|>table: {row['table']}")),
    ),
    single(
        "F17",
        "some prompts",
        OPEN,
        OPEN.patched(
            parts(
                TEXT,
                "return '<|endoftext|>' * (len(row['question']) % 2) + f\"table: {row['table']}",
            )
        ),
    ),
    single(
        "F18",
        "no generation prompt",
        COMPLETE,
        COMPLETE.patched(parts("add_generation_prompt=True", "add_generation_prompt=False")),
    ),
    single(
        "F18",
        "other template",
        COMPLETE,
        COMPLETE.patched(parts('"role": "user"', '"role": "human"')),
    ),
    single("F18", "other words", SCORE, SCORE.patched(parts("\\nA:", "\\nAnswer:"))),
    single(
        "F18",
        "a chat's template, declared",
        WOVEN,
        WOVEN.patched(plan("max_length: 256", "max_length: 256, chat: true")),
    ),
    single("F19", "every prompt", ANSWER, ANSWER.patched(parts(READ, ROTATED))),
    single(
        "F19",
        "one prompt",
        BATCH,
        BATCH.patched(parts(READ, ROTATED_ONE)),
        place="prompt|row|column",
    ),
    single(
        "F19",
        "every prompt",
        SPOKEN,
        SPOKEN.given(**{"prompts.jsonl": "turned.jsonl"}),
    ),
    single("F19", "every row", WOVEN, WOVEN.given(**{"rows.jsonl": "weft-turned.jsonl"})),
    single(
        "F20",
        "every prompt",
        cut(COMPLETE, 40),
        cut(COMPLETE, 40).patched(parts('= "left"', '= "right"')),
    ),
    single(
        "F20",
        "some prompts",
        cut(COMPLETE, 60),
        cut(COMPLETE, 60).patched(parts('= "left"', '= "right"')),
    ),
    single("F21", "two tokens", MARKED, MARKED.given(model="tiny-bare")),
    single("F21", "one token", MARKED, MARKED.given(model="tiny-mark")),
]

NO_PLACES = parts(
    "return (mask.cumsum(-1) - 1).clamp(min=0)",
    "return torch.arange(mask.shape[1]).expand_as(mask)",
)
# rotary positions are relative: what hurts is that padding counts in one place and not in another
HALF_PLACES = (NO_PLACES, parts("positions[:, -1:] + 1", "mask.sum(-1, keepdim=True) - 1"))
ALL_ATTENDED = parts(
    "    cache, made, scores = None, [[] for _ in rows], []\n",
    "    mask = torch.ones_like(mask)\n    cache, made, scores = None, [[] for _ in rows], []\n",
)
SPARE = main("SPARE = 0", "SPARE = 8")

DECODING = [
    single("F22", "8 and more", BATCH.patched(SPARE), BATCH.patched(SPARE, *HALF_PLACES)),
    single("F22", "1 at most", EVEN, EVEN.patched(*HALF_PLACES)),
    single(
        "F22",
        "1 at most, other family",
        SMALL_BATCH,
        SMALL_BATCH.patched(NO_PLACES),
        family=True,
    ),
    single("F23", "8 and more", BATCH.patched(SPARE), BATCH.patched(SPARE, ALL_ATTENDED)),
    single("F23", "1 at most", EVEN, EVEN.patched(ALL_ATTENDED)),
    single(
        "F24", "from token 2 on", ANSWER, ANSWER.patched(parts(CARRIED, "        cache = None\n"))
    ),
    single(
        "F24",
        "once, at token 5",
        ANSWER,
        ANSWER.patched(
            parts(CARRIED, "        cache = None if len(made) == 3 else out.past_key_values\n")
        ),
    ),
    single(
        "F24",
        "from token 2 on, in code",
        SPOKEN,
        SPOKEN.patched(
            woven(
                "from weft.model.cache import KVCache\n\nattend = KVCache.attend\n"
                "KVCache.attend = lambda self, *given: attend(self, *given[:-1], 1)"
            )
        ),
    ),
    single(
        "F24",
        "from token 2 on, other family",
        SMALL_ANSWER,
        SMALL_ANSWER.patched(parts(CARRIED, "        cache = None\n")),
        family=True,
    ),
    single(
        "F25",
        "every step",
        ANSWER,
        ANSWER.patched(parts("given.shape[1])[None]", "given.shape[1])[None] + (seen > 0)")),
    ),
    single(
        "F25",
        "from token 6 on",
        BATCH,
        BATCH.patched(
            parts("positions[:, -1:] + 1", "positions[:, -1:] + 1 + (len(made[0]) == 5)")
        ),
    ),
    single(
        "F25",
        "every step, in code",
        SPOKEN,
        SPOKEN.patched(
            woven(
                "from weft.model.steppers import LeanStepper\n\nturn = LeanStepper._rotation\n"
                "LeanStepper._rotation = lambda self, at: turn(\n"
                "    self, at + 1 if at is self.cache.lengths_B else at\n)"
            )
        ),
    ),
]

NOISY = SCORE.given(adapter="noisy")
SAMPLING = [
    single(
        "F26",
        "all modules",
        NOISY,
        NOISY.patched(parts("    model.eval()\n", "    model.train()\n")),
    ),
    single(
        "F26",
        "one layer",
        NOISY,
        NOISY.patched(
            parts(
                "    model.eval()\n",
                "    model.eval().get_submodule('base_model.model.model.layers.5').train()\n",
            )
        ),
    ),
    single(
        "F27",
        "temperature 1.2 for 0.7",
        COMPLETE,
        COMPLETE.patched(main('"temperature": 0.7', '"temperature": 1.2')),
    ),
    single("F27", "top-p 0.6 for 0.95", COMPLETE, COMPLETE.patched(main('p": 0.95', 'p": 0.6'))),
    single(
        "F27",
        "penalty 1.3 for 1",
        COMPLETE,
        COMPLETE.patched(main('penalty": 1.0', 'penalty": 1.3')),
    ),
    single(
        "F27",
        "temperature off by 1.3, in code",
        ANSWER,
        ANSWER.patched(parts("logits / temperature", "logits / temperature / 1.3")),
    ),
    single("F27", "temperature 1.8 for 0.7", SPOKEN, SPOKEN.patched(parts("=0.7", "=1.8"))),
    single(
        "F27",
        "top-p 0.5 for 0.95, other family",
        SMALL_COMPLETE,
        SMALL_COMPLETE.patched(main('p": 0.95', 'p": 0.5')),
        family=True,
    ),
    single("F28", "8 tokens for 40", ANSWER, ANSWER.patched(main("TOKENS = 40", "TOKENS = 8"))),
    single(
        "F28", "28 tokens for 30", COMPLETE, COMPLETE.patched(main('tokens": 30', 'tokens": 28'))
    ),
    single(
        "F28",
        "no stop text, in code",
        ANSWER,
        ANSWER.patched(parts("if STOP in text", "if not text")),
    ),
    single("F28", "12 tokens for 24", SPOKEN, SPOKEN.patched(parts("=24", "=12"))),
    single(
        "F28",
        "a stop text",
        SPOKEN,
        SPOKEN.patched(parts('"--seed=5"', '"--stop= FROM", "--seed=5"')),
    ),
    single(
        "F29", "none", ANSWER, ANSWER.patched(main("torch.manual_seed(SEED)\n", "torch.seed()\n"))
    ),
    single(
        "F29",
        "none, with generate",
        COMPLETE,
        COMPLETE.patched(main("torch.manual_seed(SEED)\n", "")),
    ),
    single("F29", "another", SPOKEN, SPOKEN.patched(parts("--seed=5", "--seed=6"))),
    single(
        "F29",
        "another",
        WOVEN,
        WOVEN.patched(plan("seed: 3", "seed: 4")),
        rungs=frozenset({0, 1, 9, 10}),
    ),
    single(
        "F30",
        "every row",
        SCORE.given(model="tiny-hot"),
        SCORE.given(model="tiny-hot").patched(FP16),
    ),
    single(
        "F30",
        "some rows",
        SCORE.given(model="tiny-warm"),
        SCORE.given(model="tiny-warm").patched(FP16),
    ),
]

TURN = "generator=torch.Generator().manual_seed(epoch)"
EPOCHS = main('read("rows.jsonl")', 'read("rows.jsonl")[:24]')
TRAINING = [
    single(
        "F31",
        "every module",
        RESUME,
        RESUME.patched(parts("is_trainable=True", "is_trainable=False")),
    ),
    single(
        "F31", "three layers of six", RESUME, RESUME.patched(parts(RESUMED, shortened("range(3)")))
    ),
    single(
        "F32",
        "the whole base",
        RESUME,
        RESUME.patched(parts(RESUMED, RESUMED + "        model.requires_grad_(True)\n")),
    ),
    single(
        "F32",
        "one norm",
        RESUME,
        RESUME.patched(
            parts(
                RESUMED,
                RESUMED + "        model.base_model.model.model.norm.requires_grad_(True)\n",
            )
        ),
        place="norm|base",
    ),
    single(
        "F33",
        "prompts too",
        TUNE,
        TUNE.patched(
            parts('        label[: len(tokenizer(q)["input_ids"])] = -100\n', "        q\n")
        ),
    ),
    single(
        "F33",
        "shifted",
        TUNE,
        TUNE.patched(parts("labels[:, 1:].flatten()", "labels[:, :-1].flatten()")),
    ),
    single(
        "F33",
        "none in some rows",
        TUNE,
        TUNE.patched(
            parts(
                '        label[: len(tokenizer(q)["input_ids"])] = -100\n',
                '        label[: len(tokenizer(q)["input_ids"]) + (len(q) % 3 == 0) * 99] = -100\n',
            )
        ),
    ),
    single(
        "F33",
        "prompts too, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "from weft.data.tokens import Encoder\n\nmake = Encoder.__init__\n"
                "Encoder.__init__ = lambda self, *given: make(self, *given[:3], True, given[4])"
            )
        ),
    ),
    single(
        "F34a",
        "micro-batches of 2",
        TUNE,
        TUNE.patched(parts(") / count", ") / (labels[:, 1:] != -100).sum() / len(parts)")),
    ),
    single(
        "F34a",
        "micro-batches of 1",
        TUNE.patched(main("MICRO = 2", "MICRO = 1")),
        TUNE.patched(
            main("MICRO = 2", "MICRO = 1"),
            parts(") / count", ") / (labels[:, 1:] != -100).sum() / len(parts)"),
        ),
    ),
    single(
        "F34a",
        "a constant, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "import numpy as np\n\nfrom weft.model.objectives import TokenNLL\n\n"
                "TokenNLL.counts = lambda self, batch: np.full(len(batch.examples), 16)"
            )
        ),
    ),
    single(
        "F34b",
        "epochs, by hand",
        LAYERS,
        LAYERS.patched(main("number % EVERY == 0", "number % len(batches(rows, 4)) == 0")),
    ),
    single(
        "F34b",
        "every 5 for 4",
        LAYERS,
        LAYERS.patched(main("number % EVERY", "number % (EVERY + 1)")),
    ),
    single(
        "F34b",
        "epochs, declared",
        BOOSTED,
        BOOSTED.patched(plan("steps_per_iteration: 4", "merge_frequency: 1")),
    ),
    single(
        "F34b",
        "every 5 for 4, in code",
        BOOSTED,
        BOOSTED.patched(
            woven(
                "from weft.methods.trigger import Trigger\n\n"
                "Trigger.due = lambda self, step: step % 5 == 0"
            )
        ),
    ),
    single(
        "F34c",
        "every epoch",
        TUNE,
        TUNE.patched(parts(f", {TURN}", "")),
    ),
    single(
        "F34c",
        "from the second epoch on",
        TUNE.patched(EPOCHS),
        TUNE.patched(EPOCHS, parts("manual_seed(epoch)", "manual_seed(epoch * 13)")),
        steps=frozenset({7}),
    ),
    single(
        "F34c",
        "every epoch, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "import numpy as np\n\nfrom weft.data import stream\n\n"
                "stream.order = lambda key, epoch, n: np.random.default_rng().permutation(n)"
            )
        ),
    ),
    single(
        "F34c",
        "every epoch, in code, MeZO",
        MEZO,
        MEZO.patched(
            woven(
                "import numpy as np\n\nfrom weft.data import stream\n\n"
                "stream.order = lambda key, epoch, n: np.random.default_rng(9).permutation(n)"
            )
        ),
    ),
]

SINGLES = (*SCALE, *ADAPTER, *BASE, *TEXTS, *DECODING, *SAMPLING, *TRAINING)
