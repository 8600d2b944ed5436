"""Faults inside runs of Weft: in its own code, in its configuration, and in the files it is given.

What is patched is patched before Weft starts, in `parts.py`, and nothing that a run records of
itself is patched with it. `woven` trains, `spoken` generates.
"""

from __future__ import annotations

from tests.faults.suite.faults import single
from tests.faults.suite.sides import BOOSTED, SPOKEN, WOVEN, parts, plan, woven

DECLARED_16 = WOVEN.patched(plan("alpha: 16", "alpha: 128"))
ROOTED = WOVEN.patched(plan("rank: 8, alpha: 16", "rank: 4, alpha: 16, rslora: true"))
EVEN = SPOKEN.given(**{"prompts.jsonl": "prompts-even.jsonl"}).patched(
    parts('"--seed=5"', '"--batch-size=3", "--seed=5"'),
    parts("=0.7", "=1.2"),
    parts("=24", "=60"),
)
CONTINUED = WOVEN.given(adapter="plain").patched(plan("base: model", "base: model\nstart: adapter"))
"""A run that goes on from an adapter."""
NARROW = SPOKEN.given(adapter="plain")

ADAPTER = (
    single(
        "F02",
        "20 for 16, in code",
        DECLARED_16,
        DECLARED_16.patched(
            woven(
                "from weft.model.config import AdapterConfig\n\n"
                "AdapterConfig.effective_scale = property(lambda self: 20.0)"
            )
        ),
    ),
    single(
        "F03",
        "factor 2, in code",
        ROOTED,
        ROOTED.patched(
            woven(
                "from weft.model.config import AdapterConfig\n\n"
                "AdapterConfig.effective_scale = property(lambda self: self.alpha / self.rank)"
            )
        ),
    ),
    single(
        "F05",
        "2 times, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "from weft.model import adapter\n\ndraw = adapter.uniform\n"
                "adapter.uniform = lambda shape, low, high, key: draw(shape, low, high, key) / 2"
            )
        ),
    ),
    single(
        "F06",
        "6 for 8, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "from weft.model import sites\n\nmake = sites.Slot\n"
                "sites.Slot = lambda site, rank, scale: make(site, 6, scale)"
            )
        ),
    ),
    single(
        "F07",
        "all of it, in code",
        SPOKEN,
        SPOKEN.patched(
            woven(
                "from weft.model.bank import Bank\nfrom weft.training.refs import Subject\n\n"
                "Subject.bank = property(lambda self: Bank.of(dict.fromkeys(self.adapters)))"
            )
        ),
    ),
    single(
        "F07",
        "after the prompt, in code",
        SPOKEN,
        SPOKEN.patched(
            woven(
                "from dataclasses import replace\n\n"
                "from weft.model.steppers import LeanStepper\n\nextend = LeanStepper.extend\n\n\n"
                "def go_on(self, *given):\n"
                "    self.forward = replace(self.forward, updates={})\n"
                "    return extend(self, *given)\n\n\n"
                "LeanStepper.extend = go_on"
            )
        ),
    ),
    single("F08", "one layer", SPOKEN, SPOKEN.given(adapter="wide-part-1"), place=r"layers\.2|7 "),
    single(
        "F09",
        "q and o of one layer",
        SPOKEN,
        SPOKEN.given(adapter="wide-turn-1"),
        place=r"layers\.4\.self_attn",
    ),
    single("F11", "step 36 for 40", SPOKEN, SPOKEN.given(adapter="wide-36")),
)

