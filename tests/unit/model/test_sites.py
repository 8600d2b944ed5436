"""Which modules a target names."""

import pytest

from weft.core.errors import InputError
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites, find_sites, layers_notice


def chosen(model, **settings):
    layout = choose_sites(find_sites(model), AdapterConfig(**settings))
    return [slot.site.name for slot in layout.slots]


@pytest.mark.parametrize(
    ("architecture", "count"),
    [("llama", 21), ("gpt2", 12), ("opt", 20), ("qwen2", 21), ("mixtral", 12)],
)
def test_all_linear_is_every_layer_but_the_head(architecture, count, make_model):
    """OPT's two projections around its narrow embedding are linear layers too."""
    names = chosen(make_model(architecture), targets="all-linear")
    assert len(names) == count
    assert not any("lm_head" in name or "gate." in name for name in names)


def test_suffixes_and_full_names(make_model):
    model = make_model("gpt2")
    assert len(chosen(model, targets=("attn.c_proj",))) == 3
    assert len(chosen(model, targets=("c_attn", "c_proj"))) == 9
    assert chosen(model, targets=("transformer.h.1.mlp.c_fc",)) == ["transformer.h.1.mlp.c_fc"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("last 2", {1, 2}), ("first 1", {0}), ("last 16", {0, 1, 2}), ((0, -1), {0, 2})],
)
def test_layers(layers, expected, make_model):
    layout = choose_sites(
        find_sites(make_model("llama")), AdapterConfig(targets=("q_proj",), layers=layers)
    )
    assert {slot.site.layer for slot in layout.slots} == expected


@pytest.mark.parametrize("layers", ["last 3", "first 1", (0, 1), None])
def test_layers_that_the_base_has_are_nothing_to_talk_about(layers, make_model):
    assert layers_notice(find_sites(make_model("llama")), AdapterConfig(layers=layers)) is None


@pytest.mark.parametrize("layers", ["last 4", "first 16"])
def test_more_layers_than_the_base_has_are_all_of_them_and_said(layers, make_model):
    said = layers_notice(find_sites(make_model("llama")), AdapterConfig(layers=layers))
    assert said == f"`adapter.layers` is `{layers}` and the base has 3: all are used"


def test_the_router_has_the_name_people_know(make_model):
    names = chosen(make_model("mixtral"), targets=("block_sparse_moe.gate",))
    assert names == [f"model.layers.{i}.mlp.gate" for i in range(3)]


def test_a_target_that_matches_nothing_names_near_ones(make_model):
    with pytest.raises(InputError, match="'q_prj' matches no module") as error:
        chosen(make_model("llama"), targets=("v_proj", "q_prj"))
    assert "did you mean `q_proj`" in error.value.hint
    assert "down_proj" in error.value.hint


def test_a_layer_that_is_not_there(make_model):
    with pytest.raises(InputError, match=r"names \[7\].*0 to 2"):
        chosen(make_model("llama"), targets=("q_proj",), layers=(0, 7))


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"rank": 8, "alpha": 16}, 2),
        ({"rank": 16, "alpha": 16, "rslora": True}, 4),
        ({"rank": 8, "scale": 20}, 20),
        ({"rank": 4}, 2),
    ],
)
def test_one_effective_scale(settings, scale):
    assert AdapterConfig(**settings).effective_scale == scale


@pytest.mark.parametrize(
    "settings", [{"scale": 2, "alpha": 4}, {"layers": "last"}, {"targets": ()}, {"rank": 0}]
)
def test_settings_that_contradict_themselves(settings):
    with pytest.raises(ValueError, match=r"scale|layers|targets|rank"):
        AdapterConfig(**settings)
