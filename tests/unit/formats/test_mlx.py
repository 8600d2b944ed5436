"""mlx-lm's folders: what is written, what is read, and what is refused by name."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.core.errors import InputError
from weft.formats import mlx
from weft.formats.peft import read_adapter, write_adapter
from weft.formats.registry import detect_format, read_any
from weft.model.adapter import Site, Slot
from weft.model.sites import find_sites

Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def sites(make_model):
    return find_sites(make_model("llama"))


@pytest.fixture
def folder(sites, adapter_of, tmp_path):
    """An adapter on q and v whose configuration and tensors a test can edit."""
    chosen = [Slot(s, 4, 2.0) for n, s in sites.items() if n.endswith(("q_proj", "v_proj"))]
    mlx.write(adapter_of(chosen), tmp_path / "a", base_ref="some/base", sites=sites)

    def edit(config=(), tensors=lambda tensors: tensors):
        path = tmp_path / "a" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(config)))
        path = tmp_path / "a" / "adapters.safetensors"
        save_file(tensors(load_file(path)), path)
        return tmp_path / "a"

    return edit


def config_of(directory):
    return json.loads((directory / "adapter_config.json").read_text())


def test_the_configuration_is_what_mlx_lm_reads(folder):
    assert config_of(folder()) == {
        "fine_tune_type": "lora",
        "lora_parameters": {
            "dropout": 0.0,
            "keys": ["self_attn.q_proj", "self_attn.v_proj"],
            "rank": 4,
            "scale": 2.0,
        },
        "model": "some/base",
        "num_layers": 3,
    }


def test_factors_are_transposed_in_single_precision_and_contiguous(folder, sites):
    tensors = load_file(folder() / "adapters.safetensors")
    adapter = mlx.read(folder(), sites).adapter
    a_rI, b_Or = adapter.sites[Q0]
    assert torch.equal(tensors[f"{Q0}.lora_a"], a_rI.T)
    assert torch.equal(tensors[f"{Q0}.lora_b"], b_Or.T)
    assert {t.dtype for t in tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("layers", "known", "unknown"), [({2}, 1, -1), ({1}, 2, -1), ({0, 2}, 3, -1)]
)
def test_num_layers_reaches_down_to_the_lowest_layer(
    layers, known, unknown, sites, adapter_of, tmp_path
):
    chosen = [Slot(s, 2, 1.0) for s in sites.values() if s.layer in layers]
    mlx.write(adapter_of(chosen), tmp_path / "a", base_ref="b", sites=sites)
    assert config_of(tmp_path / "a")["num_layers"] == known
    mlx.write(adapter_of(chosen), tmp_path / "a", base_ref="b")
    assert config_of(tmp_path / "a")["num_layers"] == unknown


def test_places_outside_the_blocks_have_their_whole_name_as_key(adapter_of, tmp_path):
    sites = [
        Site("model.project_in", "linear", 4, 6, None),
        Site("model.layers.1.fc", "linear", 6, 6, 1),
        Site("model.vision.blocks.7.fc", "linear", 6, 6, 7),
        Site("model.layers.2.fc", "linear", 6, 6, 2),
    ]
    adapter = adapter_of([Slot(s, 2, 1.0) for s in sites])
    mlx.write(adapter, tmp_path / "a", base_ref="b", sites={s.name: s for s in sites})
    config = config_of(tmp_path / "a")
    assert config["lora_parameters"]["keys"] == [
        "fc",
        "model.project_in",
        "model.vision.blocks.7.fc",
    ]
    assert config["num_layers"] == 2


def test_one_scale_of_most_sites_and_the_largest_rank_are_written(sites, adapter_of, tmp_path):
    chosen = [s for n, s in sites.items() if n.endswith("q_proj")]
    slots = [Slot(s, r, x) for s, r, x in zip(chosen, (2, 5, 3), (0.3, 0.7, 0.7), strict=True)]
    adapter = adapter_of(slots)
    mlx.write(adapter, tmp_path / "a", base_ref="b", sites=sites)
    parameters = config_of(tmp_path / "a")["lora_parameters"]
    assert (parameters["rank"], parameters["scale"]) == (5, 0.7)
    found = mlx.read(tmp_path / "a", sites).adapter
    for slot in slots:
        (a_rI, b_Or), (wide_a, wide_b) = adapter.sites[slot.site.name], found.sites[slot.site.name]
        assert torch.equal(wide_a[: slot.rank], a_rI)
        assert not wide_a[slot.rank :].any()
        assert not wide_b[:, slot.rank :].any()
        wanted = (b_Or.double() * (slot.scale / 0.7)).float()  # one rounding; none at 0.7 itself
        assert torch.equal(wide_b[:, : slot.rank], wanted)


def test_an_adapter_that_is_off_everywhere_can_be_written(sites, adapter_of, tmp_path):
    mlx.write(adapter_of([Slot(sites[Q0], 2, 0.0)]), tmp_path / "a", base_ref="b")
    assert mlx.read(tmp_path / "a").adapter.layout.slots[0].scale == 0


def test_a_place_that_is_off_stays_off_among_others(sites, adapter_of, tmp_path):
    chosen = [s for s in sites.values() if s.name.endswith("q_proj")]
    slots = [Slot(s, 2, x) for s, x in zip(chosen, (0.0, 0.0, 3.0), strict=True)]
    mlx.write(adapter_of(slots), tmp_path / "a", base_ref="b")
    found = mlx.read(tmp_path / "a").adapter
    assert {slot.scale for slot in found.layout.slots} == {3.0}
    assert [bool(b_Or.any()) for _, b_Or in found.sites.values()] == [False, False, True]


def test_a_label_of_peft_in_the_configuration_changes_nothing(folder, sites):
    """unsloth writes `peft_type` into a configuration of mlx-lm's layout."""
    directory = folder({"peft_type": "LORA", "r": 4, "lora_alpha": 99})
    assert detect_format(directory).name == "mlx"
    loaded = read_any(directory, sites)
    assert {slot.scale for slot in loaded.adapter.layout.slots} == {2.0}


