"""A population's texts: in tiles of any size, of members that are alike, told as they come."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from weft.core.batch import Goal
from weft.engines.config import LocalConfig
from weft.engines.local import LocalEngine
from weft.engines.reward import Reward
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.cache import KVCache, token_bytes
from weft.model.check import CacheCheck
from weft.model.config import AdapterConfig
from weft.model.decode import NotFinite
from weft.model.decoding import Decoding
from weft.model.lean import LeanForward
from weft.model.sites import choose_sites

ROOMY = 10**9
GREEDY = Decoding(max_tokens=10)
DRAWN = Decoding(max_tokens=10, temperature=1.0, top_p=0.9, seed=3)
PROMPTS = [np.random.default_rng(0).integers(6, 97, n) for n in (7, 3, 5, 3, 9)]
PROMPTS.append(PROMPTS[1])  # a copy, whose noise is its own


@pytest.fixture(autouse=True)
def bytes_for_mebibytes(monkeypatch):
    """These texts are short: `kv_memory_mib` counts bytes here."""
    monkeypatch.setattr("weft.engines.local.MIB", 1)


def bank_of(base, members=4, **settings):
    settings = {"rank": 2, "scale": 2.0, **settings}
    layout = choose_sites(base.sites, AdapterConfig(**settings))
    flat_NP = torch.randn(members, layout.size, generator=torch.Generator().manual_seed(2)) * 0.2
    return Bank.from_flat([f"m{n}" for n in range(members)], layout, flat_NP)


def row_bytes(base):
    longest = max(map(len, PROMPTS)) + GREEDY.max_tokens
    return longest * token_bytes(base.model.config, base.dtype)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("decoding", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_texts_do_not_depend_on_the_budget(architecture, decoding, make_base):
    base = make_base(architecture)
    bank = bank_of(base)
    whole = LocalEngine(base, kv_memory_mib=ROOMY).generate(bank, PROMPTS, decoding)
    counts = set()
    for rows in (0, 1, 2, 4, 6, 12):
        engine = LocalEngine(base, kv_memory_mib=max(1, rows * row_bytes(base)))
        counts.add(len(engine.plan(4, [len(p) for p in PROMPTS], 10)))
        assert engine.generate(bank, PROMPTS, decoding) == whole
    assert counts == {24, 12, 8, 4, 2}


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "gemma", "gpt2", "opt"])
def test_keys_and_values_stay_within_the_budget(architecture, make_base, monkeypatch):
    base = make_base(architecture)
    peaks = []
    keep = KVCache.keep

    def noted(self, rows):
        layers = [*self._keys.values(), *self._values.values()]
        # the cache, and the copy of a layer that replaces it
        peaks.append(sum(x.nbytes for x in layers) + max(x.nbytes for x in layers))
        keep(self, rows)

    monkeypatch.setattr(KVCache, "keep", noted)
    budget = 6 * row_bytes(base)
    engine = LocalEngine(base, kv_memory_mib=budget)
    free = engine.generate(bank_of(base), PROMPTS, Decoding(max_tokens=10, ignore_eos=True))
    stops = tuple(texts[0].ids[2] for texts in free)
    engine.generate(bank_of(base), PROMPTS, Decoding(max_tokens=10, stop_ids=stops))
    assert peaks and max(peaks) <= budget
    assert max(peaks) == 6 * row_bytes(base)  # no more is set aside than is used


def test_members_that_are_alike_speak_once_and_are_told_all(make_base, monkeypatch):
    base = make_base("llama")
    bank = Bank.of({"a": None, "b": adapter(base, 1), "c": None, "d": adapter(base, 1)})
    assert bank.alike() == [[0, 2], [1, 3]]
    assert bank_of(base).alike() == [[0], [1], [2], [3]]
    widths, told = set(), {}
    call = LeanForward.__call__

    def noted(self, *args, **named):
        widths.add(self.members)
        return call(self, *args, **named)

    def tell(member, prompt, token):
        told.setdefault((member, prompt), []).append(token)

    monkeypatch.setattr(LeanForward, "__call__", noted)
    said = LocalEngine(base, kv_memory_mib=ROOMY).generate(bank, PROMPTS, GREEDY, tell)
    assert max(widths) == 2
    assert said[0] == said[2] and said[1] == said[3] and said[0] != said[1]
    for member, texts in enumerate(said):
        for prompt, text in enumerate(texts):
            assert tuple(told.get((member, prompt), ())) == text.ids


def adapter(base, seed, **settings):
    layout = choose_sites(base.sites, AdapterConfig(rank=2, **settings))
    noise = torch.Generator().manual_seed(seed)
    return Adapter(layout, torch.randn(layout.size, generator=noise) * 0.2)


def test_a_tile_speaks_of_members_and_prompts_by_their_numbers_in_the_whole(make_base):
    base = make_base("llama")
    bank = bank_of(base)
    engine = LocalEngine(base, kv_memory_mib=2 * row_bytes(base))
    told = {}

    def tell(member, prompt, token):
        told.setdefault((member, prompt), []).append(token)

    check = CacheCheck()
    said = engine.generate(bank, PROMPTS, GREEDY, tell, check=check)
    for member, texts in enumerate(said):
        for prompt, text in enumerate(texts):
            assert tuple(told.get((member, prompt), ())) == text.ids
    assert check.passed and check.tokens >= sum(len(t.ids) for texts in said for t in texts)
    bank.sites["model.layers.1.mlp.down_proj"].b_NOr[2] = torch.nan
    with pytest.raises(NotFinite) as found:
        engine.generate(bank, PROMPTS, GREEDY)
    first = engine.plan(4, [len(p) for p in PROMPTS], 10)[0].prompts[0]
    assert (found.value.member, found.value.prompt) == ("m2", first) and first != 0


@pytest.mark.parametrize("layer", [0, 1])
def test_layers_below_the_first_adapted_one_read_a_prompt_once(layer, make_base, monkeypatch):
    base = make_base("llama")
    bank = bank_of(base, targets=(f"layers.{layer}.mlp.up_proj",))
    reads = []
    call = LeanForward.__call__

    def noted(self, x_TD, rotation_T, attend, layers, ends=None):
        reads.append((len(x_TD), list(layers)))
        return call(self, x_TD, rotation_T, attend, layers, ends)

    monkeypatch.setattr(LeanForward, "__call__", noted)
    check = CacheCheck()
    engine = LocalEngine(base, kv_memory_mib=ROOMY)
    engine.generate(bank, PROMPTS, Decoding(max_tokens=1), check=check)
    assert check.largest < 1e-5
    tokens = sum(map(len, PROMPTS))
    below, above = list(range(layer)), list(range(layer, base.model.config.num_hidden_layers))
    assert reads == [(tokens, below), (4 * tokens, above)]


def test_a_budget_below_one_text_is_said(make_base):
    base = make_base("llama")
    lengths = [len(p) for p in PROMPTS]
    (notice,) = LocalEngine(base, kv_memory_mib=row_bytes(base) - 1).notices(lengths, 10)
    assert "texts are made one at a time" in notice
    assert LocalEngine(base, kv_memory_mib=row_bytes(base)).notices(lengths, 10) == []


def test_a_run_is_told_before_it_starts(make_base):
    from weft.training.record import memory_notices

    base = make_base("llama")
    item = SimpleNamespace(example=SimpleNamespace(goal=Goal(PROMPTS[0], {})))
    job = SimpleNamespace(
        base=base,
        objective=Reward(grader=None, decoding=GREEDY),
        config=SimpleNamespace(engine=LocalConfig(kv_memory_mib=1)),
        splits={"train": SimpleNamespace(items=[item])},
    )
    (notice,) = memory_notices(job)
    assert notice.startswith("kv_memory_mib is 1")
