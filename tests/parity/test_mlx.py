"""Adapters that were trained by mlx-lm and by Weft are the same function in the other one.

What was measured is printed (`pytest -rP`). All in float32, on the bundled base.
"""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import weft
from weft.core.batch import Batch, Example
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.tokenizer import load_tokenizer, resolve_base
from weft.data.tokens import decode_completion
from weft.engines.local import LocalEngine
from weft.engines.registry import open_engine
from weft.formats.registry import FORMATS, read_any
from weft.model.bank import Bank
from weft.model.base import load_config
from weft.model.decoding import Decoding
from weft.model.forward import make_rows, target_logits
from weft.model.rows import Block
from weft.model.weaving import Weft

pytest.importorskip("mlx_lm", reason="the extra weft[mlx] is not installed")
import mlx.core as mx
import mlx_lm
from mlx_lm.lora import CONFIG_DEFAULTS
from mlx_lm.lora import run as mlx_lm_lora

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what mlx-lm trains with
]

TOLERANCE = 1e-5
"""Largest difference of a logit, as a share of the largest logit."""
PROMPTS, TOKENS = 20, 64
ROUNDING = 1e-4
"""Margin between the two best logits that rounding explains: logits are of size 10."""


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory) -> str:
    """The bundled base in float32: mlx-lm trains in the precision of the files."""
    directory = tmp_path_factory.mktemp("tiny")
    bundled = resolve_base("weft/tiny")
    model = AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32)
    model.save_pretrained(directory)
    load_tokenizer(bundled).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def local(base_dir) -> LocalEngine:
    return open_engine("local", base_dir)


@pytest.fixture(scope="module")
def questions(local):
    return load_splits(DataConfig(task="tables"), local.tokenizer, ("train", "valid"))


@pytest.fixture(scope="module")
def trained_by_mlx_lm(base_dir, questions, tmp_path_factory) -> Path:
    """A short `mlx_lm.lora --train` with its own defaults, on rows of questions about tables."""
    root = tmp_path_factory.mktemp("mlx_lm")
    for name, rows in (("train", 40), ("valid", 4)):
        items = questions[name].items[:rows]
        lines = [json.dumps({"text": item.prompt + item.reference}) for item in items]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    settings = {
        "model": base_dir,
        "data": str(root),
        "train": True,
        "iters": 10,
        "val_batches": 1,
        "num_layers": -1,
        "learning_rate": 3e-4,
        "adapter_path": str(root / "adapters"),
    }
    mlx_lm_lora(types.SimpleNamespace(**CONFIG_DEFAULTS | settings))
    return root / "adapters"


@pytest.fixture(scope="module")
def trained_by_weft(base_dir, tmp_path_factory):
    """A short run of the recipe."""
    root = tmp_path_factory.mktemp("weft") / "run"
    few = [
        "steps=40",
        "batch_size=8",
        "optimiser.lr=3e-4",
        "keep=last",
        "eval.every=0",
        "eval.rows=4",
    ]
    weft.train("tables", [f"base={base_dir}", *few], root)
    return root


def fp32(model):
    model.set_dtype(mx.float32)
    return model.eval()


def logits_after_every_token(base, adapter, ids):
    """Weft's logits [T - 1, V]."""
    rows = make_rows(base, [Block(0, 1, Batch((Example("", ids, ids),)))])
    with torch.inference_mode():
        return target_logits(base, Weft(Bank.of({"one": adapter})), rows).numpy()


def check_logits(local, adapter, model, rows):
    """Weft's logits are those of a model of mlx-lm's; the adapter changes them far more."""
    worst = effect = largest = 0.0
    for ids in rows:
        ours = logits_after_every_token(local.base, adapter, ids)
        theirs = np.array(model(mx.array(ids)[None])[0, :-1])
        worst = max(worst, float(np.abs(ours - theirs).max()))
        largest = max(largest, float(np.abs(theirs).max()))
        bare = logits_after_every_token(local.base, None, ids)
        effect = max(effect, float(np.abs(ours - bare).max()))
    print(f"largest difference {worst:.2g}, largest logit {largest:.3g}, effect {effect:.3g}")
    assert worst <= TOLERANCE * largest
    assert effect > 1000 * worst