def test_the_whole_settings_of_a_run_are_kept_and_tell_the_base(folder):
    loaded = mlx.read(folder({"data": "some/rows", "iters": 1000, "lr_schedule": None}))
    assert loaded.config["data"] == "some/rows"
    assert (loaded.base_ref, loaded.notes, loaded.format) == ("some/base", (), "mlx")
    unnamed = mlx.read(folder({"model": None, "base_model_name_or_path": "b"}))
    assert unnamed.base_ref == "b"


def test_a_checkpoint_of_a_run_is_read_by_its_file_with_the_configuration_beside_it(folder):
    directory = folder()
    wanted = mlx.read(directory).adapter
    for step in (100, 200):
        copy = (directory / "adapters.safetensors").read_bytes()
        (directory / f"{step:07}_adapters.safetensors").write_bytes(copy)
    found = read_any(directory / "0000100_adapters.safetensors").adapter
    assert found.layout == wanted.layout
    assert torch.equal(found.flat, wanted.flat)

    (directory / "adapters.safetensors").unlink()
    assert detect_format(directory) is None  # which of the two is not for Weft to choose
    with pytest.raises(InputError, match=r"hint: name one of them: .*0000100_adapters\.safetens"):
        read_any(directory)


def test_half_precision_is_widened_and_numbers_that_are_not_finite_are_noted(folder):
    def halved(tensors):
        tensors = {key: tensor.half() for key, tensor in tensors.items()}
        tensors[f"{Q0}.lora_b"][0, 0] = math.inf
        return tensors

    loaded = mlx.read(folder(tensors=halved))
    assert loaded.adapter.flat.dtype == torch.float32
    assert loaded.notes == (f"not finite: {Q0}.lora_b",)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fine_tune_type": "dora"}, "`fine_tune_type` is 'dora'"),
        ({"fine_tune_type": "full", "lora_parameters": None}, "`fine_tune_type` is 'full'"),
        ({"use_dora": True}, "`use_dora` is True"),
        ({"lora_parameters": {"rank": "8", "scale": 1.0}}, "`lora_parameters.rank`: .*'8'"),
        (
            {"lora_parameters": {"rank": 5, "scale": 1.0}},
            r"lora_a is \[32, 4\], expected \[.*, 5\]",
        ),
        ({"num_layers": "all"}, "`num_layers`: .*'all'"),
    ],
)
def test_a_field_that_the_tensors_do_not_bear_out_is_refused(folder, config, message):
    with pytest.raises(InputError, match=message):
        mlx.read(folder(config))


@pytest.mark.parametrize("text", ["[]", "{", "null", '"x"', ""])
def test_a_configuration_that_is_no_object_is_refused(folder, text):
    directory = folder()
    (directory / "adapter_config.json").write_text(text)
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        mlx.read(directory)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (f"{Q0}.m", torch.zeros(32), "magnitude of DoRA"),
        ("model.embed_tokens.lora_a", torch.zeros(97, 2), "adapts an embedding"),
        ("model.layers.0.mlp.switch_mlp.up_proj.lora_a", torch.zeros(4, 2, 32), "the experts"),
        ("model.layers.0.mlp.up_proj.scales", torch.zeros(4, 2), "quantised weight"),
        ("model.layers.0.mlp.up_proj.weight", torch.zeros(4, 2), "replaces a weight"),
        ("model.norm.weight", torch.zeros(32), "replaces a weight"),
        ("model.layers.0.mlp.up_proj.A", torch.zeros(4, 2), "not known to Weft"),
        ("model.layers.0.mlp.up_proj.lora_a", torch.zeros(4, 2, dtype=torch.int8), "torch.int8"),
        ("model.layers.0.mlp.up_proj.lora_a", torch.zeros(4), "1 dimensions"),
    ],
)
def test_a_tensor_that_is_more_than_lora_is_refused_by_name(folder, sites, name, tensor, message):
    directory = folder(tensors=lambda tensors: tensors | {name: tensor})
    for known in (sites, None):
        with pytest.raises(InputError, match=f"`{name}` .*{message}(.|\n)*mlx_lm.fuse"):
            mlx.read(directory, known)


