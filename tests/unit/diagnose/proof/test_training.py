"""Recorded steps, taken again, are those of plain PEFT with torch's optimiser."""

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.replica import Course, Lesson, Micro, Optimiser, Turn, Update
from weft.diagnose.proof.training import distance, learn, normalisers

STEPS, RATES = 3, (0.01, 0.02, 0.005)


def batches(seed=0, steps=STEPS, micros=2):
    drawn = np.random.default_rng(seed)
    made = []
    for _ in range(steps):
        its = []
        for n in range(micros):
            ids = drawn.integers(2, 97, (2, 9))
            mask = np.ones_like(ids)
            mask[0, : 2 + n] = 0
            labels = np.where(mask == 1, ids, -100)
            labels[:, : 4 + 2 * n] = -100
            its.append((ids, mask, labels))
        made.append(its)
    return made


def adapted(base, seed=3, **options):
    model = AutoModelForCausalLM.from_pretrained(base.load)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config)


def factors(model):
    return {
        name.removeprefix("base_model.model."): Update(
            module.lora_A["default"].weight.detach().numpy().copy(),
            module.lora_B["default"].weight.detach().numpy().copy(),
            module.scaling["default"],
        )
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def divided(rule, sums, counts):
    """The losses that a script calls backward on, as people write them."""
    total = sum(counts)
    return {
        "mean": [s / n / len(sums) for s, n in zip(sums, counts, strict=True)],
        "mean-each": [s / n for s, n in zip(sums, counts, strict=True)],
        "tokens": [s / total for s in sums],
        "sum": list(sums),
    }[rule]


def trained(base, data, rule, make, clip=None, on_base=False):
    """The plain loop: what its adapter becomes, and the losses on the way."""
    model = adapted(base)
    start = factors(model)
    if on_base:
        model.requires_grad_(True)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimiser = make(parameters)
    losses = []
    for step, its in enumerate(data):
        counts = [int((labels[:, 1:] >= 0).sum()) for _, _, labels in its]
        said = []
        for n, (ids, mask, labels) in enumerate(its):
            out = model(
                input_ids=torch.from_numpy(ids),
                attention_mask=torch.from_numpy(mask),
                labels=torch.from_numpy(labels),
            )
            sums = [0.0] * len(its)
            sums[n] = out.loss * counts[n]
            loss = divided(rule, sums, counts)[n]
            loss.backward()
            said.append(float(loss.detach()))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        for group in optimiser.param_groups:
            group["lr"] = RATES[step]
        optimiser.step()
        optimiser.zero_grad()
        losses.append(tuple(said))
    return start, factors(model), losses, model


def course(start, data, losses=None, **options):
    lessons = tuple(
        Lesson(
            tuple(
                Micro(ids, labels, mask, loss=losses[step][n] if losses else None)
                for n, (ids, mask, labels) in enumerate(its)
            ),
            RATES[step],
        )
        for step, its in enumerate(data)
    )
    return Course(start, lessons, **options)


def assert_same(made, expected):
    assert made.keys() == expected.keys()
    for name, each in made.items():
        np.testing.assert_allclose(each.a_RI, expected[name].a_RI, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(each.b_OR, expected[name].b_OR, rtol=1e-5, atol=1e-5)


RULES = {
    "adamw": (
        lambda given: torch.optim.AdamW(given, betas=(0.8, 0.9), weight_decay=0.1),
        Optimiser("adamw", (0.8, 0.9), weight_decay=0.1),
    ),
    "sgd": (
        lambda given: torch.optim.SGD(given, lr=0.0, momentum=0.5),
        Optimiser("sgd", momentum=0.5),
    ),
}


@pytest.mark.parametrize("rule", ["mean", "mean-each", "tokens", "sum"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_three_steps_are_pefts(name, rule, base_on_disk):
    base, data = base_on_disk(), batches()
    make, given = RULES[name]
    start, end, losses, _ = trained(base, data, rule, make)
    learned = learn(Engine(), base, course(start, data, optimiser=given, normaliser=rule), STEPS)
    assert_same(learned.updates, end)
    np.testing.assert_allclose(learned.losses, losses, rtol=1e-5)
    moved = learn(Engine(), base, course(start, data, optimiser=given), STEPS)
    assert (distance(learned, moved) > 1e-4) == (rule != "mean")


def test_clipping_is_torchs(base_on_disk):
    base, data = base_on_disk(), batches()
    make, _ = RULES["sgd"]
    start, end, _, _ = trained(base, data, "sum", make, clip=0.05)
    given = Optimiser("sgd", momentum=0.5, clip=0.05)
    made = learn(Engine(), base, course(start, data, optimiser=given, normaliser="sum"), STEPS)
    assert_same(made.updates, end)


def test_base_that_is_not_frozen_moves_with_the_adapter(base_on_disk):
    base, data = base_on_disk(), batches()
    make, given = RULES["adamw"]
    start, end, _, model = trained(base, data, "mean", make, on_base=True)
    made = learn(Engine(), base, course(start, data, optimiser=given, trains_base=True), STEPS)
    assert_same(made.updates, end)
    name = "model.layers.1.mlp.down_proj.weight"
    expected = model.base_model.model.get_parameter(name)
    origin = AutoModelForCausalLM.from_pretrained(base.load).get_parameter(name)
    torch.testing.assert_close(
        made.base[name].float(), (expected - origin).detach(), rtol=1e-4, atol=1e-5
    )
    frozen = learn(Engine(), base, course(start, data, optimiser=given), STEPS)
    assert distance(frozen, made) > 1
    again = learn(Engine(), base, course(start, data, optimiser=given), STEPS)
    assert distance(frozen, again) == 0  # the engine's base was not written to


@pytest.mark.parametrize("rule", ["mean", "mean-each", "tokens", "sum"])
def test_losses_tell_the_normaliser(rule, base_on_disk):
    base, data = base_on_disk(), batches()
    make, given = RULES["adamw"]
    start, _, losses, _ = trained(base, data, rule, make)
    for guess in ("mean", rule):
        its = course(start, data, losses, optimiser=given, normaliser=guess)
        assert normalisers(its, learn(Engine(), base, its, STEPS), 1e-4) == (rule,)


def test_a_single_batch_does_not_tell_most_normalisers_apart(base_on_disk):
    base, data = base_on_disk(), batches(micros=1)
    make, given = RULES["adamw"]
    start, _, losses, _ = trained(base, data, "tokens", make)
    its = course(start, data, losses, optimiser=given)
    found = normalisers(its, learn(Engine(), base, its, STEPS), 1e-4)
    assert found == ("mean", "mean-each", "tokens")


def test_distance_is_that_of_dense_updates(base_on_disk):
    base, data = base_on_disk(), batches()
    start = factors(adapted(base, init_lora_weights=False))
    made = [
        learn(Engine(), base, course(start, data, optimiser=Optimiser(name)), n)
        for name, n in (("adamw", 2), ("sgd", 3))
    ]
    dense = [
        np.concatenate(
            [(u.scale * u.b_OR.astype(float) @ u.a_RI).ravel() for u in each.updates.values()]
        )
        for each in made
    ]
    expected = np.linalg.norm(dense[0] - dense[1]) / np.linalg.norm(dense[0])
    assert distance(*made) == pytest.approx(expected, rel=1e-5)


def test_merge_is_learned_and_training_goes_on_from_new_factors(base_on_disk):
    """An adapter that goes into the weights acts on, and counts as learned."""
    base, data = base_on_disk(), batches()
    start = factors(adapted(base, init_lora_weights=False))
    fresh = factors(adapted(base))
    given = Optimiser("sgd")
    plain = course(start, data, optimiser=given)
    first = learn(Engine(), base, plain, 1)
    turned = course(start, data, optimiser=given, turns=(Turn("merge", 1, fresh),))
    made = learn(Engine(), base, turned, STEPS)
    assert made.losses[1] == pytest.approx(learn(Engine(), base, plain, STEPS).losses[1], rel=1e-4)
    name = "model.layers.0.self_attn.q_proj"
    b = made.terms[name][0][1]
    np.testing.assert_allclose(b.numpy(), first.updates[name].b_OR, rtol=1e-5)
    assert len(made.terms[name]) == 2
    lost = learn(Engine(), base, course(start, data, turns=(Turn("reset", 1, fresh),)), STEPS)
    assert len(lost.terms[name]) == 1


def test_optimiser_may_remember_across_a_merge(base_on_disk):
    """A script that zeroes B in place keeps the moments of its optimiser; one that begins anew
    does not."""
    base, data = base_on_disk(), batches()
    start = factors(adapted(base, init_lora_weights=False))
    fresh = {name: Update(u.a_RI, np.zeros_like(u.b_OR), u.scale) for name, u in start.items()}
    turned = course(start, data, turns=(Turn("reset", 1, fresh),), keeps=True)
    made = learn(Engine(), base, turned, STEPS)

    model = adapted(base, init_lora_weights=False)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.0)
    for step, its in enumerate(data):
        for ids, mask, labels in its:
            given = (torch.from_numpy(each) for each in (ids, mask, labels))
            out = model(**dict(zip(("input_ids", "attention_mask", "labels"), given, strict=True)))
            (out.loss / len(its)).backward()
        for group in optimiser.param_groups:
            group["lr"] = RATES[step]
        optimiser.step()
        optimiser.zero_grad()
        if step == 0:
            with torch.no_grad():
                for name, module in model.named_modules():
                    if hasattr(module, "lora_A"):
                        its_start = fresh[name.removeprefix("base_model.model.")]
                        module.lora_A["default"].weight.copy_(torch.from_numpy(its_start.a_RI))
                        module.lora_B["default"].weight.zero_()
    assert_same(made.updates, factors(model))
    anew = learn(Engine(), base, course(start, data, turns=(Turn("reset", 1, fresh),)), STEPS)
    assert distance(made, anew) > 0.01
