"""The legacy `adapters.npz`: what is written, what is read, and what is refused by name."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from weft.core.errors import InputError
from weft.formats import npz
from weft.formats.peft import read_adapter, write_adapter
from weft.formats.registry import detect_format, read_any
from weft.model.adapter import Slot
from weft.model.sites import find_sites

Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def llama(make_model):
    return make_model("llama")


@pytest.fixture(scope="module")
def sites(llama):
    return find_sites(llama)


@pytest.fixture
def save(tmp_path):
    """Save arrays as `adapters.npz`."""

    def to_file(arrays):
        np.savez(tmp_path / "adapters.npz", **arrays)
        return tmp_path / "adapters.npz"

    return to_file


@pytest.fixture
def qv(sites, adapter_of):
    """An adapter of one scale on q and v of the last two layers."""

    def build(rank=8, scale=20.0):
        chosen = [s for s in sites.values() if s.layer and s.name.endswith(("q_proj", "v_proj"))]
        return adapter_of([Slot(s, rank, scale) for s in chosen])

    return build


def arrays_of(adapter):
    """The arrays that the scripts would have saved for this adapter."""
    return {
        f"{name}.lora_{letter}": factor.T.numpy()
        for name, pair in adapter.sites.items()
        for letter, factor in zip("ab", pair, strict=True)
    }


def test_an_npz_of_the_scripts_becomes_the_same_peft_adapter(save, qv, sites, tmp_path):
    """Rank 8, scale 20: alpha 160, and not one bit of A or B is changed."""
    wanted = qv()
    loaded = npz.read(save(arrays_of(wanted)), sites, scale=20.0)
    assert (loaded.config, loaded.base_ref, loaded.notes) == ({}, None, ())
    write_adapter(loaded.adapter, tmp_path / "peft", base_ref="b", sites=sites)
    back = read_adapter(tmp_path / "peft", sites)
    assert (back.config["r"], back.config["lora_alpha"]) == (8, 160)
    assert back.config["layers_to_transform"] == [1, 2]
    assert back.adapter.layout == wanted.layout
    assert torch.equal(back.adapter.flat, wanted.flat)


def test_what_is_written_has_no_more_than_factors_for_a_scale_of_20(qv, tmp_path):
    adapter = qv(rank=3, scale=1.7)
    npz.write(adapter, tmp_path / "a", base_ref="b", dropout=0.1)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["adapters.npz"]
    with np.load(tmp_path / "a" / "adapters.npz") as file:
        assert set(file.files) == set(arrays_of(adapter))
        for name, (a_rI, b_Or) in adapter.sites.items():
            assert np.array_equal(file[f"{name}.lora_a"], a_rI.T)
            wanted = (b_Or.double() * (1.7 / 20)).float()
            assert np.array_equal(file[f"{name}.lora_b"], wanted.T)


def test_the_router_of_mixtral_keeps_the_name_that_the_scripts_know(
    make_model, adapter_of, tmp_path
):
    base = make_model("mixtral")
    sites = find_sites(base)
    adapter = adapter_of([Slot(s, 2, 20.0) for s in sites.values() if s.kind == "router"])
    npz.write(adapter, tmp_path / "a", base_ref="b", base_config=base.config)
    with np.load(tmp_path / "a" / "adapters.npz") as file:
        assert "model.layers.0.block_sparse_moe.gate.lora_a" in file.files
    for known in (sites, None):
        found = npz.read(tmp_path / "a", known, scale=20.0).adapter
        assert found.layout == adapter.layout
        assert torch.equal(found.flat, adapter.flat)


def test_places_that_the_scripts_would_pass_over_are_refused(sites, adapter_of, tmp_path):
    adapter = adapter_of([Slot(s, 2, 20.0) for s in sites.values()])
    with pytest.raises(InputError, match=r"(.|\n)*layers\.0\.self_attn\.k_proj(.|\n)*`mlx`"):
        npz.write(adapter, tmp_path / "a", base_ref="b")
    assert list(tmp_path.iterdir()) == []


# Meta's naming and rotary order, until 2024-01-09.

META = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv"}


def rotate_pairs(x_THD, angle_TF):
    """Meta's convention: numbers 2j and 2j + 1 of a head are one complex number, turned."""
    turned = torch.view_as_complex(x_THD.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(turned * torch.polar(torch.ones(()), angle_TF)[:, None]).flatten(-2)


def rotate_halves(x_THD, angle_TF):
    """transformers' convention, by its own function."""
    angle_TD = torch.cat([angle_TF, angle_TF], -1)
    turned, _ = apply_rotary_pos_emb(x_THD, x_THD, angle_TD.cos(), angle_TD.sin(), unsqueeze_dim=1)
    return turned


def scores(rotate, x_TI, q_update_OI, k_update_OI, heads, kv_heads):
    """Attention scores [H, T, T] of queries and keys that are the adapter's updates alone."""
    tokens = len(x_TI)
    size = len(q_update_OI) // heads
    frequency_F = 10_000 ** (-torch.arange(size // 2) * 2 / size)
    angle_TF = torch.arange(tokens)[:, None] * frequency_F
    q_THD = rotate((x_TI @ q_update_OI.T).view(tokens, heads, size), angle_TF)
    k_THD = rotate((x_TI @ k_update_OI.T).view(tokens, kv_heads, size), angle_TF)
    k_THD = k_THD.repeat_interleave(heads // kv_heads, dim=1)
    return torch.einsum("thd,shd->hts", q_THD, k_THD)


@pytest.mark.parametrize(
    ("name", "heads", "kv_heads"),
    [("llama", 4, 4), ("llama", 4, 2), ("mistral", 8, 1), ("qwen2", 8, 2)],
)
def test_factors_in_metas_order_give_the_same_attention_in_transformers_order(
    name, heads, kv_heads, make_model, save
):
    base = make_model(name, num_attention_heads=heads, num_key_value_heads=kv_heads)
    sites = find_sites(base)
    generator = torch.Generator().manual_seed(0)
    files = {
        f"layers.{layer}.attention.{META[leaf]}": (
            torch.randn(32, 3, generator=generator),
            torch.randn(
                3, sites[f"model.layers.{layer}.self_attn.{leaf}"].outputs, generator=generator
            ),
        )
        for layer in (1, 2)
        for leaf in META
    }
    arrays = {
        f"{n}.lora_{x}": t.numpy() for n, ab in files.items() for x, t in zip("ab", ab, strict=True)
    }
    loaded = npz.read(save(arrays), sites, scale=2.0, base_config=base.config)
    assert loaded.notes == ("from Meta's naming: 6 places",)
    found = {n: 2.0 * b @ a for n, (a, b) in loaded.adapter.sites.items()}
    x_TI = torch.randn(7, 32, generator=generator)
    for layer in (1, 2):
        places = {leaf: f"layers.{layer}.attention.{meta}" for leaf, meta in META.items()}
        saved = {leaf: 2.0 * torch.matmul(*files[place]).T for leaf, place in places.items()}
        q, k, v = (found[f"model.layers.{layer}.self_attn.{leaf}"] for leaf in META)
        wanted = scores(rotate_pairs, x_TI, saved["q_proj"], saved["k_proj"], heads, kv_heads)
        gap = scores(rotate_halves, x_TI, q, k, heads, kv_heads) - wanted
        assert gap.abs().max() <= 1e-5 * wanted.abs().max()
        wrong = (
            scores(rotate_halves, x_TI, saved["q_proj"], saved["k_proj"], heads, kv_heads) - wanted
        )
        assert wrong.abs().max() > 0.1 * wanted.abs().max()
        torch.testing.assert_close(v, saved["v_proj"])


def test_metas_order_needs_the_base(save, sites, make_model):
    meta = save(
        {"layers.0.attention.wq.lora_a": np.ones((32, 2), np.float32)}
        | {"layers.0.attention.wq.lora_b": np.ones((2, 32), np.float32)}
    )
    with pytest.raises(InputError, match=r"Meta's rotary order(.|\n)*which base"):
        npz.read(meta, sites, scale=2.0)
    odd = make_model("llama", head_dim=12).config
    with pytest.raises(InputError, match=r"32 outputs .* no whole number of heads of 12"):
        npz.read(meta, None, scale=2.0, base_config=odd)


# What is refused.


def test_pickled_objects_are_one_clear_error(save):
    arrays = {f"{Q0}.lora_a": np.array([{"a": 1}], dtype=object)}
    with pytest.raises(InputError, match=r"adapters\.npz holds pickled Python objects"):
        npz.read(save(arrays), scale=20.0)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((3, 2), dtype=np.int64), "torch.int64"),
        (np.array([["a"]]), "not numbers"),
        (np.zeros(4, dtype="V2"), "not numbers"),  # bfloat16, as mlx saves it
        (np.ones(3, dtype=np.float32), "1 dimensions"),
    ],
)
def test_arrays_that_are_no_matrices_of_floats_are_refused(save, array, message):
    with pytest.raises(InputError, match=message):
        npz.read(save({f"{Q0}.lora_a": array}), scale=20.0)


def test_every_misfit_is_told_at_once(save, qv, sites):
    arrays = arrays_of(qv())
    q1, v2 = "model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.v_proj"
    arrays[f"{q1}.lora_b"] = np.ones((8, 31), np.float32)
    del arrays[f"{v2}.lora_a"]
    arrays["model.layers.9.self_attn.q_proj.lora_a"] = np.ones((32, 8), np.float32)
    with pytest.raises(InputError) as caught:
        npz.read(save(arrays), sites, scale=20.0)
    text = str(caught.value)
    assert f"{q1}: lora_b is [8, 31], expected [8, 32]" in text
    assert f"{v2}: lora_a is missing" in text
    assert "model.layers.9.self_attn.q_proj: not a place that can be adapted; did you mean" in text


@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_file_is_one_clear_error_or_harmless(compressed, qv, sites, tmp_path):
    """Whichever byte is wrong: data, or a field of the archive."""
    write = np.savez_compressed if compressed else np.savez
    path = tmp_path / "adapters.npz"
    write(path, **dict(list(arrays_of(qv(rank=1)).items())[:2]))
    whole = path.read_bytes()
    wanted = npz.read(path, sites, scale=20.0).adapter.flat
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(whole), 200):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ (1 + place % 255)]) + whole[place + 1 :]
        )
        try:
            found = npz.read(path, sites, scale=20.0)
        except InputError:
            refused += 1
        else:
            assert torch.equal(found.adapter.flat, wanted)
    assert refused > 100


