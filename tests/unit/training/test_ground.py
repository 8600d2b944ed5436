"""A commit leaves the function as it was, and is one ordinary adapter for PEFT."""

import copy

import peft
import pytest
import torch

from weft.core.keys import Key
from weft.formats.peft import write_adapter
from weft.methods.boosting import Rounds, chain, fresh
from weft.model.base import prepare
from weft.model.config import AdapterConfig
from weft.model.forward import make_rows, target_logits
from weft.model.rows import Block
from weft.model.sites import choose_sites
from weft.model.weaving import Weft
from weft.training.ground import grounds

CONFIG = AdapterConfig(rank=1, alpha=16, targets=("q_proj", "v_proj", "down_proj"))


@pytest.fixture
def whole_batch(make_batch):
    """A row in which every position is scored, so that all logits are compared."""
    batch = make_batch(0, rows=1)
    batch.examples[0].labels_T[:] = batch.examples[0].ids_T
    return batch


def random_theta(layout, count, seed=0):
    return torch.randn(count, layout.size, generator=torch.Generator().manual_seed(seed)) * 0.05


@torch.no_grad()
def logits(base, layout, stack_KP, theta_P, batch, *, into_weights=False, joined=False):
    """[S, V] of one lane: above its stack, as training sees it, or joined, as evaluation does."""
    (ground,) = grounds(base, layout, [stack_KP], into_weights=into_weights)
    bank = ground.bank(("it",), layout, theta_P[None])
    weft = Weft(bank)
    if not joined:
        alone = grounds(base, layout, [stack_KP[:0]])[0].bank(("it",), layout, theta_P[None])
        weft = Weft(alone, ground.stacks)
    return target_logits(ground.base, weft, make_rows(ground.base, [Block(0, 1, batch)]))


@pytest.mark.parametrize("commits", [0, 1, 5])
@pytest.mark.parametrize(
    ("dtype", "into_weights", "tolerance"),
    [
        (torch.float32, False, 1e-6),
        (torch.float32, True, 1e-5),
        (torch.bfloat16, False, 1e-2),  # one rounding is 4e-3
    ],
    ids=["stack", "weights", "stack on bf16"],
)
def test_a_commit_leaves_logits_unchanged(
    dtype, into_weights, tolerance, commits, make_model, whole_batch
):
    base = prepare("llama", make_model("llama").to(dtype), NoTokenizer())
    layout = choose_sites(base.sites, CONFIG)
    stack_KP, (theta_P,) = random_theta(layout, commits), random_theta(layout, 1, seed=9)
    after_KP = Rounds(stack_KP, theta_P).committed(theta_P, layout, 1.0)
    new_P = fresh(layout, Key.of(0), commits + 1)
    before, after = (
        logits(base, layout, *its, whole_batch, into_weights=into_weights)
        for its in ((stack_KP, theta_P), (after_KP, new_P))
    )
    without = logits(base, layout, stack_KP, new_P, whole_batch, into_weights=into_weights)
    change, effect = ((its - before).abs().max().item() for its in (after, without))
    assert change < tolerance * before.abs().max()
    assert effect > 10 * change


def test_a_stack_on_a_base_in_bf16_loses_nothing_that_merging_would(make_model, whole_batch):
    """Twenty small commits: as a stack they are there, rounded into bf16 weights most is lost."""
    base = prepare("llama", make_model("llama").to(torch.bfloat16), NoTokenizer())
    layout = choose_sites(base.sites, CONFIG)
    stack_KP = random_theta(layout, 20) * 0.02
    exact = prepare("llama", make_model("llama").to(torch.bfloat16).float(), NoTokenizer())
    (on_stack,) = grounds(base, layout, [stack_KP])
    assert on_stack.base is base
    assert on_stack.stacks.sites[layout.slots[0].site.name].a_NrI.dtype == torch.float32
    (in_weights,) = grounds(base, layout, [stack_KP], into_weights=True)
    (reference,) = grounds(exact, layout, [stack_KP], into_weights=True)
    name = layout.slots[0].site.name
    start, merged, wanted = (
        ground.get_submodule(name).weight.double()
        for ground in (base.model, in_weights.base.model, reference.base.model)
    )
    lost = ((merged - start) - (wanted - start)).norm() / (wanted - start).norm()
    assert lost > 0.5


