"""One forward of many adapters gives what plain transformers gives, adapter by adapter."""

import copy

import numpy as np
import pytest
import torch

from weft.core.keys import Key
from weft.engines.local import LocalEngine
from weft.engines.scorer import LocalScorer
from weft.model.adapter import Adapter, Layout
from weft.model.bank import Bank
from weft.model.config import AdapterConfig
from weft.model.objectives import TOKENS
from weft.model.rows import Block
from weft.model.sites import choose_sites
from weft.model.steppers import stepper_for
from weft.model.weaving import Weft

ALL = ["llama", "mistral", "qwen2", "gemma", "mixtral", "gpt2", "opt", "opt-350m", "bloom", "gptj"]


def random_adapters(layout: Layout, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, layout.size, generator=generator) * 0.1


def layout_of(base, **changes) -> Layout:
    targets = ("q_proj", "block_sparse_moe.gate") if base.ref == "mixtral" else "all-linear"
    return choose_sites(base.sites, AdapterConfig(**{"rank": 3, "targets": targets} | changes))


def merged(model, layout: Layout, flat_P: torch.Tensor):
    """The obvious and independent way: add scale * B @ A to the weights."""
    model = copy.deepcopy(model)
    for name, (a_rI, b_Or) in layout.factors(flat_P).items():
        slot = layout.by_name[name]
        delta = slot.scale * (b_Or @ a_rI)
        weight = model.get_submodule(name).weight
        weight.data += delta.T if slot.site.kind == "conv1d" else delta
    return model


def reference_losses(model, batch) -> np.ndarray:
    """transformers' own loss, summed over the tokens of each row on its own."""
    losses = []
    for example in batch.examples:
        ids, labels = torch.tensor(example.ids_T)[None], torch.tensor(example.labels_T)[None]
        with torch.no_grad():
            mean = model(input_ids=ids, labels=labels).loss
        losses.append(mean.item() * example.supervised)
    return np.array(losses)


@pytest.mark.parametrize("architecture", ALL)
def test_every_member_matches_transformers_with_merged_weights(
    architecture, make_base, make_model, batch
):
    base = make_base(architecture)
    layout = layout_of(base)
    flat_NP = random_adapters(layout, 3)
    scores = LocalEngine(base).score(Bank.from_flat("abc", layout, flat_NP), batch)
    for row, flat_P in zip(scores.loss_NE, flat_NP, strict=True):
        expected = reference_losses(merged(make_model(architecture), layout, flat_P), batch)
        np.testing.assert_allclose(row, expected, rtol=2e-6)


@pytest.mark.parametrize("architecture", ALL)
def test_gradients_match_autograd_through_merged_weights(
    architecture, make_base, make_model, batch
):
    base, model = make_base(architecture), make_model(architecture)
    layout = layout_of(base)
    flat_P = random_adapters(layout, 1)[0].requires_grad_()
    weights = {}
    for name, (a_rI, b_Or) in layout.factors(flat_P).items():
        slot = layout.by_name[name]
        delta = slot.scale * (b_Or @ a_rI)
        delta = delta.T if slot.site.kind == "conv1d" else delta
        weights[f"{name}.weight"] = model.get_submodule(name).weight.detach() + delta
    total = 0.0
    for example in batch.examples:
        given = {"input_ids": torch.tensor(example.ids_T)[None]}
        given["labels"] = torch.tensor(example.labels_T)[None]
        out = torch.func.functional_call(model, weights, kwargs=given)
        total += out.loss * example.supervised / batch.supervised
    (expected_P,) = torch.autograd.grad(total, flat_P)
    found = LocalScorer(base, layout).gradient(flat_P[None], [batch], [Key.of(0)])
    assert (found.gradient_LP[0] - expected_P).norm() / expected_P.norm() < 1e-5


@pytest.mark.parametrize("architecture", ALL)
def test_the_null_member_is_the_base_exactly(architecture, make_base, batch):
    base = make_base(architecture)
    layout = layout_of(base)
    engine = LocalEngine(base)
    adapter = Adapter(layout, random_adapters(layout, 1)[0])
    with_null = engine.score(Bank.of({"a": adapter, "null": None}), batch)
    both_null = engine.score(Bank.of({"x": None, "y": None}), batch)
    np.testing.assert_array_equal(with_null.loss_NE[1], both_null.loss_NE[1])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("members_per_forward", [1, 3])
def test_members_do_not_depend_on_who_shares_their_forward(
    architecture, members_per_forward, make_base, batch
):
    base = make_base(architecture)
    layout = layout_of(base)
    bank = Bank.from_flat("abcdefgh", layout, random_adapters(layout, 8))
    together = LocalEngine(base).score(bank, batch)
    apart = LocalEngine(base, members_per_forward=members_per_forward).score(bank, batch)
    np.testing.assert_allclose(together.loss_NE, apart.loss_NE, rtol=1e-6)
    np.testing.assert_array_equal(together.correct_NE, apart.correct_NE)


def test_rows_do_not_depend_on_who_shares_their_forward(make_base, batch):
    base = make_base("llama")
    layout = layout_of(base)
    bank = Bank.from_flat("ab", layout, random_adapters(layout, 2))
    together = LocalEngine(base).score(bank, batch)
    apart = LocalEngine(base, rows_per_forward=2).score(bank, batch)
    np.testing.assert_allclose(together.loss_NE, apart.loss_NE, rtol=1e-6)