TWICE = frozenset({3, 4, 5, 6})
BASE = (
    single("F12", "all modules, in the file", NARROW, NARROW.given(model="tiny-folded")),
    single(
        "F12",
        "one layer, in the file",
        NARROW,
        NARROW.given(model="tiny-folded-3"),
        place=r"layers\.3",
    ),
    single(
        "F12",
        "all modules, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "from weft.model import weaving\n\nmake = weaving._adding_at\n\n\n"
                "def adding(*given):\n"
                "    add = make(*given)\n"
                "    return lambda y, x: add(add(y, x), x)\n\n\n"
                "weaving._adding_at = adding"
            )
        ),
        rungs=TWICE,
    ),
    single(
        "F12",
        "commits, in code",
        BOOSTED.patched(plan("steps_per_iteration: 4", "steps_per_iteration: 4, merge: weights")),
        BOOSTED.patched(
            plan("steps_per_iteration: 4", "steps_per_iteration: 4, merge: weights"),
            woven(
                "from weft.training import ground\n\nmerge = ground.merged_base\n"
                "ground.merged_base = lambda base, adapter: merge(merge(base, adapter), adapter)"
            ),
        ),
        rungs=TWICE | {10, 11},
        fails=True,
    ),
    single(
        "F14",
        "4 bits",
        SPOKEN.given(model="tiny-4", adapter="coarse"),
        SPOKEN.given(model="tiny", adapter="coarse"),
    ),
    single(
        "F14",
        "6 bits, trained further",
        CONTINUED.given(model="tiny-6", adapter="coarse-6"),
        CONTINUED.given(model="tiny", adapter="coarse-6"),
    ),
)

# places of new tokens are counted from the longest prompt, as where padding on the right counts
COUNTED = woven(
    "from weft.model.steppers import LeanStepper\n\nturn = LeanStepper._rotation\n"
    "LeanStepper._rotation = lambda self, at: turn(\n"
    "    self, at.clamp(min=max(self.cache.lengths)) if at is self.cache.lengths_B else at\n)"
)
UNMASKED = woven(
    "from weft.model.cache import KVCache\n\nKVCache._mask = lambda self, *given: None"
)
ONE_TEXT = woven(
    "from dataclasses import replace\n\nfrom weft.model import forward\n"
    "from weft.model.rows import Piece\n\nmake = forward.pack\n\n\n"
    "def pack(blocks, device):\n"
    "    rows = make(blocks, device)\n"
    "    count = blocks[0].members\n"
    "    length = rows.ids.numel() // count\n"
    "    return replace(rows, pieces=(Piece(1, length, count),)) if length > 64 else rows\n\n\n"
    "forward.pack = pack"
)


def later(turns: str) -> str:
    """Code that counts the steps of a cache, `self.turn`, from 1 for the first decoding step."""
    return (
        "from weft.model.cache import KVCache\n\n"
        "advance, attend = KVCache.advance, KVCache.attend\nKVCache.turn = 1\n\n\n"
        "def go_on(self, live):\n    self.turn += 1\n    advance(self, live)\n\n\n" + turns
    )


DECODING = (
    single("F22", "9 and more", SPOKEN, SPOKEN.patched(COUNTED), rungs=frozenset({0, 2, 8})),
    single("F22", "1 at most", EVEN, EVEN.patched(COUNTED), rungs=frozenset({0, 2, 8})),
    single("F23", "9 and more", SPOKEN, SPOKEN.patched(UNMASKED), rungs=frozenset({0, 2, 8})),
    single("F23", "1 at most", EVEN, EVEN.patched(UNMASKED), rungs=frozenset({0, 2, 8})),
    single(
        "F23",
        "texts of one row, in code",
        WOVEN,
        WOVEN.patched(ONE_TEXT),
        rungs=frozenset({0, 2, 8, 10}),
    ),
    single(
        "F24",
        "once, at token 4, in code",
        SPOKEN,
        SPOKEN.patched(
            woven(
                later(
                    "def alone(self, *given):\n"
                    "    window = 1 if self.turn == 3 else given[-1]\n"
                    "    return attend(self, *given[:-1], window)\n\n\n"
                    "KVCache.advance, KVCache.attend = go_on, alone"
                )
            )
        ),
    ),
    single(
        "F25",
        "from token 4 on, in code",
        SPOKEN,
        SPOKEN.patched(
            woven(
                later(
                    "KVCache.advance = go_on\n\n"
                    "from weft.model.steppers import LeanStepper\n\n"
                    "turn = LeanStepper._rotation\n"
                    "LeanStepper._rotation = lambda self, at: turn(\n"
                    "    self, at + (at is self.cache.lengths_B and self.cache.turn > 2)\n)"
                )
            )
        ),
    ),
)

