"""Faults of the held-out types inside runs of Weft: in its code, its settings and its files.

What each must be called was written down before `weft diff` had seen any of them. Seed, rows,
adapter and dtype differ from case to case.
"""

from __future__ import annotations

from typing import Any

from tests.faults.suite.case import Case, Patch, Side
from tests.faults.suite.faults import single
from tests.faults.suite.sides import BOOSTED, MEZO, SPOKEN, WOVEN, parts, plan, varied, woven


def held(
    fault: str, severity: str, a: Side, b: Side, *, dtype: str | None = None, **told: Any
) -> Case:
    """One fault of a run of Weft, both sides varied by the name of the case."""
    a, b = varied(f"{fault} {a.subject} {severity}", a, b, dtype=dtype)
    return single(fault, severity, a, b, **told)


def said(*arguments: str) -> Patch:
    """More arguments of `weft generate`."""
    return parts('"--record=out"', ", ".join(f'"{each}"' for each in (*arguments, "--record=out")))


# ------------------------------------------------------------------------------------- adapters

PATTERNED = SPOKEN.given(adapter="patterned")


def ranks(module: str, scale: str) -> Patch:
    """Rank 2 at some modules."""
    return woven(
        "from weft.model import sites\n\nmake = sites.Slot\n\n\n"
        "def slot(site, rank, scale):\n"
        f'    rank = 2 if site.name.endswith("{module}") else rank\n'
        f"    return make(site, rank, {scale})\n\n\n"
        "sites.Slot = slot"
    )


def some_ranks(module: str) -> tuple[Side, Side]:
    """Each rank with an alpha of its own, and all with the one of rank 8."""
    return WOVEN.patched(ranks(module, "scale")), WOVEN.patched(ranks(module, "16 / rank"))


STRIPES = woven(
    "from weft.formats import peft\n\nread = peft.read_safetensors\n\n\n"
    "def lined(name, x):\n"
    '    joined = "lora_B" in name and ("gate_proj" in name or "up_proj" in name)\n'
    "    return x.view(2, -1, x.shape[1]).swapaxes(0, 1).reshape(x.shape) if joined else x\n\n\n"
    "peft.read_safetensors = lambda file: {n: lined(n, x) for n, x in read(file).items()}"
)
BEGUN = WOVEN.patched(plan("seed: 3", "start: adapter\nseed: 3")).given(adapter="plain")

ADAPTER = (
    held("F04", "seven modules", PATTERNED, PATTERNED.given(adapter="patterned-flat")),
    held(
        "F04",
        "seven modules, in code",
        PATTERNED,
        PATTERNED.patched(
            woven(
                "from weft.formats.peft_config import PeftConfig\n\n"
                "PeftConfig.scale = lambda self, site: self.alpha(site) / self.r"
            )
        ),
    ),
    held("F04", "six modules, in code", *some_ranks("v_proj"), place="v_proj|6 "),
    held(
        "F04",
        "one module, in code",
        *some_ranks("5.self_attn.q_proj"),
        place=r"layers\.5\.self_attn\.q_proj",
    ),
    held(
        "F10",
        "every q and k",
        SPOKEN.given(adapter="wide-2"),
        SPOKEN.given(adapter="wide-2-weave"),
        place="q_proj|k_proj|12 ",
    ),
    held(
        "F10",
        "gate and up of one layer",
        SPOKEN.given(adapter="wide-2"),
        SPOKEN.given(adapter="wide-2-stripe"),
        place=r"layers\.2\.mlp",
    ),
    held(
        "F10",
        "every gate and up, in code",
        SPOKEN,
        SPOKEN.patched(STRIPES),
        place="gate_proj|up_proj|mlp|12 ",
    ),
    held("F10", "every q, at the start", BEGUN, BEGUN.given(adapter="plain-weave")),
)

# ---------------------------------------------------------------------------------------- bases

