"""Training steps of two plain PEFT loops that differ in one thing: which exchange makes up for it.

The loops say only what a recorder would see of them: rows, labels, losses, rates, factors.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.diagnose.proof.test_training import adapted, batches, factors
from weft.core.keys import Key
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.replica import Course, Lesson, Micro, Optimiser, Replica, Turn, Update
from weft.diagnose.proof.solve import Trial
from weft.diagnose.proof.taught import teach

RATES = (0.01, 0.02, 0.005)
ADAMW = Optimiser("adamw")


def make_adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)


def make_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def side(
    name, base, *, seed=3, data=None, rule="mean", rates=RATES, times=1.0, hide=0, attend=False,
    shift=0, merge=0, make=make_adamw, given=ADAMW, on_base=False, weaker=1.0, said=None,
):  # fmt: skip
    """A loop with PEFT, and the replica that its recording gives; `said` is a rule it declares."""
    data = batches() if data is None else data
    model = adapted(base, seed, init_lora_weights=True)
    with torch.no_grad():
        for each in model.modules():
            if hasattr(each, "lora_A"):
                each.scaling["default"] *= times
                each.lora_A["default"].weight *= weaker
    start = factors(model)
    model.train()
    model.requires_grad_(on_base)
    for key, each in model.named_parameters():
        if "lora_" in key:
            each.requires_grad_(True)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimiser = make(parameters)
    lessons, turns, reached = [], [], {}
    for step, its in enumerate(data):
        micros, asked = [], []
        for ids, mask, labels in its:
            labels = labels.copy()
            labels[:, : 4 + hide] = -100
            mask = np.ones_like(mask) if attend else mask
            at = np.arange(ids.shape[1])[None].repeat(len(ids), 0) + shift * (mask != 0).cumsum(1)
            asked.append((ids, mask, labels, at))
        counts = [int((labels[:, 1:] >= 0).sum()) for _, _, labels, _ in asked]
        for (ids, mask, labels, at), own in zip(asked, counts, strict=True):
            out = model(
                input_ids=torch.from_numpy(ids),
                attention_mask=torch.from_numpy(mask),
                position_ids=torch.from_numpy(at),
                labels=torch.from_numpy(labels),
            )
            total = out.loss * own
            loss = {
                "mean": total / own / len(its),
                "mean-each": total / own,
                "tokens": total / sum(counts),
                "sum": total,
            }[rule]
            loss.backward()
            micros.append(Micro(ids, labels, mask, at, float(loss.detach())))
        for group in optimiser.param_groups:
            group["lr"] = rates[step]
        optimiser.step()
        optimiser.zero_grad()
        lessons.append(Lesson(tuple(micros), rates[step]))
        if step + 1 == merge:
            with torch.no_grad():
                for each in model.modules():
                    if hasattr(each, "lora_A"):
                        a, b = each.lora_A["default"].weight, each.lora_B["default"].weight
                        each.base_layer.weight += each.scaling["default"] * b @ a
                        b.zero_()
            turns.append(Turn("merge", merge, factors(model)))
            optimiser = make(parameters)
        else:
            reached[step + 1] = factors(model)
    taught = Course(
        start, tuple(lessons), said or "mean", optimiser=given, trains_base=on_base,
        turns=tuple(turns), reached=reached,
    )  # fmt: skip
    return Replica(name, base, course=taught)


def shuffled():
    data = batches()
    return [data[2], data[0], data[1]]


CASES = {
    "labels": {"hide": 2},
    "order": {"data": shuffled()},
    "normaliser": {"rule": "sum", "make": make_sgd, "given": Optimiser("sgd")},
    "schedule": {"rates": (0.01, 0.002, 0.02)},
    "optimiser": {"make": make_sgd, "given": Optimiser("sgd")},
    "mask": {"attend": True},
    "positions": {"shift": 2},
    "scale": {"times": 4.0},
    "init": {"weaker": 0.05},
    "trainable": {"on_base": True},
}
ALIKE = {"normaliser": {"make": make_sgd, "given": Optimiser("sgd")}}
"""What A has in common with B: AdamW gives the same steps of losses that are a constant apart."""


def tried(base, factor, *suspects):
    a, b = side("A", base, **ALIKE.get(factor, {})), side("B", base, **CASES[factor])
    return teach(Engine(), a, b, [Trial(each) for each in suspects], Key.of(0), lambda _: None)


@pytest.mark.parametrize("factor", CASES)
def test_what_differs_is_proven_by_its_exchange(factor, base_on_disk):
    taught = tried(base_on_disk(), factor, factor)
    assert taught.holds == (True, True), taught.words
    solved = taught.solved
    assert solved.gap > 100 * solved.floor
    (shown,) = solved.accepted
    assert shown.trial.factor == factor
    assert solved.confidence(shown) == "proven"
    assert solved.left <= 3 * solved.floor


@pytest.mark.parametrize("factor", ["labels", "normaliser", "schedule", "trainable"])
def test_what_differs_is_found_though_nobody_suspects_it(factor, base_on_disk):
    solved = tried(base_on_disk(), factor).solved
    assert [shown.trial.factor for shown in solved.accepted] == [factor]
    assert solved.confidence(solved.accepted[0]) == "proven"


@pytest.mark.parametrize("factor", ["labels", "order", "mask", "init"])
def test_a_suspect_in_which_the_loops_do_not_differ_is_cleared(factor, base_on_disk):
    """The optimiser is suspected; what really differs is found beside it."""
    solved = tried(base_on_disk(), factor, "optimiser").solved
    assert [shown.trial.factor for shown in solved.accepted] == [factor]


def test_a_merge_after_a_step_is_the_schedule(base_on_disk):
    base = base_on_disk()
    a, b = side("A", base), side("B", base, merge=1)
    taught = teach(Engine(), a, b, [Trial("schedule", step=1)], Key.of(0), lambda _: None)
    assert taught.holds == (True, True), taught.words
    (shown,) = taught.solved.accepted
    assert shown.trial.factor == "schedule"
    assert taught.solved.confidence(shown) == "proven"


def test_two_things_that_differ_are_both_needed(base_on_disk):
    base = base_on_disk()
    a, b = side("A", base), side("B", base, hide=2, weaker=0.05)
    solved = teach(Engine(), a, b, [Trial("labels")], Key.of(0), lambda _: None).solved
    assert {shown.trial.factor for shown in solved.accepted} == {"labels", "init"}
    assert all(solved.confidence(shown) == "proven" for shown in solved.accepted)
    assert solved.closed


def test_the_rule_that_a_loop_declares_gives_way_to_the_one_that_its_losses_tell(base_on_disk):
    base = base_on_disk()
    a = side("A", base, said="sum")  # it divides by tokens, whatever it says
    b = side("B", base, rule="tokens", said="mean")
    taught = teach(Engine(), a, b, [], Key.of(0), lambda _: None)
    assert taught.a.course.normaliser == "mean" and taught.b.course.normaliser == "tokens"
    assert [shown.trial.factor for shown in taught.solved.accepted] == ["normaliser"]


def test_a_loop_that_its_recording_does_not_explain_is_said(base_on_disk):
    """B's recorded adapter is of another loop."""
    base = base_on_disk()
    a, b = side("A", base), side("B", base, weaker=0.05)
    moved = {
        step: {name: Update(-u.a_RI, u.b_OR, u.scale) for name, u in its.items()}
        for step, its in b.course.reached.items()
    }
    b = b.with_(course=replace(b.course, reached=moved))
    taught = teach(Engine(), a, b, [Trial("init")], Key.of(0), lambda _: None)
    assert taught.holds == (True, False)
    assert "trains otherwise than its recording explains" in taught.words[1]


