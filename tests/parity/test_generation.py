"""The same tokens from the same weights: 200 prompts, 64 greedy tokens, in float32, with peers.

A tie within rounding may turn out either way. So where two texts part, the margin between the two
best logits there must be of the size of rounding; every such place is printed (`pytest -rP`).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weft.core.batch import Batch, Example
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.tokenizer import resolve_base
from weft.engines.local import LocalEngine
from weft.formats.registry import FORMATS
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.base import load_base
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.forward import make_rows, target_logits
from weft.model.rows import Block
from weft.model.sites import choose_sites
from weft.model.weaving import Weft

pytestmark = pytest.mark.slow

PROMPTS = 200
TOKENS = 64
ROUNDING = 1e-4
"""Logits of the bundled base are of size 10, with differences of some 1e-5 between stacks."""
GREEDY = Decoding(max_tokens=TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def base():
    return load_base("weft/tiny")


@pytest.fixture(scope="module")
def prompts(base) -> list[np.ndarray]:
    """The first prompts of every bundled task, of very different lengths."""
    found = []
    for task in ("instruct", "tables", "reviews"):
        split = load_splits(DataConfig(task=task), base.tokenizer, ("valid",))["valid"]
        found += [item.prompt_ids for item in split.items[: PROMPTS // 2]]
    return found[:: len(found) // PROMPTS][:PROMPTS]


@pytest.fixture(scope="module")
def adapter(base) -> Adapter:
    """Not trained, and strong enough to change most texts."""
    layout = choose_sites(base.sites, AdapterConfig(rank=8, scale=20, targets=("q_proj", "v_proj")))
    generator = torch.Generator().manual_seed(0)
    return Adapter(layout, torch.randn(layout.size, generator=generator) * 0.02)


@pytest.fixture(scope="module")
def said(base, adapter, prompts) -> dict[str, list[list[int]]]:
    """Weft's tokens: both members in one batched decode."""
    bank = Bank.of({"base": None, "adapter": adapter})
    members = [LocalEngine(base).generate(bank, part, GREEDY) for part in chunked(prompts, 25)]
    return {
        name: [list(text.ids) for part in members for text in part[index]]
        for index, name in enumerate(bank.members)
    }


def chunked(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


def check_same(base, adapter, prompts, ours, theirs):
    """Equal but for ties: where texts part, the two best logits are as good as equal."""
    assert len(ours) == len(theirs) == len(prompts)
    assert all(len(text) == TOKENS for text in ours)
    flips = []
    for number, (prompt, mine, other) in enumerate(zip(prompts, ours, theirs, strict=True)):
        if mine == other:
            continue
        at = next(i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
        text = np.array([*prompt, *mine[:at]])
        best = logits_after(base, adapter, text).topk(2)
        margin = float(best.values[0] - best.values[1])
        assert {mine[at], other[at]} == set(best.indices.tolist())
        flips.append((number, at, margin))
        print(f"prompt {number}, token {at}: {mine[at]} or {other[at]}, margin {margin:.2g}")
    print(f"{len(prompts) - len(flips)} of {len(prompts)} texts equal, {len(flips)} part at a tie")
    assert all(margin < ROUNDING for _, _, margin in flips)
    assert len(flips) <= PROMPTS // 50  # ties are rare; many would be a bug that hides behind them


def logits_after(base, adapter, text):
    example = Example("", np.append(text, 0), np.full(len(text) + 1, -100))
    example.labels_T[-1] = 0
    rows = make_rows(base, [Block(0, 1, Batch((example,)))])
    with torch.inference_mode():
        return target_logits(base, Weft(Bank.of({"one": adapter})), rows)[0]


@pytest.fixture(scope="module")
def folder(base, adapter, tmp_path_factory):
    """The adapter as files: a folder for each format."""
    root = tmp_path_factory.mktemp("adapter")
    for name in ("peft", "mlx"):
        FORMATS[name].write(adapter, root / name, base_ref="weft/tiny", sites=base.sites)
    return root


@pytest.mark.parametrize("who", ["base", "adapter"])
@pytest.mark.parametrize(("rows", "count"), [(1, 20), (25, PROMPTS)], ids=["alone", "left-padded"])
def test_tokens_equal_transformers_generate(who, rows, count, base, adapter, prompts, said, folder):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(resolve_base("weft/tiny"), dtype=torch.float32)
    if who == "adapter":
        model = PeftModel.from_pretrained(model, folder / "peft").eval()
    theirs = []
    for part in chunked(prompts[:count], rows):
        longest = max(map(len, part))
        ids = torch.full((len(part), longest), base.pad_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(part):
            ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, longest - len(prompt) :] = 1
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=TOKENS,
            eos_token_id=None,
            pad_token_id=base.pad_id,
        )
        theirs += out[:, longest:].tolist()
    member = adapter if who == "adapter" else None
    check_same(base, member, prompts[:count], said[who][:count], theirs)


@pytest.mark.parametrize("who", ["base", "adapter"])
@pytest.mark.parametrize(
    "count", [20, pytest.param(PROMPTS, marks=pytest.mark.long)], ids=["some", "all"]
)
def test_tokens_equal_mlx_lm(who, count, base, adapter, prompts, said, folder):
    mlx = pytest.importorskip("mlx.core")
    from mlx_lm.generate import generate_step
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load

    model, _ = load(resolve_base("weft/tiny"))
    model.set_dtype(mlx.float32)
    if who == "adapter":
        model = load_adapters(model, str(folder / "mlx"))
        model.eval()
    theirs = [
        [token for token, _ in generate_step(mlx.array(prompt), model, max_tokens=TOKENS)]
        for prompt in prompts[:count]
    ]
    member = adapter if who == "adapter" else None
    check_same(base, member, prompts[:count], said[who][:count], theirs)
