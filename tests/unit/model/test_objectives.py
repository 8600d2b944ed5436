"""Objectives against a plain loop over transformers' logits, and their gradients against autograd.

The reference scores one sequence at a time with merged weights; nothing of it is shared.
"""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from weft.core.batch import IGNORE, Batch, Choice, Example
from weft.core.errors import InputError
from weft.core.keys import Key
from weft.engines.local import LocalEngine
from weft.engines.scorer import LocalScorer
from weft.model import forward, losses, products
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.config import AdapterConfig
from weft.model.objectives import MEANS, ONE_TOKEN, OPTION, TOKENS, choosing
from weft.model.products import product
from weft.model.rows import Block
from weft.model.sites import choose_sites
from weft.model.weaving import Weft

ARCHITECTURES = ["llama", "gpt2", "opt", "bloom"]  # bloom runs on padded batches
SINGLE = ((5,), (9,))
SEVERAL = ((5, 11), (9,), (5, 12, 40))


def row(number: int, length: int, candidates=SINGLE) -> Example:
    generator = np.random.default_rng([3, number])
    prompt_T = generator.integers(2, 97, length)
    right = int(generator.integers(len(candidates)))
    choice = Choice(prompt_T, candidates, right)
    ids_T = np.concatenate([prompt_T, candidates[right], [1]])
    labels_T = np.where(np.arange(len(ids_T)) < length, IGNORE, ids_T)
    return Example(f"row:{number}", ids_T, labels_T, choice)


def batch_of(candidates=SINGLE, lengths=(7, 3, 7, 5, 1), first=0) -> Batch:
    return Batch(tuple(row(first + i, n, candidates) for i, n in enumerate(lengths)))


def layout_of(base):
    return choose_sites(base.sites, AdapterConfig(rank=3))


def flats(layout, count, seed=1):
    return torch.randn(count, layout.size, generator=torch.Generator().manual_seed(seed)) * 0.1


def merged(model, layout, flat_P):
    model = copy.deepcopy(model)
    for name, (a_rI, b_Or) in layout.factors(flat_P).items():
        slot = layout.by_name[name]
        delta = slot.scale * (b_Or @ a_rI)
        weight = model.get_submodule(name).weight
        weight.data += delta.T if slot.site.kind == "conv1d" else delta
    return model


@torch.no_grad()
def log_probs(model, prompt_T, ids) -> np.ndarray:
    """Of each token of a continuation."""
    whole = torch.tensor([*prompt_T.tolist(), *ids])[None]
    table_TV = model(input_ids=whole).logits[0].double().log_softmax(-1)
    return np.array([table_TV[len(prompt_T) - 1 + i, t].item() for i, t in enumerate(ids)])


@dataclass
class Expected:
    loss: float
    chosen: bool


def expected_choice(model, choice) -> Expected:
    means = [log_probs(model, choice.prompt_T, ids).mean() for ids in choice.candidates]
    loss = np.log(np.exp(means).sum()) - means[choice.right]
    return Expected(loss, int(np.argmax(means)) == choice.right)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("objective", "candidates"),
    [(ONE_TOKEN, SINGLE), (MEANS, SINGLE), (MEANS, SEVERAL)],
    ids=["one", "mean of one", "mean of several"],
)
def test_a_choice_is_cross_entropy_over_the_candidates_of_every_row_under_every_member(
    objective, candidates, architecture, make_base, make_model
):
    base, batch = make_base(architecture), batch_of(candidates)
    layout = layout_of(base)
    flat_NP = flats(layout, 3)
    found = LocalEngine(base).score(Bank.from_flat("abc", layout, flat_NP), batch, objective)
    for member, flat_P in enumerate(flat_NP):
        model = merged(make_model(architecture), layout, flat_P)
        expected = [expected_choice(model, e.choice) for e in batch.examples]
        np.testing.assert_allclose(
            found.loss_NE[member], [e.loss for e in expected], rtol=1e-4, atol=1e-5
        )
        assert found.correct_NE[member].tolist() == [e.chosen for e in expected]
    assert found.count_E.tolist() == [1] * 5
    assert 0 < found.correct_NE.sum() < found.correct_NE.size, "both kinds are seen"


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
@pytest.mark.parametrize("candidates", [SINGLE, SEVERAL], ids=["one", "several"])
def test_the_option_loss_is_that_of_the_right_candidates_tokens_and_of_no_end(
    candidates, architecture, make_base, make_model
):
    base, batch = make_base(architecture), batch_of(candidates)
    layout = layout_of(base)
    (flat_P,) = flats(layout, 1)
    found = LocalEngine(base).score(Bank.from_flat("a", layout, flat_P[None]), batch, OPTION)
    model = merged(make_model(architecture), layout, flat_P)
    chosen = [(e.choice.prompt_T, e.choice.candidates[e.choice.right]) for e in batch.examples]
    expected = [-log_probs(model, *each).sum() for each in chosen]
    np.testing.assert_allclose(found.loss_NE[0], expected, rtol=1e-5)
    assert found.count_E.tolist() == [len(ids) for _, ids in chosen]


