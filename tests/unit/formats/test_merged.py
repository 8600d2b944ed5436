"""A merged model is base and adapter in one, on disk; PEFT's own merge is the reference."""

from __future__ import annotations

import errno

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from weft.core.errors import InputError
from weft.core.files import read_json
from weft.formats.merged import merged_weights, write_merged
from weft.formats.peft import write_adapter
from weft.model.adapter import Slot
from weft.model.base import load_base, prepare
from weft.model.merging import update

SETTINGS = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "conv1d": ("gpt2", {}),
    "router": ("mixtral", {}),
    "qwen2": ("qwen2", {}),
    "gemma": ("gemma", {}),
}


class Tokens:
    """A tokenizer that writes a file."""

    pad_token_id = None
    eos_token_id = 1

    def save_pretrained(self, directory):
        (directory / "tokenizer.json").write_text("{}")


@pytest.fixture(scope="module")
def make(make_model):
    """A base with files of its own, and every site of it."""

    def build(architecture, **changes):
        model = make_model(architecture, **changes)
        return prepare(architecture, model, Tokens())

    return build


@pytest.fixture
def everywhere(adapter_of):
    """An adapter at every site of a base, of ranks and scales that differ (not at routers)."""

    def build(base):
        numbered = [(0 if s.kind == "router" else n, s) for n, s in enumerate(base.sites.values())]
        return adapter_of([Slot(site, 2 + n % 3, 0.5 + n % 2) for n, site in numbered])

    return build


def logits(model):
    ids = torch.arange(20).view(2, 10) * 3 % 64
    with torch.no_grad():
        return model(input_ids=ids).logits


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()


@pytest.mark.parametrize(("architecture", "changes"), SETTINGS.values(), ids=SETTINGS)
def test_the_merged_model_is_that_of_peft(
    architecture, changes, make, make_model, everywhere, tmp_path
):
    base = make(architecture, **changes)
    adapter = everywhere(base)
    before = base.fingerprint()
    write_adapter(adapter, tmp_path / "peft", base_ref="none", sites=base.sites)
    theirs = PeftModel.from_pretrained(make_model(architecture, **changes), tmp_path / "peft")
    theirs = theirs.merge_and_unload().eval()

    (tmp_path / "merged").mkdir()
    weights = merged_weights(base, adapter, "float32")
    write_merged(base, weights, "float32", tmp_path / "merged")
    ours = load(tmp_path / "merged")

    wanted = theirs.state_dict()
    assert ours.state_dict().keys() == wanted.keys()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-4)
    assert base.fingerprint() == before
    assert not torch.allclose(logits(ours), logits(make_model(architecture, **changes)), atol=0.1)


def test_a_tied_head_is_one_weight_in_the_files_and_after_loading(make, everywhere, tmp_path):
    base = make("llama", tie_word_embeddings=True)
    weights = merged_weights(base, everywhere(base), "bfloat16")
    assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]
    write_merged(base, weights, "bfloat16", tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in set(file.keys())
    model = load(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert read_json(tmp_path / "config.json")["tie_word_embeddings"] is True


def test_an_adapted_weight_that_is_also_another_is_refused(make, adapter_of):
    base = make("llama")
    first, second = (base.model.model.layers[n].self_attn for n in (0, 1))
    second.q_proj.weight = first.q_proj.weight
    site = base.sites["model.layers.0.self_attn.q_proj"]
    with pytest.raises(InputError, match=r"layers\.0.* is also model\.layers\.1\.self_attn\.q_pr"):
        merged_weights(base, adapter_of([Slot(site, 2, 1.0)]), "float32")
    other = base.sites["model.layers.2.self_attn.q_proj"]
    merged = merged_weights(base, adapter_of([Slot(other, 2, 1.0)]), "float32")
    names = [f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)]
    assert merged[names[0]] is merged[names[1]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_weight_is_the_exact_sum_rounded_once(make, everywhere, dtype):
    base = make("llama")
    adapter = everywhere(base)
    merged = merged_weights(base, adapter, dtype)
    for name in base.sites:
        exact = base.model.get_submodule(name).weight.double() + update(adapter, name).double()
        given = merged[f"{name}.weight"]
        assert given.dtype == getattr(torch, dtype)
        spacing = torch.finfo(given.dtype).eps * exact.abs().clamp(min=1e-4)
        assert ((given.double() - exact).abs() <= 0.501 * spacing).all()
    norm = "model.norm.weight"
    assert torch.equal(merged[norm], base.model.state_dict()[norm].to(merged[norm].dtype))


def test_a_weight_that_is_too_large_for_a_dtype_is_named(make, adapter_of):
    base = make("llama")
    site = base.sites["model.layers.1.self_attn.q_proj"]
    adapter = adapter_of([Slot(site, 2, 1e6)])
    with pytest.raises(InputError, match=r"1\.self_attn\.q_proj\.weight has numbers .* float16"):
        merged_weights(base, adapter, "float16")
    assert merged_weights(base, adapter, "bfloat16")[f"{site.name}.weight"].isfinite().all()


@pytest.mark.parametrize("writer", ["model", "tokenizer"])
def test_a_full_disk_is_an_error_of_the_operating_system(make, adapter_of, tmp_path, writer):
    """safetensors and tokenizers have exceptions of their own for it."""

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    base = make("llama")
    weights = merged_weights(base, adapter_of([]), "float32")
    writing = getattr(base, writer)
    writing.save_pretrained = full
    with pytest.raises(OSError) as caught:
        write_merged(base, weights, "float32", tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_what_lies_around_the_weights_is_kept(small_base, adapter_of, tmp_path):
    base = load_base(small_base)
    base.tokenizer.chat_template = "{{ messages[0].content }}"
    base.model.generation_config.max_new_tokens = 7
    site = next(iter(base.sites.values()))
    adapter = adapter_of([Slot(site, 2, 1.0)])
    config = base.model.config.to_dict()
    write_merged(base, merged_weights(base, adapter, "bfloat16"), "bfloat16", tmp_path)
    assert base.model.config.to_dict() == config
    loaded = load(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert loaded.generation_config.max_new_tokens == 7
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == base.tokenizer.chat_template
    text = "the cat sat on a mat"
    assert again(text)["input_ids"] == base.tokenizer(text)["input_ids"]
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1  # as the user's other files: nobody is locked out