def test_an_adapter_that_mlx_lm_trained_is_the_same_function_in_weft(
    base_dir, local, questions, trained_by_mlx_lm
):
    read = read_any(trained_by_mlx_lm, local.sites, base_config=load_config(base_dir))
    assert read.format == "mlx"
    model = mlx_lm.load(base_dir, adapter_path=str(trained_by_mlx_lm))[0]
    rows = [example.ids_T for example in questions["valid"].examples[:PROMPTS]]
    check_logits(local, read.adapter, fp32(model), rows)
    bank = Bank.of({"trained": read.adapter, "base": None})
    (trained, base) = local.score(bank, Batch(questions["valid"].examples[:50])).loss_NE.sum(1)
    print(f"loss of the responses: {base / 50:.3f} a row before, {trained / 50:.3f} after")
    assert trained < base


def test_an_adapter_that_mlx_lm_trained_is_imported_with_a_certificate(
    base_dir, trained_by_mlx_lm, tmp_path
):
    certificate = weft.import_adapter(trained_by_mlx_lm, tmp_path / "mine", base=base_dir)
    found = certificate.logits
    print(f"largest difference {found.largest_difference}, largest logit {found.largest_logit:.3g}")
    assert certificate.holds and found.largest_difference <= TOLERANCE
    assert FORMATS["peft"].detect(tmp_path / "mine")


def test_an_adapter_that_weft_trained_says_the_same_in_mlx_lm(
    base_dir, local, questions, trained_by_weft, tmp_path
):
    weft.export_adapter(trained_by_weft, "mlx", tmp_path / "mlx")
    written = read_any(tmp_path / "mlx", local.sites, base_config=load_config(base_dir))
    model, tokenizer = mlx_lm.load(base_dir, adapter_path=str(tmp_path / "mlx"))
    fp32(model)
    rows = [item.example.ids_T for item in questions["valid"].items[:PROMPTS]]
    check_logits(local, written.adapter, model, rows)
    # instructions, which are followed at length; answers to questions about tables are short
    asked = load_splits(DataConfig(task="instruct"), local.tokenizer, ("valid",))["valid"]
    prompts = [item.prompt_ids for item in asked.items[:PROMPTS]]
    bank = Bank.of({"trained": read_any(trained_by_weft / "adapter", local.sites).adapter})
    decoding = Decoding(max_tokens=TOKENS)
    (ours,) = local.generate(bank, prompts, decoding)
    (in_mlx,) = open_engine("mlx", base_dir).generate(bank, prompts, decoding)
    flips = []
    for prompt, mine, engine in zip(prompts, ours, in_mlx, strict=True):
        told = list(mlx_lm.stream_generate(model, tokenizer, prompt.tolist(), max_tokens=TOKENS))
        theirs = [part.token for part in told]
        theirs = theirs[:-1] if theirs[-1] in tokenizer.eos_token_ids else theirs
        assert list(engine.ids) == theirs, "the MLX engine makes mlx-lm's own calls"
        text = "".join(part.text for part in told)
        said = decode_completion(local.tokenizer, prompt, theirs)
        assert text == said.removeprefix(" ")  # mlx-lm leaves out the space after the prompt
        if list(mine.ids) != theirs:
            flips.append(margin_where_they_part(local, bank, prompt, mine.ids, theirs))
    lengths = [len(text.ids) for text in ours]
    print(f"{PROMPTS - len(flips)} of {PROMPTS} texts equal, {sum(lengths)} tokens; flips: {flips}")
    print("for one:", decode_completion(local.tokenizer, prompts[0], ours[0].ids))
    assert np.mean(lengths) > TOKENS / 2
    assert all(margin < ROUNDING for margin in flips)


def margin_where_they_part(local, bank, prompt, mine, theirs):
    """Between the two best logits at the first token that differs."""
    ends = zip(mine, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(ends) if a != b), min(len(mine), len(theirs)))
    whole = np.array([*prompt, *mine[:at], 0])
    rows = make_rows(local.base, [Block(0, 1, Batch((Example("", whole, whole),)))])
    with torch.inference_mode():
        best = target_logits(local.base, Weft(bank), rows)[-1].topk(2).values
    return float(best[0] - best[1])
