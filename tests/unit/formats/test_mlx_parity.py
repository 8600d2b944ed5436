"""Weft and mlx-lm read each other's adapters as the same function, by mlx-lm's own forward."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.formats import mlx, npz
from weft.formats.peft import read_adapter, write_adapter
from weft.formats.registry import read_any
from weft.model.adapter import Slot
from weft.model.sites import find_sites

pytest.importorskip("mlx_lm")
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.lora import CONFIG_DEFAULTS, train_model
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model, save_config

TOLERANCE = 1e-5
LEAVES = {
    "llama": ("q_proj", "v_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "mixtral": ("q_proj", "gate"),
}
ARCHITECTURES = pytest.mark.parametrize("name", LEAVES)
LAYOUTS = {
    "one scale": lambda sites: [Slot(s, 4, 3.0) for s in sites],
    "ranks and scales": lambda sites: [
        Slot(s, 1 + i % 3, 1 / (i + 1)) for i, s in enumerate(sites)
    ],
    "last layer": lambda sites: [Slot(s, 4, 20.0) for s in sites if s.layer == 2],
    "middle layer": lambda sites: [Slot(s, 2, 20.0) for s in sites if s.layer == 1],
    "few": lambda sites: [Slot(s, 3, 16 / 3) for s in sites[1::3]],
}


@pytest.fixture(scope="module")
def in_mlx(make_model, tmp_path_factory):
    """The tiny model of an architecture, loaded anew by mlx-lm from transformers' files."""
    folders = {}

    def load(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            make_model(name).save_pretrained(folders[name])
            if name == "gpt2":  # mlx-lm knows the names of the checkpoint on the hub
                path = folders[name] / "model.safetensors"
                tensors = load_file(path)
                save_file({k.removeprefix("transformer."): v for k, v in tensors.items()}, path)
        model, _ = load_model(folders[name], model_config={"n_ctx": 64} if name == "gpt2" else {})
        return model

    return load


def mlx_logits(model):
    ids = np.arange(20).reshape(2, 10) * 3 % 64  # as `logits_of` has them
    return torch.from_numpy(np.array(model(mx.array(ids))))


def adapted_sites(model, name):
    return [s for n, s in find_sites(model).items() if n.rpartition(".")[2] in LEAVES[name]]


@ARCHITECTURES
@pytest.mark.parametrize("slots", LAYOUTS.values(), ids=LAYOUTS)
def test_mlx_lm_reads_what_weft_wrote(
    name, slots, make_model, in_mlx, adapter_of, merged, logits_of, tmp_path
):
    base = make_model(name)
    adapter = adapter_of(slots(adapted_sites(base, name)))
    sites = find_sites(base)
    mlx.write(adapter, tmp_path / "a", base_ref="b", sites=sites, base_config=base.config)
    found = mlx_logits(load_adapters(in_mlx(name), tmp_path / "a"))
    wanted = logits_of(merged(make_model(name), adapter))
    assert (found - wanted).abs().max() <= TOLERANCE
    assert (wanted - logits_of(base)).abs().max() > 1e-2


@ARCHITECTURES
def test_mlx_lm_reads_what_weft_wrote_without_knowing_the_sites(
    name, make_model, in_mlx, adapter_of, merged, logits_of, tmp_path
):
    base = make_model(name)
    adapter = adapter_of(LAYOUTS["middle layer"](adapted_sites(base, name)))
    mlx.write(adapter, tmp_path / "a", base_ref="b", base_config=base.config)
    found = mlx_logits(load_adapters(in_mlx(name), tmp_path / "a"))
    assert (found - logits_of(merged(make_model(name), adapter))).abs().max() <= TOLERANCE


@ARCHITECTURES
@pytest.mark.parametrize("num_layers", [-1, 2])
def test_weft_reads_what_mlx_lm_made(
    name, num_layers, make_model, in_mlx, merged, logits_of, tmp_path
):
    keys = {
        "llama": None,  # all linear layers of the block
        "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
        "mixtral": ["self_attn.q_proj", "self_attn.o_proj", "block_sparse_moe.gate"],
    }[name]
    parameters = {"rank": 8, "scale": 20.0, "dropout": 0.0} | ({"keys": keys} if keys else {})
    model = in_mlx(name)
    model.freeze()
    mx.random.seed(0)
    linear_to_lora_layers(model, num_layers, parameters)
    for _, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            layer.lora_b = mx.random.normal(layer.lora_b.shape) * 0.01
    factors = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), factors)
    settings = {"model": "b", "fine_tune_type": "lora", "num_layers": num_layers, "seed": 0}
    save_config(settings | {"lora_parameters": parameters}, tmp_path / "adapter_config.json")

    sites = find_sites(make_model(name))
    known, unknown = mlx.read(tmp_path, sites), mlx.read(tmp_path)
    assert known.base_ref == "b"
    assert len(known.adapter.sites) == len(factors) // 2 > 0
    wanted = mlx_logits(model)
    assert (wanted - logits_of(make_model(name))).abs().max() > 1e-2
    for loaded in (known, unknown):
        assert all(sites[n] == slot.site for n, slot in loaded.adapter.layout.by_name.items())
        found = logits_of(merged(make_model(name), loaded.adapter))
        assert (found - wanted).abs().max() <= TOLERANCE


