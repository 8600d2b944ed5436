"""A merged base is the base with the adapter over it, and the base itself stays what it was."""

import pytest
import torch

from weft.core.errors import InputError
from weft.engines.local import LocalEngine
from weft.model.adapter import Adapter, Layout, Slot
from weft.model.bank import Bank
from weft.model.base import prepare
from weft.model.decoding import Decoding
from weft.model.forward import make_rows, target_logits
from weft.model.merging import merged_base, update
from weft.model.rows import Block
from weft.model.weaving import Weft

ALL = ["llama", "mistral", "qwen2", "gemma", "mixtral", "gpt2", "opt", "opt-350m", "bloom", "gptj"]


def everywhere(base, scale=0.5, targets="") -> Adapter:
    """Random updates, of ranks and scales that differ, at every site whose name has `targets`."""
    sites = [site for name, site in base.sites.items() if targets in name]
    layout = Layout(tuple(Slot(s, 1 + n % 3, scale * (1 + n % 2)) for n, s in enumerate(sites)))
    generator = torch.Generator().manual_seed(4)
    return Adapter(layout, torch.randn(layout.size, generator=generator) * 0.3)


def logits(base, adapter, batch) -> torch.Tensor:
    with torch.no_grad():
        weft = Weft(Bank.of({"m": adapter}))
        return target_logits(base, weft, make_rows(base, [Block(0, 1, batch)]))


@pytest.mark.parametrize("architecture", ALL)
def test_its_logits_are_the_adapter_s(architecture, make_base, batch):
    base = make_base(architecture)
    before = base.fingerprint()
    adapter = everywhere(base)
    merged = merged_base(base, adapter)
    assert merged.packs == base.packs and merged.sites == base.sites
    ours, theirs = logits(merged, None, batch), logits(base, adapter, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (ours - logits(base, None, batch)).abs().max() > 0.05
    assert base.fingerprint() == before
    assert merged.fingerprint() != before


def test_only_what_changes_is_copied(make_base):
    base = make_base("gpt2", tie_word_embeddings=True)
    merged = merged_base(base, everywhere(base, targets="c_attn"))
    for name, weight in merged.model.state_dict().items():
        shared = weight.data_ptr() == base.model.state_dict()[name].data_ptr()
        assert shared == (not name.endswith("c_attn.weight")), name
    assert merged.model.lm_head.weight is merged.model.transformer.wte.weight
    assert not any(parameter.requires_grad for parameter in merged.model.parameters())


def test_either_base_decodes_after_the_other_has(make_base):
    """Decoding joins layers in memory: those of one base must not be those of the other."""
    base = make_base("llama")
    adapter = everywhere(base, scale=3.0, targets="_proj")
    prompts = [torch.tensor([5, 9, 3, 7]).numpy()]
    decoding = Decoding(max_tokens=12, ignore_eos=True)

    def tokens(base, adapter=None):
        return LocalEngine(base).generate(Bank.of({"m": adapter}), prompts, decoding)[0][0].ids

    plain, adapted = tokens(base), tokens(base, adapter)
    before = base.fingerprint()
    merged = merged_base(base, adapter)
    assert tokens(merged) == adapted != plain
    assert tokens(base) == plain
    assert tokens(merged_base(merged, everywhere(base, -3.0, "_proj"))) == plain
    assert base.fingerprint() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_base_gets_the_exact_sum_rounded_once(dtype, make_model, make_base):
    base = prepare("llama", make_model("llama").to(dtype), make_base("llama").tokenizer)
    adapter = everywhere(base)
    merged = merged_base(base, adapter)
    assert merged.dtype == dtype
    for name in adapter.sites:
        exact = base.model.get_submodule(name).weight.double() + update(adapter, name)
        assert torch.equal(merged.model.get_submodule(name).weight, exact.to(dtype))


def test_a_tied_weight_and_one_that_is_too_large_are_refused(make_model, make_base):
    base = make_base("llama")
    first, second = (base.model.model.layers[n].self_attn for n in (0, 1))
    second.q_proj.weight = first.q_proj.weight
    with pytest.raises(InputError, match=r"layers\.1.* is also model\.layers\.0\.self_attn\.q_pr"):
        merged_base(base, everywhere(base, targets="layers.1.self_attn.q_proj"))
    half = prepare("llama", make_model("llama").half(), base.tokenizer)
    with pytest.raises(InputError, match=r"1\.self_attn\.q_proj\.weight has numbers .* float16"):
        merged_base(half, everywhere(half, 1e6, "layers.1.self_attn.q_proj"))