@pytest.mark.parametrize("into_weights", [False, True])
def test_the_given_base_is_never_written(into_weights, make_base, whole_batch):
    base = make_base("llama")
    layout = choose_sites(base.sites, CONFIG)
    before, print_before = copy.deepcopy(base.model.state_dict()), base.fingerprint()
    stack_KP, (theta_P,) = random_theta(layout, 2), random_theta(layout, 1, seed=9)
    logits(base, layout, stack_KP, theta_P, whole_batch, into_weights=into_weights)
    assert base.fingerprint() == print_before
    assert all(torch.equal(base.model.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("shrinkage", [1.0, 0.3])
@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("into_weights", [False, True])
def test_peft_sees_the_run_s_own_logits_in_the_adapter_that_it_leaves(
    into_weights, layers, shrinkage, make_model, make_base, whole_batch, tmp_path
):
    """Three commits and a round under way, of which each may have trained one layer only."""
    base = make_base("llama")
    layout = choose_sites(base.sites, CONFIG)
    rounds = Rounds.none_yet(fresh(layout, Key.of(0), 0))
    theta_KP = random_theta(layout, 4)
    if layers:
        for number, theta_P in enumerate(theta_KP):
            for name, (_, b_Or) in layout.factors(theta_P).items():
                if layout.by_name[name].site.layer != number % 3:
                    b_Or.zero_()
    for theta_P in theta_KP[:3]:
        stack_KP = rounds.committed(theta_P, layout, shrinkage)
        rounds = rounds.next(1, stack_KP, theta_P, 0.0)
    own = logits(base, layout, rounds.stack_KP, theta_KP[3], whole_batch, into_weights=into_weights)
    adapter = chain(layout, rounds.stack_KP, theta_KP[3])
    write_adapter(adapter, tmp_path / "adapter", base_ref="x", sites=base.sites)
    theirs = peft.PeftModel.from_pretrained(make_model("llama"), tmp_path / "adapter").eval()
    assert theirs.peft_config["default"].r == 4
    ids = torch.tensor(whole_batch.examples[0].ids_T)[None]
    found = theirs(input_ids=ids).logits[0, :-1].detach()
    assert (found - own).abs().max() < 1e-5 * own.abs().max()
    joined = logits(base, layout, rounds.stack_KP, theta_KP[3], whole_batch, joined=True)
    assert (joined - own).abs().max() < 1e-5 * own.abs().max()


def test_lanes_with_nothing_committed_stand_on_the_base_itself(make_base):
    base = make_base("llama")
    layout = choose_sites(base.sites, CONFIG)
    (ground,) = grounds(base, layout, [random_theta(layout, 0)] * 3)
    assert (ground.stacks, ground.start, ground.stop) == (None, 0, 3)
    for ground in grounds(base, layout, [random_theta(layout, 0)] * 2, into_weights=True):
        assert ground.base is base


def test_into_weights_each_lane_has_a_base_that_shares_what_is_not_adapted(make_base):
    base = make_base("llama")
    layout = choose_sites(base.sites, CONFIG)
    made = grounds(base, layout, list(random_theta(layout, 2)[:, None]), into_weights=True)
    assert [(each.start, each.stop) for each in made] == [(0, 1), (1, 2)]
    for each in made:
        mine, given = each.base.model.state_dict(), base.model.state_dict()
        for name in given:
            adapted = name.removesuffix(".weight") in layout.by_name
            assert (mine[name].data_ptr() == given[name].data_ptr()) != adapted


class NoTokenizer:
    pad_token_id = None
    eos_token_id = 1
