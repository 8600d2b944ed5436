"""The lean step against the same model without a cache, and what it does to the weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weft.engines.local import LocalEngine
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.check import CacheCheck
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.sites import choose_sites

FAMILY = pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])


def random_adapter(base, seed, **settings):
    layout = choose_sites(base.sites, AdapterConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    return Adapter(layout, torch.randn(layout.size, generator=generator) * 0.2)


def prompts(lengths=(7, 3, 5)):
    generator = np.random.default_rng(0)
    return [generator.integers(6, 97, length) for length in lengths]


@FAMILY
@pytest.mark.parametrize("lengths", [(7, 3, 5), (4, 4)], ids=["ragged", "equal"])
def test_a_lean_step_gives_the_models_own_logits(architecture, lengths, make_base):
    base = make_base(architecture)
    assert base.lean is not None
    bank = Bank.of(
        {
            "none": None,
            "some": random_adapter(base, 1, rank=2, targets=("k_proj", "up_proj")),
            "all": random_adapter(base, 2, rank=3, scale=1.5),
        }
    )
    stack = random_adapter(base, 3, rank=4, targets=("q_proj", "down_proj"))
    check = CacheCheck()
    on_stack = bank.over(Bank.of({name: stack for name in bank.members}))
    LocalEngine(base).generate(
        on_stack, prompts(lengths), Decoding(max_tokens=12, ignore_eos=True), check=check
    )
    assert check.tokens == 3 * len(lengths) * 12
    assert check.largest < 1e-5


@FAMILY
def test_joining_layers_changes_no_weight_and_copies_none(architecture, make_base, make_model):
    base = make_base(architecture)
    assert base.lean is not None
    joined = {
        name: weight.untyped_storage().data_ptr()
        for name, weight in base.model.named_parameters()
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")) and ".0." in name
    }
    assert len(joined) == 3 and len(set(joined.values())) == 1
    before = make_model(architecture).state_dict()
    for name, weight in base.model.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize(("architecture", "dtype"), [("llama", torch.bfloat16)])
def test_sixteen_bits_differ_by_rounding_only(architecture, dtype, make_model, make_base):
    from weft.model.base import prepare

    model = make_model(architecture).to(dtype)
    base = prepare("small", model, make_base(architecture).tokenizer)
    bank = Bank.of({"all": random_adapter(base, 2, rank=3)})
    check = CacheCheck()
    LocalEngine(base).generate(bank, prompts(), Decoding(max_tokens=8), check=check)
    assert check.passed


def test_other_architectures_step_through_their_own_modules(make_base):
    base = make_base("gpt2")
    assert base.packs and base.lean is None


def test_dynamic_rotary_embeddings_are_left_to_the_model(make_base, make_model):
    from weft.model.lean import lean_model

    model = make_model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert lean_model(model) is None


def test_rows_that_are_over_leave_the_batch(make_base, monkeypatch):
    base = make_base("llama")
    bank = Bank.of({"a": None, "b": random_adapter(base, 5, rank=2, scale=3.0)})
    engine = LocalEngine(base)
    many = prompts((5,) * 8)
    free = engine.generate(bank, many, Decoding(max_tokens=24, ignore_eos=True))
    stops = [free[0][number].ids[3] for number in range(6)]  # member a ends early on six prompts
    heights = []
    from weft.model.steppers import LeanStepper

    extend = LeanStepper.extend

    def counted(self, token_B, live_B):
        heights.append((len(token_B), sum(live_B)))
        return extend(self, token_B, live_B)

    monkeypatch.setattr(LeanStepper, "extend", counted)
    decoding = Decoding(max_tokens=24, stop_ids=tuple(stops), ignore_eos=True)
    found = engine.generate(bank, many, decoding)
    for texts, whole in zip(found, free, strict=True):
        for text, longer in zip(texts, whole, strict=True):
            assert text.ids == longer.ids[: len(text.ids)]
    computed, live = map(sum, zip(*heights, strict=True))
    assert live <= computed < 16 * len(heights)
    assert heights[-1][0] < 16


def test_the_lean_step_says_the_same_as_the_packed_one(make_base, monkeypatch):
    base = make_base("llama")
    bank = Bank.of({"a": None, "b": random_adapter(base, 5, rank=2)})
    decoding = Decoding(max_tokens=20, ignore_eos=True)
    lean = LocalEngine(base).generate(bank, prompts(), decoding)
    monkeypatch.setattr("weft.model.base.lean_model", lambda model: None)
    packed = LocalEngine(replace(base)).generate(bank, prompts(), decoding)
    assert lean == packed
