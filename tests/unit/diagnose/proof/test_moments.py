"""Scripts whose weights change between prompts: every row is read with what there was then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.evidence import Side
from tests.unit.diagnose.proof.conftest import updates
from weft.diagnose.finding import Cause, Diagnosis, Finding, Swap
from weft.diagnose.proof.build import build
from weft.diagnose.proof.forward import Engine, merge, woven
from weft.diagnose.proof.measures import Measure, predicted
from weft.diagnose.proof.merges import agrees, named, told_apart
from weft.diagnose.proof.prove import prove
from weft.diagnose.proof.replica import Moment, Update
from weft.diagnose.proof.swaps import SWAPS
from weft.diagnose.sides.evidence import Pair
from weft.runs.evidence import AdapterModule, Happened, Snapshot, TensorSeen, Weights

BEFORE, AFTER = [(5, 17, 80, 3), (44, 9, 9, 61)], [(30, 12, 55), (2, 71, 8)]


@torch.no_grad()
def record(base, *, scale=2.0, keeps=False, size=1.0, merges=True, beside=True):
    """Prompts are read, the update is merged by hand, and others are read.

    `keeps`: it stays active beside the base. Without `beside` nothing is read before the merge.
    """
    model = AutoModelForCausalLM.from_pretrained(base.load, dtype=base.dtype).eval()
    adapter = updates(model, "q_proj down_proj", scale)
    adapter = {name: replace(each, b_OR=each.b_OR * size) for name, each in adapter.items()}
    side = Side()
    weights(side, model, base, {})
    snapshot(side, adapter, merged=False)
    if beside:
        read(side, model, adapter, BEFORE)
    if merges:
        held = {}
        for name, each in adapter.items():
            weight = model.get_submodule(name).weight
            weight.copy_(merge(weight, each))
            held[f"{name}.weight"] = weight.float().numpy().copy()
        side.add(Happened(what="merge", step=0))
        weights(side, model, base, held)
        if not keeps:
            snapshot(side, adapter, merged=True)
    read(side, model, adapter if keeps or not merges else {}, AFTER)
    return side.evidence


def weights(side, model, base, held):
    names = held or dict(model.named_parameters())
    for name, array in held.items():
        side.arrays[f"changed {name}"] = array
    side.add(
        Weights(
            model="model-0", name="base", load=base.load, dtype=base.dtype,
            tensors={
                n: TensorSeen(shape=tuple(p.shape), dtype=base.dtype, norm=1.0,
                              digest=str(float(p.double().square().sum())).zfill(16))
                for n, p in model.named_parameters() if n in names
            },
            changed={name: f"changed {name}" for name in held},
        )
    )  # fmt: skip


def snapshot(side, adapter, *, merged):
    modules = {}
    for name, each in adapter.items():
        side.arrays[f"a {name}"], side.arrays[f"b {name}"] = each.a_RI, each.b_OR
        modules[name] = AdapterModule(
            rank=3, shape=(each.b_OR.shape[0], each.a_RI.shape[1]), scale=each.scale,
            seen_scale=0.0 if merged else each.scale, merged=merged, norm_a=1, norm_b=1,
            norm_update=1, digest_a="", digest_b="", a=f"a {name}", b=f"b {name}",
        )  # fmt: skip
    when = "merge" if merged else "use"
    side.add(Snapshot(model="model-0", when=when, style="peft", modules=modules))


def read(side, model, adapter, prompts):
    with woven(model, adapter):
        for prompt in prompts:
            logits = model(torch.tensor([prompt])).logits[0, -1:].float().numpy()
            side.forward([prompt], logits=logits, dtype=side.events[0].dtype)


def suspect(label, factor):
    finding = Finding(5, "factor", label, "place", "a difference", swap=Swap(factor))
    return Diagnosis("a", "b", "different", "words", (Cause(finding, "located"),))


def test_rows_before_and_after_a_merge_are_of_two_moments(base_on_disk):
    base = base_on_disk()
    built = build(Pair(record(base), record(base, scale=3.0)), Engine())
    assert [row.moment for row in built.a.rows] == [0, 0, 1, 1]
    before, after = built.a.moments
    assert not before.base.merged and before.adapter.keys() == after.base.merged.keys()
    assert {each.scale for each in before.adapter.values()} == {2.0}
    assert {each.scale for each in after.base.merged.values()} == {2.0}
    assert not after.base.changed and not any(each.scale for each in after.adapter.values())


@pytest.mark.parametrize("keeps", [False, True])
def test_every_moment_predicts_what_a_plain_loop_recorded(keeps, base_on_disk):
    pair = Pair(record(base_on_disk(), keeps=keeps), record(base_on_disk(), keeps=keeps))
    engine = Engine()
    built = build(pair, engine)
    made = predicted(engine, built.a, Measure.of(built.a, built.b))
    for log_SV, seen in zip(made, built.seen_a, strict=True):
        expected = torch.from_numpy(seen.logits_V).double().log_softmax(-1)
        torch.testing.assert_close(log_SV[-1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keeps", [False, True])
def test_scale_is_proven_of_scripts_that_merge_and_read_on(keeps, base_on_disk):
    """With `keeps`, what the merge adds acts twice, and the scale of both parts is exchanged."""
    base = base_on_disk()
    pair = Pair(record(base, keeps=keeps), record(base, scale=6.0, keeps=keeps))
    (cause,) = prove(pair, suspect("scale", "scale")).causes
    assert (cause.finding.label, cause.confidence) == ("scale", "proven")
    assert cause.gap_closed == pytest.approx(1, abs=1e-3)


def test_an_update_that_acts_beside_the_base_that_holds_it_is_applied_twice(base_on_disk):
    """Nobody told more than that the base differs."""
    base = base_on_disk()
    pair = Pair(record(base, merges=False), record(base, keeps=True))
    (cause,) = prove(pair, suspect("base", "base")).causes
    assert (cause.finding.label, cause.confidence) == ("double-apply", "proven")


def test_an_update_that_its_merge_loses_is_no_other_base(base_on_disk):
    base = base_on_disk(dtype="bfloat16")
    pair = Pair(record(base, merges=False, size=0.003), record(base, size=0.003, beside=False))
    built = build(pair, Engine())
    assert built.merge is not None and built.merge.label == "merge-precision"
    assert built.merge.value > 0.3
    diagnosis = named(suspect("base", "base"), built.merge)
    assert [cause.finding.label for cause in diagnosis.causes] == ["merge-precision"]


def test_an_update_that_survives_its_merge_is_nothing(base_on_disk):
    base = base_on_disk()
    built = build(Pair(record(base, merges=False), record(base)), Engine())
    assert built.merge is None


def test_a_base_that_was_moved_otherwise_holds_no_update(base_on_disk):
    before = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    drawn = np.random.default_rng(0)
    update = Update(
        drawn.standard_normal((2, 6)).astype(np.float32),
        drawn.standard_normal((8, 2)).astype(np.float32),
        0.5,
    )
    dense = before.numpy() + 0.5 * update.b_OR @ update.a_RI
    assert agrees(torch.from_numpy(dense), before, update)
    assert not agrees(torch.from_numpy(dense + 0.01), before, update)
    assert not agrees(before, before, update)


def test_half_an_update_of_16_bits_is_told_from_noise_of_one_unit(base_on_disk):
    drawn = np.random.default_rng(1)
    before = torch.from_numpy(drawn.standard_normal((64, 32))).bfloat16()
    tiny = Update(
        (drawn.standard_normal((2, 32)) * 0.03).astype(np.float32),
        (drawn.standard_normal((64, 2)) * 0.03).astype(np.float32),
        1.0,
    )
    merged = (before.double() + torch.from_numpy(tiny.delta_OI)).bfloat16()
    assert 0 < (merged != before).double().mean() < 0.6
    assert agrees(merged, before, tiny)
    sign = torch.from_numpy(drawn.choice([-1.0, 1.0], (64, 32)))
    nudged = (before.double() * (1 + sign * 2.0**-8)).bfloat16()
    assert not agrees(nudged, before, tiny)


def test_exchanges_reach_every_moment(base_on_disk):
    base = base_on_disk()
    engine = Engine()
    built = build(Pair(record(base), record(base, scale=6.0)), engine)
    made = SWAPS["scale"](built.b, built.a, (), None)
    for mine, its in zip(made.moments, built.a.moments, strict=True):
        for x, y in ((mine.adapter, its.adapter), (mine.base.merged, its.base.merged)):
            assert {n: u.scale for n, u in x.items()} == {n: u.scale for n, u in y.items()}
    assert told_apart(engine, built.a, made) is None
    wide = built.a.at_each(lambda number, mine: mine)
    assert wide is built.a and isinstance(wide.moments[0], Moment)