@ARCHITECTURES
def test_peft_to_mlx_to_peft_changes_no_bit(name, make_model, adapter_of, tmp_path):
    """With one rank and one scale, which is what mlx-lm has, nothing is multiplied or rounded."""
    base = make_model(name)
    sites = find_sites(base)
    adapter = adapter_of([Slot(s, 5, 16 / 5) for s in adapted_sites(base, name)])
    write_adapter(adapter, tmp_path / "peft", base_ref="b", sites=sites)
    first = read_adapter(tmp_path / "peft", sites).adapter
    mlx.write(first, tmp_path / "mlx", base_ref="b", sites=sites, base_config=base.config)
    second = mlx.read(tmp_path / "mlx", sites).adapter
    write_adapter(second, tmp_path / "again", base_ref="b", sites=sites)
    for file in (tmp_path / "peft").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize("layers", [3, 1])
def test_factors_that_weft_wrote_as_npz_run_as_the_legacy_scripts_run_them(
    layers, make_model, in_mlx, adapter_of, merged, logits_of, tmp_path
):
    """Layers of scale 20 on q and v, and `load_weights` that passes over what it does not know."""
    sites = find_sites(make_model("llama"))
    chosen = [s for s in sites.values() if s.name.endswith(("q_proj", "v_proj"))]
    adapter = adapter_of([Slot(s, 2, 1.7) for s in chosen if s.layer >= 3 - layers])
    npz.write(adapter, tmp_path / "a", base_ref="b")
    model = in_mlx("llama")
    for layer in model.layers[-layers:]:
        attention = layer.self_attn
        attention.q_proj = LoRALinear.from_base(attention.q_proj, r=8, scale=20.0)
        attention.v_proj = LoRALinear.from_base(attention.v_proj, r=8, scale=20.0)
    model.load_weights(str(tmp_path / "a" / "adapters.npz"), strict=False)
    wanted = logits_of(merged(make_model("llama"), adapter))
    assert (mlx_logits(model) - wanted).abs().max() <= TOLERANCE


def test_weft_reads_what_mlx_saved_as_npz(in_mlx, make_model, merged, logits_of, tmp_path):
    model = in_mlx("mixtral")
    model.freeze()
    mx.random.seed(0)
    keys = ["self_attn.q_proj", "self_attn.v_proj", "block_sparse_moe.gate"]
    linear_to_lora_layers(model, 2, {"rank": 8, "scale": 20.0, "dropout": 0.0, "keys": keys})
    for _, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            layer.lora_b = mx.random.normal(layer.lora_b.shape) * 0.01
    mx.savez(str(tmp_path / "adapters.npz"), **dict(tree_flatten(model.trainable_parameters())))
    adapter = npz.read(tmp_path, find_sites(make_model("mixtral")), scale=20.0).adapter
    found = logits_of(merged(make_model("mixtral"), adapter))
    assert (found - mlx_logits(model)).abs().max() <= TOLERANCE


class Rows(list):
    """Rows of token ids, as mlx-lm's trainer asks for them."""

    def process(self, row):
        """The ids, and where the supervised ones begin."""
        return row, 0


@pytest.mark.slow  # mlx compiles its kernels with the C++ compiler
@pytest.mark.parametrize("num_layers", [2, -1])
def test_weft_reads_the_folder_that_a_training_of_mlx_lm_leaves(
    num_layers, in_mlx, make_model, merged, logits_of, tmp_path
):
    rows = Rows(np.random.default_rng(i).integers(2, 97, 12).tolist() for i in range(8))
    settings = CONFIG_DEFAULTS | {"model": "some/base", "train": True, "num_layers": num_layers}
    settings |= {"batch_size": 4, "iters": 4, "learning_rate": 1e-3, "save_every": 2}
    settings |= {"adapter_path": str(tmp_path), "val_batches": 1}
    model = in_mlx("llama")
    train_model(SimpleNamespace(**settings), model, rows, rows)

    sites = find_sites(make_model("llama"))
    loaded = read_any(tmp_path, sites)
    layers = 3 if num_layers == -1 else num_layers
    assert {slot.site.layer for slot in loaded.adapter.layout.slots} == set(range(3 - layers, 3))
    assert (loaded.format, loaded.base_ref, loaded.notes) == ("mlx", "some/base", ())
    assert {(slot.rank, slot.scale) for slot in loaded.adapter.layout.slots} == {(8, 20.0)}
    model.eval()
    wanted = mlx_logits(model)
    found = logits_of(merged(make_model("llama"), loaded.adapter))
    assert (found - wanted).abs().max() <= TOLERANCE
    assert (wanted - logits_of(make_model("llama"))).abs().max() > 1e-2

    earlier = read_any(tmp_path / "0000002_adapters.safetensors", sites).adapter
    assert earlier.layout == loaded.adapter.layout
    assert not torch.equal(earlier.flat, loaded.adapter.flat)