def test_a_text_under_that_name_is_no_npz(tmp_path):
    (tmp_path / "adapters.npz").write_text("a page that says the file was not found")
    with pytest.raises(InputError, match=r"cannot read .*adapters\.npz as an npz file"):
        npz.read(tmp_path, scale=20.0)


@pytest.mark.parametrize("header", ["", "{'descr'", "(((", "{'descr': '<f4', 'shape': (9,)}"])
def test_an_array_with_a_broken_header_is_refused(header, tmp_path):
    text = header.encode()
    with zipfile.ZipFile(tmp_path / "adapters.npz", "w") as archive:
        content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(32)
        archive.writestr(f"{Q0}.lora_a.npy", content)
    with pytest.raises(InputError, match=r"cannot read .*adapters\.npz as an npz file"):
        npz.read(tmp_path, scale=20.0)


def test_an_npz_without_arrays_is_refused(save):
    with pytest.raises(InputError, match="holds no tensors"):
        npz.read(save({}), scale=20.0)


def test_other_zip_files_are_no_adapters(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pt")
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    for name in ("weights.pt", "arrays.npz"):
        assert detect_format(tmp_path / name) is None
        with pytest.raises(InputError, match=f"{name} is no adapter"):
            read_any(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats_become_single_precision(save, qv, sites, dtype):
    adapter = qv()
    loaded = npz.read(
        save({n: a.astype(dtype) for n, a in arrays_of(adapter).items()}), sites, scale=20.0
    )
    assert loaded.adapter.flat.dtype == torch.float32
    torch.testing.assert_close(loaded.adapter.flat, adapter.flat, atol=1e-3, rtol=1e-3)
