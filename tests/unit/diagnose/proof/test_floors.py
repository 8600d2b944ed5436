"""The noise of proofs: transforms that must not matter, drawn where the sides differ in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.evidence import Side
from weft.core.keys import Key
from weft.diagnose.proof.build import build
from weft.diagnose.proof.feeding import padded, readings
from weft.diagnose.proof.floors import FAILED, NATS, reading_floor
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.measures import Measure, mean_kl, predicted
from weft.diagnose.proof.replica import Context, Replica, Row
from weft.diagnose.sides.evidence import Pair
from weft.runs.evidence import Weights

PROMPTS = [(5, 17, 80, 3), (44, 9, 9, 61, 7, 2), (30, 12, 55)]
TOKENS = (7, 33, 12)
KEY = Key.of(0)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("pad", [(3, 0), (0, 4), (2, 2)])
@pytest.mark.parametrize("limited", [False, True])
def test_padding_that_is_closed_changes_nothing(architecture, pad, limited, base_on_disk):
    """Beside one plain forward on the text alone, or step by step where each sees two tokens."""
    base = base_on_disk(architecture)
    model = AutoModelForCausalLM.from_pretrained(base.load).eval()
    context = Context(visible=(1, 2), origin="on") if limited else Context()
    (read,) = readings(Row(PROMPTS[0]), context, TOKENS)
    made = Engine().logits(base, {}, [padded(read, *pad)])[0]
    if limited:
        expected = Engine().logits(base, {}, [read])[0]
    else:
        expected = model(torch.tensor([[*PROMPTS[0], *TOKENS]])).logits[0, 3:]
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def record(base, *, batched, left=0):
    side = Side()
    side.add(Weights(model="model-0", name="base", load=base.load, dtype="float32"))
    width = max(map(len, PROMPTS)) + left
    rows = [[0] * (width - len(p)) + list(p) for p in PROMPTS] if batched else PROMPTS
    calls = [rows] if batched else [[row] for row in rows]
    for call in calls:
        mask = [[int(token != 0) for token in row] for row in call]
        side.forward(call, mask=np.array(mask))
    return side.evidence


def test_nulls_are_those_in_which_the_sides_differ(base_on_disk):
    base = base_on_disk()
    alone, together = record(base, batched=False), record(base, batched=True)
    assert build(Pair(alone, alone), Engine()).nulls == frozenset()
    assert build(Pair(alone, together), Engine()).nulls == {"split", "left"}
    wider = record(base, batched=True, left=2)
    assert build(Pair(together, wider), Engine()).nulls == {"left"}


def floor(base, *nulls, **changes):
    rows = tuple(Row(prompt) for prompt in PROMPTS)
    a = Replica("A", base, rows=rows).with_(**changes)
    return reading_floor(Engine(), a, a, Measure.of(a, a), KEY, nulls=nulls)


def test_every_null_is_one_draw_more(base_on_disk):
    base = base_on_disk()
    plain, more = floor(base), floor(base, "split", "left", "right")
    assert len(more.draws) == len(plain.draws) + 3
    assert more.failed == () and max(more.draws[-3:]) < 1e-8


def test_a_draw_in_16_bits_is_the_distance_of_two_forwards(base_on_disk):
    base = base_on_disk(dtype="bfloat16")
    rows = tuple(Row(prompt) for prompt in PROMPTS)
    a = Replica("A", base, rows=rows)
    measure, engine = Measure.of(a, a), Engine()
    plain, wide = (predicted(engine, a, measure, pad=pad) for pad in ((0, 0), (5, 0)))
    assert floor(base, "left").draws[-1] == pytest.approx(mean_kl(plain, wide))


def test_a_null_that_matters_in_float32_is_told_and_gives_no_slack(base_on_disk, monkeypatch):
    """A model to which closed columns matter, as a recurrent one would be."""
    base = base_on_disk()

    def attended(reading, left, right):
        made = padded(reading, left, right)
        return replace(made, open_T=np.ones(len(made), bool))

    monkeypatch.setattr("weft.diagnose.proof.measures.padded", attended)
    found = floor(base, "left")
    assert len(found.failed) == 1 and "padding before prompts" in found.failed[0]
    assert found.value <= FAILED and NATS <= found.draws[-1] <= FAILED