SAMPLING = (
    single(
        "F27",
        "temperature off by 2, in code",
        SPOKEN,
        SPOKEN.patched(
            woven(
                "from weft.model import sampling\n\nmake = sampling.distribution\n"
                "sampling.distribution = lambda logits, decoding: make(logits / 2, decoding)"
            )
        ),
    ),
    single("F27", "top-p 0.6 for 0.95", SPOKEN, SPOKEN.patched(parts("p=0.95", "p=0.6"))),
    single(
        "F29",
        "none, in code",
        SPOKEN,
        SPOKEN.patched(
            woven(
                "import secrets\n\nfrom weft.model import sampling\n\n"
                "make = sampling.request_keys\n"
                "sampling.request_keys = lambda seed, *given: make(secrets.randbits(32), *given)"
            )
        ),
    ),
    single(
        "F30",
        "every row",
        SPOKEN.given(model="tiny-hot"),
        SPOKEN.given(model="tiny-hot").patched(
            parts('"--seed=5"', '"--seed=5", "--dtype=float16"')
        ),
        fails=True,
    ),
    single(
        "F30",
        "some rows",
        WOVEN.given(model="tiny-warm"),
        WOVEN.given(model="tiny-warm").patched(plan("base: model", "base: model\ndtype: float16")),
        fails=True,
        rungs=frozenset({0, 6, 10}),
    ),
)

FROZEN = frozenset({4, 10, 11})


def still(which: str) -> str:
    """Code after which some slots of the adapter do not move."""
    return (
        "import torch\n\nfrom weft.training.advance import Course\n\n\n"
        "def free(self, rounds):\n"
        "    free_P = torch.ones(self.layout.size)\n"
        "    for name, factors in self.layout.factors(free_P).items():\n"
        f"        if {which}:\n"
        "            for factor in factors:\n"
        "                factor.zero_()\n"
        "    return free_P.repeat(len(rounds), 1)\n\n\n"
        "Course.free = free"
    )


def moving(which: str, rate: str) -> str:
    """Code that lets some weights of the base follow their gradient, step by step."""
    return (
        "import torch\n\nfrom weft.training.fit import Shared\n\n"
        "grad, estimate = torch.autograd.grad, Shared.estimate\n\n\n"
        "def go_on(self, points):\n"
        "    named = self.grounds[0].base.model.named_parameters()\n"
        f"    some = [p.requires_grad_() for n, p in named if {which}]\n\n"
        "    def follow(loss, theta):\n"
        "        first, *others = grad(loss, [theta, *some])\n"
        "        for p, g in zip(some, others):\n"
        f"            p.data -= {rate} * g\n"
        "        return (first,)\n\n"
        "    torch.autograd.grad = follow\n"
        "    try:\n"
        "        return estimate(self, points)\n"
        "    finally:\n"
        "        torch.autograd.grad = grad\n\n\n"
        "Shared.estimate = go_on"
    )


TRAINING = (
    single(
        "F31",
        "every module, in code",
        CONTINUED,
        CONTINUED.patched(woven(still("name"))),
        rungs=FROZEN,
    ),
    single(
        "F31",
        "three layers of six, in code",
        CONTINUED,
        CONTINUED.patched(woven(still('any(f".{n}." in name for n in range(3))'))),
        rungs=FROZEN,
    ),
    single(
        "F32",
        "the whole base, in code",
        CONTINUED,
        CONTINUED.patched(woven(moving('"layers" in n', "1e-4"))),
        fails=True,
    ),
    single(
        "F32",
        "one norm, in code",
        CONTINUED,
        CONTINUED.patched(woven(moving('n == "model.norm.weight"', "1e-2"))),
        fails=True,
        place="norm|base",
    ),
    single(
        "F34a",
        "micro-batches of 2, in code",
        WOVEN,
        WOVEN.patched(
            woven(
                "import numpy as np\n\nfrom weft.engines.scorer import LocalScorer\n"
                "from weft.methods.estimate import Gradient\n\n\n"
                "def gradient(self, theta_LP, batches, keys):\n"
                "    parts = [\n"
                "        self.gradient_sums(theta_LP, micro, keys).over(self.counts(micro))\n"
                "        for micro in self._micro(batches)\n"
                "    ]\n"
                "    return Gradient(\n"
                "        sum(part.gradient_LP for part in parts) / len(parts),\n"
                "        tuple(np.mean([part.loss_L for part in parts], axis=0).tolist()),\n"
                "    )\n\n\n"
                "LocalScorer.gradient = gradient"
            )
        ),
    ),
)

OWN = (*ADAPTER, *BASE, *DECODING, *SAMPLING, *TRAINING)