HEADED = SPOKEN.given(model="tiny-headed")
TIED = woven(
    "from weft.model import base\n\nprepare = base.prepare\n\n\n"
    "def tied(ref, model, tokenizer):\n"
    "    model.lm_head.weight = model.model.embed_tokens.weight\n"
    "    return prepare(ref, model, tokenizer)\n\n\n"
    "base.prepare = tied"
)
STACKED = BOOSTED.patched(
    plan("targets: [q_proj, v_proj]", "targets: all-linear"),
    plan("batch_size: 8\nmicro_batch_size: 2", "batch_size: 4\nmicro_batch_size: 4"),
)
INTO_WEIGHTS = plan("{steps_per_iteration: 4}", "{steps_per_iteration: 4, merge: weights}")
IN_BF16 = woven(
    "import torch\n\nfrom weft.model import merging\n\nadd = merging.merged_weight\n"
    "merging.merged_weight = lambda weight, adapter, site, dtype: add(\n"
    "    weight, adapter, site, torch.bfloat16\n).to(dtype)"
)


def merging(rate: str) -> tuple[Side, Side]:
    """Commits added to weights as they should be, and by way of another dtype."""
    side = STACKED.patched(plan("2e-3", rate), INTO_WEIGHTS)
    return side, side.patched(IN_BF16)


LONG = SPOKEN.patched(parts('"adapter",', '"model",'), parts("=0.7", "=1.3"), parts("=24", "=64"))
ELSEWHERE = woven(
    "from weft.model import base\n\nplace = base.resolve_base\n"
    'base.resolve_base = lambda ref: place("cache")'
)


# at a commit of the run, or at the step after it; at the end Weft itself refuses what it wrote
AT_THE_MERGE: dict[str, Any] = {
    "fails": True,
    "rungs": frozenset({3, 10, 11}),
    "steps": frozenset({4, 5}),
}
# merged before either run: what they can show is that their bases differ
BEFORE: dict[str, Any] = {"labels": frozenset({"merge-precision", "base"})}

BASE = (
    held(
        "F13",
        "far apart",
        WOVEN.given(model="tiny-heard"),
        WOVEN.given(model="tiny-heard-2"),
    ),
    held(
        "F13",
        "close",
        WOVEN.given(model="tiny-hushed"),
        WOVEN.given(model="tiny-hushed-2"),
    ),
    held("F13", "far apart, in code", HEADED, HEADED.patched(TIED)),
    held(
        "F15",
        "most of it, each round, in code",
        *merging("1e-4"),
        dtype="float32",
        **AT_THE_MERGE,
    ),
    held(
        "F15",
        "a part of it, each round, in code",
        *merging("6e-4"),
        dtype="float32",
        **AT_THE_MERGE,
    ),
    held(
        "F15",
        "most of it, before the run",
        WOVEN.given(model="tiny-sum"),
        WOVEN.given(model="tiny-sum-2"),
        dtype="float32",
        **BEFORE,
    ),
    held(
        "F15",
        "a part of it, before the run",
        WOVEN.given(model="tiny-total"),
        WOVEN.given(model="tiny-total-2"),
        dtype="float32",
        **BEFORE,
    ),
    held(
        "F15",
        "most of it, before the run",
        LONG.given(model="tiny-sum"),
        LONG.given(model="tiny-sum-2"),
        dtype="float32",
        **BEFORE,
    ),
    held("F16", "trained further", SPOKEN, SPOKEN.given(model="tiny-next")),
    held("F16", "one tensor", WOVEN, WOVEN.given(model="tiny-touched"), place=r"layers\.2|up"),
    held(
        "F16",
        "trained further, in code",
        WOVEN.given(cache="tiny-next"),
        WOVEN.given(cache="tiny-next").patched(ELSEWHERE),
    ),
)

# ---------------------------------------------------------------------------------------- texts

