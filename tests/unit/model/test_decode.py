"""Greedy decoding against transformers' own generate, prompt by prompt and member by member."""

import copy

import numpy as np
import pytest
import torch
import transformers

from weft.core.errors import InputError
from weft.engines.local import LocalEngine
from weft.model.bank import Bank
from weft.model.base import prepare
from weft.model.cache import KVCache
from weft.model.config import AdapterConfig
from weft.model.decode import NotFinite
from weft.model.decoding import Decoding
from weft.model.sites import choose_sites

MEMBERS = "abc"


def prompts(lengths=(7, 3, 5, 3)):
    generator = np.random.default_rng(0)
    return [generator.integers(6, 97, length) for length in lengths]


def layout_of(base):
    targets = "all-linear"
    if base.model.config.model_type == "mixtral":
        targets = ("q_proj", "block_sparse_moe.gate")
    return choose_sites(base.sites, AdapterConfig(rank=3, targets=targets))


def setup(make_base, architecture, **engine):
    base = make_base(architecture)
    layout = layout_of(base)
    flat_NP = torch.randn(3, layout.size, generator=torch.Generator().manual_seed(2)) * 0.2
    return LocalEngine(base, **engine), Bank.from_flat(MEMBERS, layout, flat_NP), flat_NP


def greedy(engine, bank, prompts, max_tokens):
    said = engine.generate(bank, prompts, Decoding(max_tokens=max_tokens))
    return [[list(completion.ids) for completion in texts] for texts in said]


def generated(model, prompt, tokens, stops=()):
    out = model.generate(
        torch.tensor(prompt)[None], max_new_tokens=tokens, do_sample=False, eos_token_id=None
    )
    ids = out[0, len(prompt) :].tolist()
    return next((ids[:i] for i, token in enumerate(ids) if token in stops), ids)


@pytest.mark.parametrize(
    "architecture",
    ["llama", "mistral", "qwen2", "gemma", "mixtral", "gpt2", "opt", "bloom", "gptj"],
)
@pytest.mark.filterwarnings("ignore:.*pad_token_id.*")
def test_tokens_equal_transformers_generate(architecture, make_base, make_model):
    engine, bank, flat_NP = setup(make_base, architecture)
    found = greedy(engine, bank, prompts(), 20)
    for texts, flat_P in zip(found, flat_NP, strict=True):
        model = copy.deepcopy(make_model(architecture))
        for name, (a_rI, b_Or) in layout_of(engine.base).factors(flat_P).items():
            slot = layout_of(engine.base).by_name[name]
            delta = slot.scale * (b_Or @ a_rI)
            weight = model.get_submodule(name).weight
            weight.data += delta.T if slot.site.kind == "conv1d" else delta
        for prompt, ids in zip(prompts(), texts, strict=True):
            assert ids == generated(model, prompt, 20, engine.base.stop_ids)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_a_completion_ends_before_its_stop_token_and_the_others_go_on(architecture, make_base):
    engine, bank, _ = setup(make_base, architecture)
    free = greedy(engine, bank, prompts(), 12)
    stop = free[1][2][4]  # what member b says fifth on the third prompt now ends texts
    engine.base.model.generation_config.eos_token_id = [1, stop]
    for texts, before in zip(greedy(engine, bank, prompts(), 12), free, strict=True):
        for ids, longer in zip(texts, before, strict=True):
            cut = longer.index(stop) if stop in longer else len(longer)
            assert ids == longer[:cut]


def test_texts_do_not_depend_on_batch_mates(make_base):
    engine, bank, _ = setup(make_base, "llama")
    together = greedy(engine, bank, prompts(), 12)
    one_by_one, _, _ = setup(make_base, "llama", members_per_forward=1)
    for number, prompt in enumerate(prompts()):
        for member, texts in enumerate(greedy(one_by_one, bank, [prompt], 12)):
            assert texts[0] == together[member][number]


def test_a_text_ends_where_the_context_is_full(make_base):
    engine, bank, _ = setup(make_base, "gpt2")
    assert [len(texts[0]) for texts in greedy(engine, bank, prompts((60,)), 20)] == [4, 4, 4]


@pytest.mark.parametrize(("length", "problem"), [(0, "empty"), (64, "leaves no room")])
def test_prompts_that_cannot_be_continued_are_refused(length, problem, make_base):
    engine, bank, _ = setup(make_base, "gpt2")
    with pytest.raises(InputError, match=problem):
        greedy(engine, bank, [np.arange(length)], 5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_cache_is_never_longer_than_the_context(architecture, make_base, monkeypatch):
    capacities = []
    begin = KVCache.__init__

    def noted(self, lengths, capacity, device):
        capacities.append(capacity)
        begin(self, lengths, capacity, device)

    monkeypatch.setattr(KVCache, "__init__", noted)
    engine, bank, _ = setup(make_base, architecture)
    engine.base.model.generation_config.eos_token_id = None
    endless = greedy(engine, bank, prompts((60, 5)), 10**12)
    greedy(engine, bank, prompts((60, 5)), 2)
    assert capacities == [64, 62]
    for texts in endless:
        assert len(texts[0]) <= 4 and len(texts[1]) <= 59


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_end_it_with_whose_they_are(
    architecture, temperature, wrong, make_base
):
    engine, _, flat_NP = setup(make_base, architecture)
    flat_NP[1] = wrong
    bank = Bank.from_flat(MEMBERS, layout_of(engine.base), flat_NP)
    decoding = Decoding(max_tokens=5, temperature=temperature, top_p=0.9, ignore_eos=True)
    with pytest.raises(NotFinite, match="b on prompt 1: the logits of token 1 are not finite"):
        engine.generate(bank, prompts(), decoding)
    good = [n for n in range(3) if n != 1]
    assert engine.generate(bank.only(good), prompts(), decoding)


@pytest.mark.filterwarnings("ignore:.*pad_token_id.*")
def test_a_base_whose_rotation_depends_on_the_length_of_the_text_ends_before_it_does(make_model):
    """Beyond 16 tokens the positions of all texts of a batch would change."""
    own = make_model("llama").config.to_dict()
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
    config = transformers.Phi3Config(
        **{name: own[name] for name in (*sizes, "vocab_size", "max_position_embeddings")},
        rope_parameters=rope | {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
        original_max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    base = prepare("phi", copy.deepcopy(model), NoTokenizer())
    assert base.packs and base.context == 16
    assert base.notice == "context: 16 of 64 tokens, up to where longrope begins"
    engine, bank = LocalEngine(base), Bank(("base",), {})
    given = prompts((3, 9, 14))
    for prompt, ids in zip(given, greedy(engine, bank, given, 30)[0], strict=True):
        assert ids == generated(model.eval(), prompt, 16 - len(prompt), {1})
    with pytest.raises(InputError, match="leaves no room in the context of 16"):
        greedy(engine, bank, prompts((16,)), 5)


class NoTokenizer:
    """These tests speak in token ids."""

    pad_token_id, eos_token_id = None, 1
