"""Sides whose recordings are made by plain PyTorch loops: what exchanging shows of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.evidence import Side
from tests.unit.diagnose.proof.conftest import updates
from weft.core.keys import Key
from weft.diagnose.finding import Cause, Diagnosis, Finding, Swap
from weft.diagnose.proof.build import build
from weft.diagnose.proof.forward import Engine, woven
from weft.diagnose.proof.local import made, placed
from weft.diagnose.proof.prove import prove
from weft.diagnose.sides.evidence import Pair
from weft.runs.evidence import AdapterModule, Snapshot, Weights

PROMPTS = [(5, 17, 80, 3), (44, 9, 9, 61, 7, 2), (30, 12, 55)]
COUNT = 5


@torch.no_grad()
def record(
    base, *, scale=2.0, seen=None, lost=False, prompts=PROMPTS, shift=0, forced=None, attached=True
):
    """A greedy loop, and what a recorder leaves of it; `seen` is what is recorded as its scale."""
    model = AutoModelForCausalLM.from_pretrained(base.load).eval()
    adapter = updates(model, "q_proj down_proj", scale) if attached else {}
    side = Side()
    side.add(Weights(model="model-0", name="base", load=base.load, dtype="float32"))
    if attached:
        modules = {}
        for name, each in adapter.items():
            side.arrays[f"a {name}"], side.arrays[f"b {name}"] = each.a_RI, each.b_OR
            modules[name] = AdapterModule(
                rank=3, shape=(each.b_OR.shape[0], each.a_RI.shape[1]), scale=seen or scale,
                seen_scale=seen or scale, norm_a=1, norm_b=1, norm_update=1, digest_a="",
                digest_b="", a=f"a {name}", b=f"b {name}",
            )  # fmt: skip
        side.add(Snapshot(model="model-0", when="use", style="peft", modules=modules))
    index = 0
    with woven(model, adapter):
        for prompt in prompts:
            fed, cache, tokens, passes, reached = list(prompt), None, [], [], 0
            for step in range(COUNT):
                at = torch.arange(reached, reached + len(fed))[None] + (shift if step else 0)
                at = torch.zeros_like(at) if lost and step else at
                past = None if lost else cache
                out = model(
                    torch.tensor([fed]), position_ids=at, past_key_values=past, use_cache=True
                )
                logits = out.logits[0, -1:].numpy()
                side.forward(
                    [fed], phase="decode" if step else "prefill", past=reached if past else 0,
                    positions=at.numpy(), logits=logits,
                )  # fmt: skip
                passes.append(index)
                index += 1
                reached += len(fed)
                cache, fed = out.past_key_values, [int(logits.argmax())]
                tokens += fed
            side.generation([prompt], [tokens], passes, settings={"greedy": True})
    return side.evidence


def suspect(*factors):
    """What a ladder would hand over."""
    findings = [
        Finding(5, "factor", label, "place", f"a difference in {factor}", swap=Swap(factor))
        for label, factor in factors
    ]
    causes = tuple(Cause(each, "located") for each in findings)
    return Diagnosis("a", "b", "different", "words", causes)


def proved(a, b, *factors):
    return prove(Pair(a, b), suspect(*factors))


def test_scale_is_proven_in_both_directions(base_on_disk):
    found = proved(record(base_on_disk()), record(base_on_disk(), scale=6.0), ("scale", "scale"))
    (cause,) = found.causes
    assert cause.confidence == "proven"
    assert cause.gap_closed == pytest.approx(1, abs=1e-3)
    assert cause.reproduces == pytest.approx(1, abs=1e-3)
    assert "A's replica reproduces its recording" in " ".join(found.ruled_out)
    assert found.forwards > 5 and len(cause.proof) == 2


def test_second_cause_behind_the_first_is_found_though_nobody_suspected_it(base_on_disk):
    base = base_on_disk()
    found = proved(record(base), record(base, scale=6.0, lost=True), ("scale", "scale"))
    assert {cause.finding.label for cause in found.causes} == {"scale", "cache"}
    assert all(cause.confidence == "proven" for cause in found.causes)
    assert sum(cause.gap_closed for cause in found.causes) == pytest.approx(1, abs=1e-3)


def test_difference_that_changes_nothing_is_harmless(base_on_disk):
    base = base_on_disk()
    found = proved(record(base), record(base, lost=True), ("scale", "scale"), ("cache", "context"))
    assert [cause.finding.label for cause in found.causes] == ["cache"]
    assert found.causes[0].confidence == "proven"


def test_sides_that_are_the_same_have_no_cause(base_on_disk):
    base = base_on_disk()
    same = replace(suspect(), verdict="same")
    found = prove(Pair(record(base), record(base)), same)
    assert found.verdict == "same" and not found.causes


def test_positions_of_decoding_are_told_from_lost_context(base_on_disk):
    base = base_on_disk()
    found = proved(record(base), record(base, shift=1), ("cache", "context"))
    (cause,) = found.causes
    assert (cause.finding.label, cause.confidence) == ("cache-pos", "proven")


def test_what_a_recording_does_not_say_is_guessed_and_then_proven(base_on_disk):
    """B multiplies by 6, and whoever looked at its modules saw 2."""
    base = base_on_disk()
    found = proved(record(base), record(base, scale=6.0, seen=2.0))
    (cause,) = found.causes
    assert cause.finding.label == "scale"
    assert cause.confidence == "proven"
    assert "which its recording does not say" in cause.finding.words


def test_adapter_that_is_not_there_opens_and_closes_the_gap(base_on_disk):
    base = base_on_disk()
    found = proved(record(base), record(base, attached=False), ("attach", "attach"))
    (cause,) = found.causes
    assert cause.confidence == "proven" and cause.reproduces == pytest.approx(1, abs=1e-3)


def test_nothing_is_proven_of_a_side_that_nothing_explains(base_on_disk):
    """B's recorded distributions are of no replica: exchanging shows no more than support."""
    base = base_on_disk()
    b = record(base, scale=6.0)
    drawn = np.random.default_rng(1)

    def array(name):
        kept = b.array(name)
        return kept + drawn.standard_normal(kept.shape) if name.endswith("logits") else kept

    found = proved(record(base), replace(b, array=array), ("scale", "scale"))
    assert [cause.confidence for cause in found.causes] == ["supported"]
    assert any("does not explain" in words for words in found.not_checked)


def test_base_that_cannot_be_loaded_leaves_causes_as_they_were(base_on_disk, tmp_path):
    base = base_on_disk()
    a, b = record(base), record(base, scale=6.0)
    gone = tuple(
        each.model_copy(update={"load": str(tmp_path / "gone")})
        if isinstance(each, Weights)
        else each
        for each in b.events
    )
    found = proved(a, replace(b, events=gone), ("scale", "scale"))
    assert [cause.confidence for cause in found.causes] == ["located"]
    assert any("cannot be loaded" in words for words in found.not_checked)


def test_a_difference_that_no_exchange_explains_has_the_place_that_makes_it(base_on_disk):
    base = base_on_disk()
    found = replace(suspect(), causes=(Cause(unexplained(), "unresolved"),))
    a, b = record(base), record(base, scale=6.0)
    engine, built = Engine(), build(Pair(a, b), Engine())
    error = made(engine, built.a, built.b, Key.of(0))
    assert error is not None and error.place == "model.layers.0"
    (cause,) = (placed(each, error) for each in found.causes)
    assert cause.finding.place == "model.layers.0"
    assert "given A's hidden states, B first computes otherwise" in cause.finding.words


def unexplained():
    return Finding(7, "effect", "unknown", "logits", "distributions differ")