OPEN_WOVEN = WOVEN.given(model="tiny-open")
OPEN_SPOKEN = SPOKEN.given(model="tiny-open")
TWICE = "head = {0}.head_ids\n{0}.head_ids = lambda tokenizer: 2 * head(tokenizer)"
CHATTY = SPOKEN.given(**{"words.jinja": "words.jinja"}).patched(
    said("--chat", "--chat-template=words.jinja")
)
CHATS = WOVEN.given(**{"words.jinja": "words.jinja"}).patched(
    plan("max_length: 256", "max_length: 256, chat: true, chat_template: words.jinja")
)
UNASKED = woven(
    "from transformers import PreTrainedTokenizerBase as Words\n\n"
    "apply = Words.apply_chat_template\n"
    "Words.apply_chat_template = lambda self, *given, **more: apply(\n"
    '    self, *given, **more | {"add_generation_prompt": False}\n)'
)
FROM_THE_LEFT = woven(
    "from dataclasses import replace\n\nfrom weft.data.tokens import Encoded\n\n\n"
    "def cut(self, length):\n"
    "    ids, labels = self.ids_T[-length:], self.labels_T[-length:]\n"
    "    return self if len(self.ids_T) <= length else replace(self, ids_T=ids, labels_T=labels)\n"
    "\n\nEncoded.cut = cut"
)


def longest(side: Side, length: int) -> Side:
    return side.patched(plan("max_length: 256", f"max_length: {length}"))


def cut(part: str) -> Side:
    """Prompts of at most so many tokens."""
    return SPOKEN.patched(
        woven(
            "from weft.data import prompts\n\nencode = prompts.encode_texts\n"
            "prompts.encode_texts = lambda *given, **more: [\n"
            f"    ids[{part}] for ids in encode(*given, **more)\n]"
        )
    )


WORDS_OF_ANOTHER = woven(
    "from transformers import AutoTokenizer as Words\n\nload = Words.from_pretrained\n"
    'Words.from_pretrained = lambda path, **more: load("cache", **more)'
)
MARKED = WOVEN.given(model="tiny-marks")
TEXT = (
    held("F17", "every row", OPEN_WOVEN, OPEN_WOVEN.given(**{"rows.jsonl": "weft-open.jsonl"})),
    held(
        "F17",
        "every row, in code",
        OPEN_WOVEN,
        OPEN_WOVEN.patched(woven(f"from weft.data import tokens\n\n{TWICE.format('tokens')}")),
    ),
    held(
        "F17",
        "every prompt, in code",
        OPEN_SPOKEN,
        OPEN_SPOKEN.patched(woven(f"from weft.data import prompts\n\n{TWICE.format('prompts')}")),
    ),
    held(
        "F17",
        "some prompts",
        OPEN_SPOKEN.given(**{"prompts.jsonl": "prompts-3.jsonl"}),
        OPEN_SPOKEN.given(**{"prompts.jsonl": "prompts-4.jsonl"}),
    ),
    held(
        "F17",
        "every prompt, declared",
        CHATTY.given(**{"model": "tiny-open", "words.jinja": "words-4.jinja"}),
        CHATTY.given(**{"model": "tiny-open", "words.jinja": "words-4.jinja"}).patched(
            said("--tokenizer-option=add_special_tokens=true")
        ),
        rungs=frozenset({1, 2}),
    ),
    held("F18", "no generation prompt, in code", CHATTY, CHATTY.patched(UNASKED)),
    held(
        "F18",
        "other template",
        CHATTY,
        CHATTY.given(**{"words.jinja": "words-3.jinja"}),
        rungs=frozenset({1, 2}),
    ),
    held(
        "F18",
        "names in small letters",
        CHATS,
        CHATS.given(**{"words.jinja": "words-2.jinja"}),
        rungs=frozenset({1, 2}),
    ),
    held(
        "F20", "many rows, in code", longest(WOVEN, 56), longest(WOVEN.patched(FROM_THE_LEFT), 56)
    ),
    held(
        "F20", "some rows, in code", longest(WOVEN, 80), longest(WOVEN.patched(FROM_THE_LEFT), 80)
    ),
    held("F20", "every prompt, in code", cut("-28:"), cut(":28")),
    held("F20", "some prompts, in code", cut("-44:"), cut(":44")),
    held("F21", "two tokens", SPOKEN.given(model="tiny-marks"), SPOKEN.given(model="tiny-bare")),
    held("F21", "one token", MARKED, MARKED.given(model="tiny-mark")),
    held(
        "F21",
        "two tokens, in code",
        MARKED.given(cache="tiny-bare"),
        MARKED.given(cache="tiny-bare").patched(WORDS_OF_ANOTHER),
    ),
)