def test_one_position_and_the_means_of_single_tokens_are_the_same_choice(make_base):
    base, batch = make_base("llama"), batch_of()
    layout = layout_of(base)
    bank = Bank.from_flat("abcd", layout, flats(layout, 4))
    one, means = (LocalEngine(base).score(bank, batch, each) for each in (ONE_TOKEN, MEANS))
    np.testing.assert_allclose(one.loss_NE, means.loss_NE, atol=2e-5)
    np.testing.assert_array_equal(one.correct_NE, means.correct_NE)
    assert choosing(batch.examples) is ONE_TOKEN
    assert choosing(batch_of(SEVERAL).examples) is MEANS


def lane_blocks(candidates) -> list[Block]:
    """Lanes of several members, each with a batch of its own size and order of lengths."""
    return [
        Block(0, 2, batch_of(candidates)),
        Block(2, 3, batch_of(candidates, (2, 9), first=10)),
        Block(3, 6, batch_of(candidates, (4, 1, 4), first=20)),
    ]


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
@pytest.mark.parametrize(
    ("objective", "candidates"),
    [(TOKENS, SEVERAL), (OPTION, SEVERAL), (MEANS, SEVERAL), (ONE_TOKEN, SINGLE)],
    ids=lambda x: getattr(x, "name", ""),
)
def test_cells_are_block_by_block_and_member_by_member_with_examples_fastest(
    objective, candidates, architecture, make_base
):
    base = make_base(architecture)
    layout = layout_of(base)
    bank = Bank.from_flat("abcdef", layout, flats(layout, 6))
    blocks = lane_blocks(candidates)
    with torch.no_grad():
        cells = objective.cells(base, Weft(bank), blocks)
    losses, hits = [], []
    for block in blocks:
        for member in range(block.start, block.stop):
            for example in block.batch.examples:
                alone = LocalEngine(base).score(bank.only([member]), Batch((example,)), objective)
                losses.append(alone.loss_NE.item())
                hits.append(alone.correct_NE.item())
    assert cells.loss_C.dtype == torch.float64
    np.testing.assert_allclose(cells.loss_C.numpy(), losses, rtol=1e-4, atol=1e-5)
    assert cells.correct_C.tolist() == hits


