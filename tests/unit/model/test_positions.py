"""Where a forward places its tokens is seen where positions are applied, whatever was meant."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weft.core.batch import IGNORE, Batch, Example
from weft.engines.local import LocalEngine
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.forward import make_rows, target_logits
from weft.model.positions import positions_seen
from weft.model.rows import Block
from weft.model.sites import choose_sites
from weft.model.steppers import LeanStepper, PackedStepper, RecomputingStepper
from weft.model.weaving import Weft
from weft.model.witness import Witness

MEMBERS = 2
LENGTHS = (7, 3, 5)


@pytest.fixture
def woven(make_base):
    """A base with two members, by the name of its architecture."""

    def make(architecture):
        base = make_base(architecture)
        layout = choose_sites(base.sites, AdapterConfig(rank=2))
        generator = torch.Generator().manual_seed(1)
        flat = torch.randn(MEMBERS, layout.size, generator=generator) * 0.2
        return base, Weft(Bank.of({str(n): Adapter(layout, flat[n]) for n in range(MEMBERS)}))

    return make


def prompts():
    generator = np.random.default_rng(0)
    return [generator.integers(6, 97, length) for length in LENGTHS]


def steps_of(stepper, steps=3):
    """Of each step, where each row's tokens were placed; the second row leaves after the first."""
    found = []
    with positions_seen() as seen:
        logits_BV = stepper.start()
    found.append([at_n.tolist() for at_n in stepper.positions(seen)])
    for step in range(1, steps):
        with positions_seen() as seen:
            rows = len(logits_BV)
            logits_BV = stepper.extend(logits_BV.argmax(-1), [True] * rows)
        found.append([at_n.tolist() for at_n in stepper.positions(seen)])
        if step == 1:
            keep = [0, 1, 4, 5]
            stepper.keep(keep, range(MEMBERS))
            logits_BV = logits_BV[keep]
    return found


def wanted(whole):
    """Counted from 0, and on; `whole`: all of the text at every step."""

    def at(length, step):
        last = length + step
        return list(range(last)) if whole or not step else [last - 1]

    kept = (LENGTHS, LENGTHS, LENGTHS[::2])
    return [
        [at(length, step) for length in lengths for _ in range(MEMBERS)]
        for step, lengths in enumerate(kept)
    ]


@pytest.mark.parametrize(
    ("stepper", "architecture"),
    [
        (LeanStepper, "llama"),
        (LeanStepper, "qwen2"),
        (PackedStepper, "llama"),
        (PackedStepper, "gpt2"),
    ],
)
def test_each_token_is_placed_behind_the_text_so_far(stepper, architecture, woven):
    base, weft = woven(architecture)
    lean = (base.lean,) if stepper is LeanStepper else ()
    assert steps_of(stepper(base, *lean, weft, prompts(), 8)) == wanted(whole=False)


@pytest.mark.parametrize("packs", [True, False])
def test_recomputing_places_the_whole_text_at_every_step(packs, woven):
    base, weft = woven("llama")
    if not packs:
        base = replace(base, packs=False)
        base.model.set_attn_implementation("eager")
    assert steps_of(RecomputingStepper(base, weft, prompts())) == wanted(whole=True)


def test_of_a_model_that_has_no_positions_none_are_told(woven):
    base, weft = woven("bloom")
    stepper = RecomputingStepper(base, weft, prompts())
    with positions_seen() as seen:
        stepper.start()
    assert stepper.positions(seen) == []


def test_what_is_seen_is_what_the_module_was_called_with(woven):
    """Whoever moves positions on their way into the model is seen to do so."""
    base, weft = woven("llama")
    body = base.body
    ids = prompts()[0]
    labels = np.full(len(ids), IGNORE)
    labels[-1] = ids[-1]
    rows = make_rows(base, [Block(0, MEMBERS, Batch((Example("x", ids, labels),)))])

    def shifted(module, args, kwargs):
        return args, kwargs | {"position_ids": kwargs["position_ids"] + 3}

    hook = body.register_forward_pre_hook(shifted, with_kwargs=True)
    with positions_seen() as seen:
        target_logits(base, weft, rows)
    hook.remove()
    ((at_Nn,),) = seen[0].by_example()
    assert at_Nn.tolist() == [list(range(3, len(ids) + 2))] * MEMBERS


def test_nobody_looks_unless_asked_to(woven):
    base, weft = woven("llama")
    hooked = []
    rotary = base.body.rotary_emb
    ids = prompts()[0]
    rows = make_rows(base, [Block(0, MEMBERS, Batch((Example("x", ids, ids.copy()),)))])
    hook = base.body.register_forward_pre_hook(
        lambda *_: hooked.append(len(rotary._forward_pre_hooks))
    )
    target_logits(base, weft, rows)
    with positions_seen():
        target_logits(base, weft, rows)
    target_logits(base, weft, rows)
    hook.remove()
    assert hooked == [0, 1, 0]


def test_what_is_generated_is_the_same_with_a_witness(woven):
    base, weft = woven("llama")
    engine, decoding = LocalEngine(base), Decoding(max_tokens=6, ignore_eos=True)
    witness = Witness()
    said = engine.generate(weft.bank, prompts(), decoding, witness=witness)
    assert said == engine.generate(weft.bank, prompts(), decoding)
    for (_, prompt), looks in witness.seen.items():
        places = [look.positions_n.tolist() for look in looks]
        assert places[0] == list(range(LENGTHS[prompt]))
        assert places[1:] == [[LENGTHS[prompt] + step] for step in range(len(looks) - 1)]
