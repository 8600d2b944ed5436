"""What the files of an MLX adapter say about its scale, by the history of mlx-lm."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from weft.core.errors import InputError
from weft.formats import mlx, npz
from weft.formats.loaded import GIVEN, UndecidedScale

PLACE = "model.layers.0.self_attn.q_proj"
OLD = {"rank": 8, "alpha": 16.0, "scale": 10.0, "dropout": 0.0}


def factors(place=PLACE, rank=8):
    return {f"{place}.lora_a": torch.ones(4, rank), f"{place}.lora_b": torch.ones(rank, 6)}


@pytest.fixture
def folder(tmp_path):
    """A folder of mlx-lm with these fields in its configuration; without any, it has none."""

    def make(rank=8, **fields):
        save_file(factors(rank=rank), tmp_path / "adapters.safetensors")
        if fields:
            (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
        return tmp_path

    return make


@pytest.fixture
def legacy(tmp_path):
    """An `adapters.npz` with factors in one place."""

    def make(place=PLACE):
        path = tmp_path / "adapters.npz"
        np.savez(path, **{name: tensor.numpy() for name, tensor in factors(place).items()})
        return path

    return make


def scale_of(loaded):
    (scale,) = {slot.scale for slot in loaded.adapter.layout.slots}
    return scale


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"num_layers": 16, "lora_parameters": OLD}, 10),  # alpha counts for nothing since 2024-06
        ({"num_layers": 16, "lora_parameters": {"rank": 8, "scale": 20.0}}, 20),
        ({"num_layers": -1, "lora_parameters": {"rank": 8, "scale": 20, "alpha": None}}, 20),
        ({"num_layers": 0, "lora_parameters": {"rank": 8, "scale": 0.5}}, 0.5),
        # before 2024-06-02 a configuration without alpha could not be trained with
        ({"lora_layers": 16, "lora_parameters": {"rank": 8, "scale": 7.0}}, 7),
        # alpha / rank = 1: old and new rule agree
        ({"lora_layers": 16, "lora_parameters": {"rank": 8, "alpha": 8, "scale": 3.0}}, 3),
    ],
)
def test_a_configuration_that_can_mean_one_scale_decides_it(folder, fields, scale):
    loaded = mlx.read(folder(**fields))
    assert scale_of(loaded) == scale
    assert "`scale` in adapter_config.json" in loaded.scale_from
    assert loaded.notes == ()


@pytest.mark.parametrize(
    ("parameters", "old", "new"),
    [
        (OLD, 20, 10),
        ({"rank": 8, "alpha": 32.0, "scale": 2.0}, 8, 2),
        ({"alpha": 4.0, "scale": 10.0}, 5, 10),  # the rank is the tensors'
    ],
)
@pytest.mark.parametrize("layers", [{"lora_layers": 16}, {}])
def test_an_old_configuration_with_alpha_is_undecided(folder, parameters, old, new, layers):
    with pytest.raises(UndecidedScale) as caught:
        mlx.read(folder(lora_parameters=parameters, **layers))
    first, second = caught.value.candidates
    assert (first.scale, second.scale) == (old, new)
    assert "before 2024-06-02" in first.reason
    assert "since 2024-06-02" in second.reason
    assert f"{old}: {first.reason}" in str(caught.value)
    assert "--scale" in str(caught.value)


@pytest.mark.parametrize("fields", [{}, {"num_layers": 4}, {"lora_parameters": {"rank": 8}}])
def test_without_a_scale_in_a_configuration_it_is_undecided(folder, fields):
    with pytest.raises(UndecidedScale) as caught:
        mlx.read(folder(**fields))
    assert {c.scale for c in caught.value.candidates} == {20, 10}


@pytest.mark.parametrize(
    ("place", "scales"), [(PLACE, [20, 2]), ("layers.0.attention.wv", [2, 20])]
)
def test_an_npz_never_decides_and_its_names_put_the_likelier_first(legacy, place, scales):
    with pytest.raises(UndecidedScale) as caught:
        npz.read(legacy(place))
    assert [c.scale for c in caught.value.candidates] == scales
    assert isinstance(caught.value, InputError)


def test_a_scale_that_is_given_decides_and_is_noted_where_the_files_say_another(folder, legacy):
    old = folder(lora_layers=16, lora_parameters=OLD)
    for scale, notes in ((20, 0), (10, 0), (3, 1)):
        loaded = mlx.read(old, scale=scale)
        assert (scale_of(loaded), loaded.scale_from, len(loaded.notes)) == (scale, GIVEN, notes)
    assert "the files mean 20 (" in mlx.read(old, scale=3).notes[0]
    assert npz.read(legacy(), scale=20.0).notes == ()
    assert "the scale 7 was given" in npz.read(legacy(), scale=7.0).notes[0]


@pytest.mark.parametrize("scale", ["20", None, [], True])
def test_a_scale_that_is_no_number_is_no_scale(folder, scale):
    with pytest.raises(InputError):
        mlx.read(folder(num_layers=1, lora_parameters={"rank": 8, "scale": scale}))