def test_what_was_drawn_is_one_cause_where_a_seed_is_suspected(base_on_disk):
    """Another start of the same size, and another order: nothing else was drawn."""
    base = base_on_disk()
    a, b = side("A", base), side("B", base, seed=4, data=shuffled())
    solved = teach(Engine(), a, b, [Trial("seed")], Key.of(0), lambda _: None).solved
    assert [shown.trial.factor for shown in solved.accepted] == ["seed"]
    assert solved.confidence(solved.accepted[0]) == "proven"


def test_a_weaker_start_is_not_what_a_seed_draws(base_on_disk):
    base = base_on_disk()
    a, b = side("A", base), side("B", base, seed=4, weaker=0.05, data=shuffled())
    suspects = [Trial("seed"), Trial("init")]
    solved = teach(Engine(), a, b, suspects, Key.of(0), lambda _: None).solved
    assert {shown.trial.factor for shown in solved.accepted} == {"seed", "init"}
    assert all(solved.confidence(shown) == "proven" for shown in solved.accepted)


def test_two_equal_loops_have_no_cause(base_on_disk):
    base = base_on_disk()
    solved = teach(Engine(), side("A", base), side("B", base), [], Key.of(0), lambda _: None).solved
    assert solved.gap <= solved.floor and not solved.accepted


def test_sides_without_training_are_taught_nothing(base_on_disk):
    base = base_on_disk()
    plain = Replica("A", base)
    assert teach(Engine(), plain, side("B", base), [], Key.of(0), lambda _: None) is None