def test_rows_may_have_different_numbers_of_candidates(make_base):
    """As those of lanes with different tasks: a shorter list is not filled up with token 0."""
    base = make_base("llama")
    engine, bank = LocalEngine(base), Bank.of({"base": None})
    three = ((5,), (9,), (0,))
    for objective in (ONE_TOKEN, MEANS):
        mixed = engine.score(bank, Batch((row(1, 5), row(2, 5, three))), objective)
        for column, example in enumerate((row(1, 5), row(2, 5, three))):
            alone = engine.score(bank, Batch((example,)), objective)
            np.testing.assert_allclose(mixed.loss_NE[:, column], alone.loss_NE[:, 0], rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
@pytest.mark.parametrize(
    ("objective", "candidates"),
    [(ONE_TOKEN, SINGLE), (MEANS, SEVERAL), (OPTION, SEVERAL)],
    ids=["one", "mean", "option"],
)
def test_the_gradient_is_that_of_a_peft_model(
    objective, candidates, architecture, make_base, make_model
):
    import peft

    base, batch = make_base(architecture), batch_of(candidates)
    name = {"llama": "q_proj", "bloom": "query_key_value"}[architecture]
    layout = choose_sites(base.sites, AdapterConfig(rank=2, alpha=6, targets=(name,)))
    theta_LP = flats(layout, 1)
    found = LocalScorer(base, layout, objective).gradient(theta_LP, [batch], [Key.of(0)])
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=[name])
    model = peft.get_peft_model(make_model(architecture), config).eval()
    named = {}
    with torch.no_grad():
        for site, factors in layout.factors(theta_LP[0]).items():
            lora = model.base_model.model.get_submodule(site)
            named[site] = (lora.lora_A["default"].weight, lora.lora_B["default"].weight)
            for parameter, value in zip(named[site], factors, strict=True):
                parameter.copy_(value)
    total = tokens = 0
    for example in batch.examples:
        choice = example.choice
        scores = []
        for ids in choice.candidates:
            whole = torch.tensor([*choice.prompt_T.tolist(), *ids])[None]
            table = model(input_ids=whole).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
            scores.append(table.gather(1, torch.tensor(ids)[:, None]))
        if objective is OPTION:
            total = total - scores[choice.right].sum()
            tokens += len(choice.candidates[choice.right])
        else:
            means = torch.stack([each.mean() for each in scores])
            total = total + torch.nn.functional.cross_entropy(means, torch.tensor(choice.right))
            tokens += 1
    (total / tokens).backward()
    assert found.loss_L[0] == pytest.approx((total / tokens).item(), rel=1e-5)
    for site, ours in layout.factors(found.gradient_LP[0]).items():
        for parameter, gradient in zip(named[site], ours, strict=True):
            assert parameter.grad.abs().max() > 1e-5
            torch.testing.assert_close(gradient, parameter.grad, rtol=2e-3, atol=2e-6)


def test_a_choice_reads_no_more_of_the_head_than_its_candidates(make_base, monkeypatch):
    base = make_base("llama")
    sizes = []

    def watched(x, weight, bias=None):
        sizes.append(weight.shape[0])
        return product(x, weight, bias)

    for module in (forward, losses, products):
        monkeypatch.setattr(module, "product", watched)
    LocalEngine(base).score(Bank.of({"a": None}), batch_of(), ONE_TOKEN)
    assert 2 in sizes and 97 not in sizes


def test_half_precision_logits_of_a_choice_are_not_rounded_to_it(make_model):
    """Products with the candidates' rows are summed in fp32: the hidden state alone is rounded."""
    from tests.conftest import NoTokenizer
    from weft.model.base import prepare

    base = prepare("llama", make_model("llama").to(torch.bfloat16), NoTokenizer())
    batch = batch_of(lengths=(6,) * 20)
    found = LocalEngine(base).score(Bank.of({"a": None}), batch, ONE_TOKEN).loss_NE[0]
    rounded = torch.tensor(found).bfloat16().double().numpy()
    assert (found != rounded).mean() > 0.9


def test_the_other_engines_way_gives_the_same(make_base):
    """From token losses of `token_rows` alone, as an engine does that computes no others."""
    base = make_base("llama")
    bank = Bank.of({"a": Adapter(layout_of(base), flats(layout_of(base), 1)[0]), "base": None})
    engine = LocalEngine(base)
    for objective, candidates in (
        (TOKENS, SINGLE),
        (OPTION, SEVERAL),
        (MEANS, SEVERAL),
        (ONE_TOKEN, SINGLE),
    ):
        batch = batch_of(candidates)
        tokens = engine.score(bank, objective.token_rows(batch))
        loss_NE, correct_NE = objective.of_tokens(
            batch, torch.from_numpy(tokens.loss_NE), torch.from_numpy(tokens.correct_NE)
        )
        direct = engine.score(bank, batch, objective)
        np.testing.assert_allclose(loss_NE, direct.loss_NE, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(correct_NE, direct.correct_NE)


def test_rows_without_candidates_and_candidates_of_several_tokens_are_refused(make_base):
    base = make_base("llama")
    engine, bank = LocalEngine(base), Bank.of({"base": None})
    plain = Example("valid:7", np.array([3, 4]), np.array([IGNORE, 4]))
    for objective in (ONE_TOKEN, MEANS, OPTION):
        with pytest.raises(InputError, match="valid:7 has no candidates"):
            engine.score(bank, Batch((plain,)), objective)
    with pytest.raises(InputError, match="row:0 has a candidate of several tokens"):
        engine.score(bank, batch_of(SEVERAL), ONE_TOKEN)
