"""What config.json says of a base is what transformers makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from tests.conftest import ARCHITECTURES, SMALL
from weft.model.base import built_sites, load_config, longest_text
from weft.model.facts import context_of, declared, skeleton
from weft.model.sites import find_sites

KNOWN = {"llama", "mistral", "qwen2"}


@pytest.fixture
def write(tmp_path):
    """A folder with the config.json of a small Llama, some entries changed; None takes one out."""

    def make(**changes) -> str:
        transformers.LlamaConfig(**SMALL).save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        entries = json.loads(path.read_text()) | changes
        kept = {name: value for name, value in entries.items() if value is not None}
        path.write_text(json.dumps(kept))
        return str(tmp_path)

    return make


def as_built(ref):
    return list(built_sites(ref).items()), longest_text(load_config(ref))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_of_every_architecture_both_ways_say_the_same(architecture, make_model, tmp_path):
    model = make_model(architecture)
    model.config.save_pretrained(tmp_path)
    facts = declared(str(tmp_path))
    assert (facts is not None) == (architecture in KNOWN)
    assert list(skeleton(str(tmp_path)).items()) == list(find_sites(model).items())
    assert context_of(str(tmp_path)) == longest_text(model.config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_dim": 16},
        {"head_dim": None},
        {"num_key_value_heads": 4},
        {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"},
        {"rope_theta": 500000.0, "rope_parameters": None},
        {"model_type": "qwen3", "head_dim": 16},
        {"model_type": "qwen3", "head_dim": 16, "layer_types": ["full_attention"] * 3},
        {"model_type": "mistral", "sliding_window": 8},
    ],
    ids=str,
)
def test_what_is_declared_is_what_is_built(changes, write):
    ref = write(**changes)
    facts = declared(ref)
    assert facts is not None
    assert (list(facts.sites.items()), facts.context) == as_built(ref)


def test_the_bundled_base_is_declared():
    facts = declared("weft/tiny")
    assert facts is not None
    assert (list(facts.sites.items()), facts.context) == as_built("weft/tiny")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "many"},
        {"hidden_size": 33},
        {"num_key_value_heads": None},
        {"num_key_value_heads": 3},
        {"hidden_act": "nonsense"},
        {"pad_token_id": 97},
        {"quantization_config": {"quant_method": "none"}},
        {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
        {"model_type": "qwen3", "head_dim": None},  # 128, whatever the hidden size
        {"model_type": "qwen2", "layer_types": ["full_attention"]},
        {"model_type": "phi3"},
        {"an_entry_of_tomorrow": 1},
    ],
    ids=str,
)
def test_what_is_not_understood_entry_by_entry_is_left_to_transformers(changes, write):
    assert declared(write(**changes)) is None


def test_an_unknown_entry_changes_the_way_and_not_the_answer(write):
    known = declared(write())
    ref = write(an_entry_of_tomorrow=1)
    assert known is not None
    assert list(skeleton(ref).items()) == list(known.sites.items())
    assert context_of(ref) == known.context


def test_a_broken_file_and_a_hub_id_are_left_to_transformers(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama",')
    assert declared(str(tmp_path)) is None
    assert declared("gpt2") is None