# ------------------------------------------------------------------------------ modes and labels

DROPS = SPOKEN.given(model="small-drops", adapter="small-plain")


def training(code: str) -> Patch:
    """The base as it is loaded, then some of it in another mode."""
    return woven(
        "from weft.model import base\n\nprepare = base.prepare\n\n\n"
        "def ready(ref, model, tokenizer):\n"
        "    made = prepare(ref, model, tokenizer)\n"
        f"    {code}\n"
        "    return made\n\n\n"
        "base.prepare = ready"
    )


def noisy(rate: float) -> Patch:
    """Dropout on the input of every adapted product."""
    return woven(
        "from torch.nn.functional import dropout\n\nfrom weft.model.lean import LeanForward\n\n"
        "multiply = LeanForward._product\n"
        "LeanForward._product = lambda self, joined, x: multiply(\n"
        f"    self, joined, dropout(x, {rate})\n)"
    )


DROPPING = MEZO.given(model="small-drops").patched(plan("[q_proj, v_proj]", "[c_attn]"))
ALL_LABELLED = plan("max_length: 256", "max_length: 256, train_on_prompt: true")
IDS = WOVEN.given(**{"rows.jsonl": "weft-ids.jsonl"})

MODE = (
    held("F26", "every product, in code", SPOKEN, SPOKEN.patched(noisy(0.1))),
    held("F26", "all modules, in code", DROPS, DROPS.patched(training("made.model.train()"))),
    held(
        "F26",
        "one layer, in code",
        DROPS,
        DROPS.patched(training("made.model.transformer.h[2].train()")),
    ),
    held(
        "F26",
        "all modules, MeZO, in code",
        DROPPING,
        DROPPING.patched(training("made.model.train()")),
    ),
)
LABELS = (
    held(
        "F33",
        "prompts too, declared",
        WOVEN,
        WOVEN.patched(ALL_LABELLED),
        rungs=frozenset({1, 2, 10}),
    ),
    held("F33", "prompts too, in the file", IDS, IDS.given(**{"rows.jsonl": "weft-ids-2.jsonl"})),
    held(
        "F33",
        "shifted, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "from dataclasses import replace\n\nimport numpy as np\n\n"
                "from weft.data.tokens import Encoder\n\njoin = Encoder.join\n\n\n"
                "def moved(self, *given):\n"
                "    row = join(self, *given)\n"
                "    return replace(row, labels_T=np.append(row.labels_T[1:], -100))\n\n\n"
                "Encoder.join = moved"
            )
        ),
    ),
    held(
        "F33",
        "none in some rows, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "import numpy as np\n\nfrom weft.data import dataset\n\n"
                "make = dataset.Example\n\n\n"
                "def example(name, ids, labels, *rest):\n"
                "    some = labels if len(ids) % 3 else np.full_like(labels, -100)\n"
                "    return make(name, ids, some, *rest)\n\n\n"
                "dataset.Example = example"
            )
        ),
    ),
)


def twin(what: str, a: Side, b: Side, dtype: str, tolerance: float) -> Case:
    """Of the same kind as F15, where nothing is lost."""
    name = f"benign {a.subject} {what}"
    a, b = varied(name, a, b, dtype=dtype)
    return Case(name, "benign", a, b, held_out=True, tolerance=tolerance)


TWINS = (twin("commits in the weights", STACKED, STACKED.patched(INTO_WEIGHTS), "float32", 1e-3),)

HELD: tuple[Case, ...] = (*ADAPTER, *BASE, *TEXT, *MODE, *LABELS, *TWINS)