def test_adapters_of_different_layouts_share_a_bank(make_base, batch):
    base = make_base("llama")
    one = layout_of(base, rank=2, alpha=6, targets=("q_proj",), layers="last 1")
    other = layout_of(base, rank=5, scale=0.7, targets=("q_proj", "down_proj"))
    adapters = {
        "one": Adapter(one, random_adapters(one, 1)[0]),
        "other": Adapter(other, random_adapters(other, 1)[0]),
    }
    engine = LocalEngine(base)
    together = engine.score(Bank.of(adapters | {"base": None}), batch)
    for index, (name, adapter) in enumerate(adapters.items()):
        alone = engine.score(Bank.of({name: adapter}), batch)
        np.testing.assert_allclose(together.loss_NE[index], alone.loss_NE[0], rtol=1e-6)


def stacks_of(base) -> list[Adapter]:
    """Two stacks of other ranks, scales and sites than the members': one covers two sites only."""
    wide = layout_of(base, rank=5, scale=0.7)
    narrow = Layout(layout_of(base, rank=2, alpha=6).slots[:2])
    return [Adapter(layout, random_adapters(layout, 1)[0]) for layout in (wide, narrow)]


@pytest.mark.parametrize("architecture", ALL)
def test_each_lane_s_members_lie_on_the_stack_of_that_lane(
    architecture, make_base, make_model, make_batch
):
    base = make_base(architecture)
    layout = layout_of(base)
    theta_LMP = random_adapters(layout, 4).unflatten(0, (2, 2))
    stacks = stacks_of(base)
    scorer = LocalScorer(base, layout, stacks=Bank.of({"0": stacks[0], "1": stacks[1]}))
    batches = [make_batch(1), make_batch(2, rows=3)]
    found_LM = scorer.losses(theta_LMP, batches)
    for lane, (stack, batch) in enumerate(zip(stacks, batches, strict=True)):
        below = merged(make_model(architecture), stack.layout, stack.flat)
        for member, flat_P in enumerate(theta_LMP[lane]):
            whole = merged(below, layout, flat_P)
            expected = reference_losses(whole, batch).sum() / batch.supervised
            assert found_LM[lane, member] == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_gradients_pass_through_the_stack_below(architecture, make_base, make_batch):
    base = make_base(architecture)
    layout = layout_of(base)
    theta_LP = random_adapters(layout, 2)
    stacks = stacks_of(base)
    batches = [make_batch(1), make_batch(2)]
    names = ("0", "1")
    scorer = LocalScorer(base, layout, stacks=Bank.of(dict(zip(names, stacks, strict=True))))
    found = scorer.gradient(theta_LP, batches, [Key.of(0), Key.of(1)])
    for lane, stack in enumerate(stacks):
        flat_P = theta_LP[lane].clone().requires_grad_()
        bank = Bank.from_flat(names[:1], layout, flat_P[None]).over(Bank.of({"0": stack}))
        cells = TOKENS.cells(base, Weft(bank), [Block(0, 1, batches[lane])])
        (expected_P,) = torch.autograd.grad(cells.loss_C.sum(), flat_P)
        expected_P /= batches[lane].supervised
        gap = (found.gradient_LP[lane] - expected_P).norm() / expected_P.norm()
        assert gap < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2", "opt", "bloom"])
def test_a_step_of_decoding_keeps_the_stack_below(architecture, make_base):
    base = make_base(architecture)
    layout = layout_of(base)
    bank = Bank.from_flat("ab", layout, random_adapters(layout, 2))
    stack = stacks_of(base)[0]
    prompts = [np.array([5, 9, 3, 7]), np.array([8, 2])]
    wefts = [
        Weft(bank, Bank.of({"stack": stack})),
        Weft(bank.over(Bank.of({"a": stack, "b": stack}))),
    ]
    logits = []
    for weft in wefts:
        stepper = stepper_for(base, weft, prompts, 4)
        first_BV = stepper.start()
        then_BV = stepper.extend(torch.tensor([4, 5, 6, 7]), [True] * 4)
        stepper.keep([1, 3], [1])
        last_BV = stepper.extend(torch.tensor([9, 3]), [True] * 2)
        logits.append(torch.cat([first_BV, then_BV, last_BV]))
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_nothing_stays_on_the_base(make_base, batch):
    base = make_base("mixtral")
    before = base.fingerprint()
    layout = layout_of(base)
    LocalEngine(base).score(Bank.from_flat("a", layout, random_adapters(layout, 1)), batch)
    assert base.fingerprint() == before
    assert not any(module._forward_hooks for module in base.model.modules())
    assert not any("forward" in vars(module) for module in base.model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ALL)
def test_who_can_run_without_padding_is_found_out(architecture, dtype, make_model):
    """In any precision: what rounding hides in bfloat16 must not pass for a match."""
    from weft.model.base import prepare

    base = prepare(architecture, make_model(architecture).to(dtype), NoTokenizer())
    assert base.packs == (architecture not in ("bloom", "gptj"))
    assert (base.notice is None) == base.packs


class NoTokenizer:
    pad_token_id = None
    eos_token_id = 1


def test_a_base_in_bfloat16_keeps_adapters_and_losses_in_fp32(make_model, batch):
    from weft.model.base import prepare

    base = prepare("llama", make_model("llama").to(torch.bfloat16), NoTokenizer())
    assert base.packs
    layout = layout_of(base)
    engine = LocalScorer(base, layout)
    theta_LP = random_adapters(layout, 1)
    gradient = engine.gradient(theta_LP, [batch], [Key.of(0)])
    assert gradient.gradient_LP.dtype == torch.float32
    exact = LocalScorer(prepare("llama", make_model("llama"), NoTokenizer()), layout)
    loss = exact.gradient(theta_LP, [batch], [Key.of(0)]).loss_L[0]
    assert gradient.loss_L[0] == pytest.approx(loss, rel=0.02)