def test_every_misfit_is_told_at_once(folder, sites):
    def break_four(tensors):
        tensors["model.layers.0.self_attn.q_prj.lora_a"] = tensors.pop(f"{Q0}.lora_a")
        tensors["model.layers.1.self_attn.q_proj.lora_a"] = torch.zeros(99, 4)
        tensors["model.layers.1.self_attn.v_proj.lora_b"] = torch.zeros(3, 16)
        del tensors["model.layers.2.self_attn.v_proj.lora_b"]
        return tensors

    with pytest.raises(InputError) as caught:
        mlx.read(folder(tensors=break_four), sites)
    text = str(caught.value)
    assert "trained on some/base, does not fit the base" in text
    assert f"{Q0}: lora_a is missing" in text
    assert f"q_prj: not a place that can be adapted; did you mean `{Q0}`?" in text
    assert "model.layers.1.self_attn.q_proj: lora_a is [99, 4], expected [32, 4]" in text
    assert "model.layers.1.self_attn.v_proj: lora_b is [3, 16], expected [4, 16]" in text
    assert "model.layers.2.self_attn.v_proj: lora_b is missing" in text


def test_factors_that_do_not_fit_each_other_are_refused_without_a_base(folder):
    def tear(tensors):
        tensors[f"{Q0}.lora_b"] = torch.zeros(3, 32)
        return tensors

    directory = folder({"lora_parameters": {"scale": 1.0}}, tear)
    with pytest.raises(
        InputError, match=r"does not fit together(.|\n)*\[3, 32\], expected \[4, any"
    ):
        mlx.read(directory)


def test_one_place_under_two_names_is_refused(make_model, adapter_of, tmp_path):
    base = make_model("mixtral")
    sites = find_sites(base)
    routers = [Slot(s, 2, 1.0) for s in sites.values() if s.kind == "router"]
    mlx.write(adapter_of(routers), tmp_path / "a", base_ref="b", base_config=base.config)
    path = tmp_path / "a" / "adapters.safetensors"
    tensors = load_file(path)
    twice = {n.replace("block_sparse_moe", "mlp"): t.clone() for n, t in tensors.items()}
    save_file(tensors | twice, path)
    with pytest.raises(InputError, match=r"mlp\.gate.* are for the same place"):
        mlx.read(tmp_path / "a", sites)


def test_a_file_without_tensors_is_refused(folder):
    with pytest.raises(InputError, match="holds no tensors"):
        mlx.read(folder(tensors=lambda tensors: {}))


PEFT_CONFIGS = {
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"q_proj": 3, "c_attn": 2, "gate.weight": 2},
        "alpha_pattern": {r"layers\.2\..*": 1.5, r"h\.0\..*": 5},
    },
    "last layers": {"r": 8, "lora_alpha": 160, "layers_to_transform": [1, 2]},
}


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::UserWarning:peft")
@pytest.mark.filterwarnings("ignore::RuntimeWarning:peft")
@pytest.mark.parametrize("config", PEFT_CONFIGS.values(), ids=PEFT_CONFIGS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_peft_to_mlx_to_peft_has_the_updates_that_peft_computes(name, config, make_model, tmp_path):
    """Up to one rounding of B where scales differ; PEFT's own deltas are the reference."""
    peft = pytest.importorskip("peft")
    targets = {"llama": ["q_proj", "up_proj"], "gpt2": ["c_attn", "c_proj"]}
    targets = targets.get(name, ["q_proj", "gate"])
    base = make_model(name)
    sites = find_sites(base)
    model = peft.get_peft_model(
        base,
        peft.LoraConfig(target_modules=targets, fan_in_fan_out=name == "gpt2", **config),
    )
    torch.manual_seed(3)
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "peft")
    first = read_adapter(tmp_path / "peft", sites).adapter
    mlx.write(first, tmp_path / "mlx", base_ref="b", sites=sites, base_config=base.config)
    write_adapter(mlx.read(tmp_path / "mlx", sites).adapter, tmp_path / "b", base_ref="b")
    back = peft.PeftModel.from_pretrained(make_model(name), tmp_path / "b")
    wanted, found = deltas(model), deltas(back)
    assert wanted.keys() == found.keys() != set()
    for site, delta in wanted.items():
        assert (found[site] - delta).abs().max() <= 1e-6 * delta.abs().max(), site


def deltas(model):
    """Name -> dW, by PEFT's own `get_delta_weight`, where it is not zero."""
    found = {
        name: module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    return {name: delta for name, delta in found.items() if delta.any()}
