"""A gap in 16 bits, measured again in float32: rounding goes, what differs in meaning stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.evidence import Side
from tests.unit.diagnose.proof.conftest import updates
from weft.core.keys import Key
from weft.diagnose.proof.build import build
from weft.diagnose.proof.forward import Engine, woven
from weft.diagnose.proof.prove import _precision
from weft.diagnose.proof.reading import read
from weft.diagnose.proof.solve import Trial
from weft.diagnose.sides.evidence import Pair
from weft.runs.evidence import AdapterModule, Snapshot, Weights

PROMPTS = [(5, 17, 80, 3), (44, 9, 9, 61, 7, 2), (30, 12, 55)]


@pytest.fixture(scope="module")
def lively(base_on_disk, tmp_path_factory):
    """A base whose layers do much, so that 16 bits round much."""
    model = AutoModelForCausalLM.from_pretrained(base_on_disk().load)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if (each.ndim == 2 and ".layers." in name) or name == "model.norm.weight":
                each *= 8
    where = tmp_path_factory.mktemp("lively")
    model.save_pretrained(where)
    return replace(base_on_disk(), load=str(where))


@torch.no_grad()
def side(base, dtype, scale):
    """Prompts read by a plain model, with an adapter beside it."""
    model = AutoModelForCausalLM.from_pretrained(base.load, dtype=dtype).eval()
    adapter = updates(model, "q_proj down_proj", scale)
    made = Side()
    made.add(Weights(model="model-0", name="base", load=base.load, dtype=dtype))
    modules = {}
    for name, each in adapter.items():
        made.arrays[f"a {name}"], made.arrays[f"b {name}"] = each.a_RI, each.b_OR
        modules[name] = AdapterModule(
            rank=3, shape=(each.b_OR.shape[0], each.a_RI.shape[1]), scale=scale, seen_scale=scale,
            norm_a=1, norm_b=1, norm_update=1, digest_a="", digest_b="", a=f"a {name}",
            b=f"b {name}",
        )  # fmt: skip
    made.add(Snapshot(model="model-0", when="use", style="peft", modules=modules))
    with woven(model, adapter):
        for prompt in PROMPTS:
            logits = model(torch.tensor([prompt])).logits[0, -1:].float().numpy()
            made.forward([prompt], logits=logits, dtype=dtype)
    return made.evidence


def tried(a, b, *suspects):
    engine = Engine()
    built = build(Pair(a, b), engine)
    trials = [Trial(each) for each in suspects]
    return read(engine, built, trials, Key.of(0), lambda _: None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_gone_in_float32(dtype, lively):
    found = tried(side(lively, "float32", 2.0), side(lively, dtype, 2.0), "dtype")
    assert found.solved.gap > found.floor.value
    assert found.in_float32 < 0.2 * found.solved.gap
    assert "it is rounding" in _precision(found.in_float32, found.solved.gap)
    assert [shown.trial.factor for shown in found.solved.accepted] == ["dtype"]


def test_another_scale_is_there_in_float32_as_well(lively):
    found = tried(side(lively, "float32", 2.0), side(lively, "bfloat16", 6.0), "dtype", "scale")
    assert found.in_float32 > 0.5 * found.solved.gap
    assert "it is not rounding" in _precision(found.in_float32, found.solved.gap)
    assert "scale" in [shown.trial.factor for shown in found.solved.accepted]


def test_where_no_base_is_in_16_bits_nothing_is_measured_again(lively):
    found = tried(side(lively, "float32", 2.0), side(lively, "float32", 6.0), "scale")
    assert found.solved.gap > found.floor.value and found.in_float32 is None


@pytest.mark.parametrize(
    ("share", "words"), [(0.1, "it is rounding"), (0.3, "in part"), (0.7, "it is not rounding")]
)
def test_shares_are_told_as_the_reference_tells_them(share, words):
    assert _precision(share * 0.02, 0.02).endswith(words)
