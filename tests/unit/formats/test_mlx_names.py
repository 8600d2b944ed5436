"""Weft's names of places, and mlx-lm's."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
import transformers

from weft.core.errors import InputError
from weft.formats.mlx_names import from_meta, from_mlx, sites_by_mlx_name, to_mlx
from weft.model.sites import find_sites

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "head_dim": 8, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64} | {
    "bos_token_id": 1,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
MOE = SMALL | EXPERTS | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
ARCHITECTURES = {
    "llama": SMALL,
    "qwen3": SMALL,
    "phi3": SMALL,
    "gemma2": SMALL,
    "olmo2": SMALL,
    "starcoder2": SMALL,
    "gpt2": GPT,
    "gptj": GPT,
    "gpt_neox": SMALL,
    "mixtral": SMALL | EXPERTS,
    "phimoe": SMALL | EXPERTS,
    "granitemoe": SMALL | EXPERTS,
    "olmoe": SMALL | EXPERTS,
    "qwen3_moe": MOE,
    "gpt_oss": SMALL | EXPERTS,
    "gemma3": {"text_config": SMALL},
    "gemma4": {"text_config": SMALL},
    "qwen3_5_text": SMALL,
    "qwen3_5_moe_text": MOE,
}
LEGACY_FIELDS = {
    "rope_theta": 1e4, "rope_scaling": None, "rotary_emb_base": 10000, "rotary_pct": 0.25,
    "n_ctx": 64,
}  # fmt: skip
"""What configurations that transformers 5 writes do not have, and mlx-lm asks for."""


def sites_and_config(model_type):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type](**ARCHITECTURES[model_type])
    with torch.device("meta"):
        return find_sites(transformers.AutoModelForCausalLM.from_config(config)), config


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_site_of_the_language_model_has_a_layer_in_mlx_lm(model_type):
    pytest.importorskip("mlx_lm")
    import mlx.nn

    sites, config = sites_and_config(model_type)
    fields = LEGACY_FIELDS | json.loads(config.to_json_string())
    if model_type.endswith("_moe"):
        fields["num_experts"] = config.num_experts
    family = model_type.removesuffix("_text")
    if family != model_type:
        fields = {"model_type": family, "text_config": fields}
    module = importlib.import_module(f"mlx_lm.models.{family}")
    model = module.Model(module.ModelArgs.from_dict(fields | {"vocab_size": 128}))
    layers = {name for name, layer in model.named_modules() if isinstance(layer, mlx.nn.Linear)}
    names = {to_mlx(site, config) for site in sites if "vision" not in site}
    assert names <= layers
    assert {to_mlx(site, None) for site in sites if _tells_enough(site, config)} <= layers


def _tells_enough(site, config):
    if "vision" in site or config.model_type.startswith("qwen3_5"):
        return False
    try:
        to_mlx(site, None)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_name_leads_back_to_its_site(model_type):
    sites, config = sites_and_config(model_type)
    back = sites_by_mlx_name(sites)
    for site in sites:
        assert back[to_mlx(site, config)] == site
        assert back[site] == site


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gptj", "gpt_neox", "mixtral", "gemma3"])
def test_without_the_base_the_usual_architecture_is_taken(model_type):
    sites, config = sites_and_config(model_type)
    for name, site in sites.items():
        assert from_mlx(to_mlx(name, config)) == (name, site.kind)


@pytest.mark.parametrize(
    ("site", "names"),
    [
        ("transformer.h.0.attn.c_attn", "model.h.0.attn.c_attn or transformer.h.0.attn.c_attn"),
        ("model.layers.1.mlp.gate", r"block_sparse_moe\.gate or .*mlp\.gate"),
    ],
)
def test_a_name_that_depends_on_the_architecture_is_asked_for(site, names):
    with pytest.raises(InputError, match=names):
        to_mlx(site, None)


def test_metas_names_are_todays_and_only_q_and_k_are_rotated():
    assert from_meta("layers.3.attention.wq") == ("model.layers.3.self_attn.q_proj", True)
    assert from_meta("layers.3.attention.wk") == ("model.layers.3.self_attn.k_proj", True)
    assert from_meta("layers.0.attention.wv") == ("model.layers.0.self_attn.v_proj", False)
    assert from_meta("layers.0.attention.wo") == ("model.layers.0.self_attn.o_proj", False)
    assert from_meta("layers.0.feed_forward.w2") == ("model.layers.0.mlp.down_proj", False)
    assert from_meta("model.layers.0.self_attn.q_proj") is None
