"""Weft and PEFT read each other's adapters as the same function."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.core.errors import InputError
from weft.formats.peft import is_adapter, read_adapter, write_adapter
from weft.formats.registry import FORMATS, read_any
from weft.model.adapter import Site, Slot
from weft.model.sites import find_sites

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "gate_proj"],
    "opt": ["v_proj", "fc1"],
    "gpt2": ["c_attn", "c_proj"],
    "mixtral": ["q_proj", "gate"],  # PEFT turns `gate` into a parameter: it is no module
}
PATTERNS = {
    "plain": {"r": 4, "lora_alpha": 12},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"q_proj": 3, r".*\.1\..*c_attn": 2, "gate.weight": 2},
        "alpha_pattern": {r"layers\.2\..*": 1.5, r"h\.0\..*": 5},
    },
    "rslora-patterns": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 3, "c_attn|gate_proj": 5},
        "alpha_pattern": {"q_proj": 7, "self_attn.q_proj": 1000},  # the first match wins
    },
}


def peft_deltas(model):
    """Site name -> dW [O, I], by PEFT's own `get_delta_weight`."""
    wrapped = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    return {
        name: m.get_delta_weight("default").T if m.fan_in_fan_out else m.get_delta_weight("default")
        for name, m in wrapped.items()
    }


def deltas(adapter):
    """Site name -> dW [O, I] of a Weft adapter."""
    scales = {name: slot.scale for name, slot in adapter.layout.by_name.items()}
    return {name: scales[name] * (b @ a) for name, (a, b) in adapter.sites.items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.fixture
def saved_by_peft(make_model, tmp_path):
    """Save a random PEFT adapter; the directory, and what PEFT says its deltas are."""

    def save(name, save_embedding_layers=False, **config):
        fan = name == "gpt2"
        config = {"target_modules": TARGETS[name], "fan_in_fan_out": fan} | config
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # patterns that match nothing in this architecture
            model = peft.get_peft_model(make_model(name), peft.LoraConfig(**config))
        torch.manual_seed(3)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / "peft", save_embedding_layers=save_embedding_layers)
        return tmp_path / "peft", peft_deltas(model)

    return save


@pytest.fixture
def a_layout(make_model):
    """Slots of different ranks and scales on q_proj and v_proj of the tiny Llama."""
    sites = find_sites(make_model("llama"))
    chosen = [site for name, site in sites.items() if name.endswith(("q_proj", "v_proj"))]
    return [Slot(site, rank=2 + i % 2, scale=2.0 - i / 7) for i, site in enumerate(chosen)]


@pytest.mark.parametrize("config", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("name", TARGETS)
def test_reads_what_peft_wrote(name, config, make_model, saved_by_peft):
    directory, wanted = saved_by_peft(name, **config)
    sites = find_sites(make_model(name))
    known, inferred = read_adapter(directory, sites), read_adapter(directory)
    assert_same(deltas(known.adapter), wanted)
    assert_same(deltas(inferred.adapter), wanted)
    for loaded in (known, inferred):
        assert all(slot.site == sites[n] for n, slot in loaded.adapter.layout.by_name.items())
        assert loaded.notes == ()


LAYOUTS = {
    "one-scale": lambda sites: [Slot(s, 4, 2.0) for s in sites],
    "ranks-and-scales": lambda sites: [
        Slot(s, 1 + i % 3, 1 / (i + 1)) for i, s in enumerate(sites)
    ],
    "few": lambda sites: [Slot(s, 3, 16 / 3) for s in sites[1::3]],
}


@pytest.mark.parametrize("slots", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", TARGETS)
def test_peft_reads_what_weft_wrote(
    name, slots, make_model, adapter_of, merged, logits_of, tmp_path
):
    base = make_model(name)
    sites = find_sites(base)
    adapted = [s for n, s in sites.items() if n.rpartition(".")[2] in TARGETS[name]]
    adapter = adapter_of(slots(adapted))
    write_adapter(adapter, tmp_path / "a", base_ref="some/base", dropout=0.1, sites=sites)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()
    complaints = [str(w.message) for w in caught if w.category is not FutureWarning]
    assert [c for c in complaints if "did not match any targeted module" not in c] == []

    assert_same(peft_deltas(model), deltas(adapter))
    assert {n for n, m in model.named_modules() if hasattr(m, "lora_A")} == {
        f"base_model.model.{n}" for n in adapter.sites
    }
    wanted = logits_of(merged(make_model(name), adapter))
    assert (logits_of(model) - wanted).abs().max() <= 1e-5
    assert (wanted - logits_of(make_model(name))).abs().max() > 1e-3


@pytest.mark.parametrize("name", TARGETS)
def test_a_round_trip_changes_no_byte(name, make_model, adapter_of, tmp_path):
    sites = find_sites(make_model(name))
    slots = LAYOUTS["ranks-and-scales"](list(sites.values()))
    adapter = adapter_of(slots)
    write_adapter(adapter, tmp_path / "first", base_ref="b", dropout=0.1)
    loaded = read_adapter(tmp_path / "first", sites)
    assert loaded.adapter.layout == adapter.layout
    assert torch.equal(loaded.adapter.flat, adapter.flat)
    assert loaded.base_ref == "b"
    dropout = loaded.config["lora_dropout"]
    write_adapter(loaded.adapter, tmp_path / "second", base_ref="b", dropout=dropout)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_the_configuration_of_a_usual_adapter_is_short(make_model, adapter_of, tmp_path):
    sites = find_sites(make_model("llama"))
    slots = [Slot(s, 8, 2.0) for n, s in sites.items() if n.endswith(("q_proj", "v_proj"))]
    write_adapter(adapter_of(slots), tmp_path / "a", base_ref="b", sites=sites)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["layers_to_transform"] is None
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert list(config) == sorted(config)

    write_adapter(adapter_of(slots[2:]), tmp_path / "a", base_ref="b", sites=sites)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["layers_to_transform"] == [1, 2]

    write_adapter(adapter_of(slots[1:]), tmp_path / "a", base_ref="b", sites=sites)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(slot.site.name for slot in slots[1:])


def test_scales_survive_as_alpha_over_rank(tmp_path, adapter_of):
    wanted = {
        f"h.{rank}.{i}": (rank, scale)
        for rank in (1, 3, 7, 8, 49)
        for i, scale in enumerate(
            [1 / rank, 16 / rank, 0.7 / rank, 20.0, 1e-9 / rank, 16 / math.sqrt(rank)]
        )
    }
    slots = [Slot(Site(n, "linear", 2, 2, None), r, s) for n, (r, s) in wanted.items()]
    write_adapter(adapter_of(slots), tmp_path / "a", base_ref="b")
    read = read_adapter(tmp_path / "a").adapter.layout.by_name
    for name, (rank, scale) in wanted.items():
        exactly = not name.endswith(".5")  # alpha / sqrt(r) may lie between two quotients
        assert read[name].rank == rank
        assert read[name].scale == (scale if exactly else pytest.approx(scale, rel=3e-16))


def test_names_that_end_alike_keep_their_own_rank_and_scale(tmp_path, adapter_of):
    slots = [
        Slot(Site("head", "linear", 4, 4, None), 2, 1.0),
        Slot(Site("model.head", "linear", 4, 4, None), 3, 2.0),
        Slot(Site("modelxhead", "linear", 4, 4, None), 4, 3.0),
    ]
    write_adapter(adapter_of(slots), tmp_path / "a", base_ref="b")
    read = read_adapter(tmp_path / "a").adapter.layout.by_name
    assert {n: (s.rank, s.scale) for n, s in read.items()} == {
        "head": (2, 1.0),
        "model.head": (3, 2.0),
        "modelxhead": (4, 3.0),
    }


def test_an_earlier_adapter_is_replaced_and_other_files_are_kept(tmp_path, a_layout, adapter_of):
    adapter = adapter_of(a_layout)
    for _ in range(2):
        write_adapter(adapter, tmp_path / "a", base_ref="b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other files too: thesis\.tex"):
        write_adapter(adapter, tmp_path / "a", base_ref="b")


# What a folder can hold besides plain LoRA, or instead of it.


@pytest.fixture
def edited(tmp_path, a_layout, adapter_of):
    """An adapter on disk whose configuration and tensors a test can edit."""
    directory = tmp_path / "a"
    write_adapter(adapter_of(a_layout), directory, base_ref="some/base")

    def edit(config=(), tensors=lambda tensors: tensors):
        path = directory / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(config)))
        path = directory / "adapter_model.safetensors"
        save_file(tensors(load_file(path)), path)
        return directory

    return edit


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "something_new"),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("megatron_config", {"a": 1}),
        ("kasa_config", {"beta": 1.0}),
        ("a_field_of_the_future", "x"),
    ],
)
def test_a_field_that_is_more_than_lora_is_refused_by_name(edited, field, value):
    with pytest.raises(InputError, match=f"`{field}` is"):
        read_adapter(edited({field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", "eva"),
        ("init_lora_weights", False),
        ("lora_dropout", 0.5),
        ("target_modules", ["nothing", "that", "exists"]),
        ("modules_to_save", []),
        ("a_field_of_the_future", None),
        ("exclude_modules", "x.*"),
    ],
)
def test_fields_that_do_not_change_the_function_are_ignored(edited, field, value):
    before = read_adapter(edited()).adapter
    after = read_adapter(edited({field: value})).adapter
    assert after.layout == before.layout
    assert torch.equal(after.flat, before.flat)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "`peft_type`: .*'PROMPT_TUNING'"),
        ({"r": 0}, "`r`: .*greater than 0"),
        ({"lora_alpha": None}, "`lora_alpha`: .*not None"),
        ({"rank_pattern": {"(": 2}}, "not a regular expression"),
    ],
)
def test_a_configuration_that_peft_would_not_write_is_refused(edited, config, message):
    with pytest.raises(InputError, match=message):
        read_adapter(edited(config))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model.model.h.q.lora_magnitude_vector", "magnitude of DoRA"),
        ("base_model.model.wte.lora_embedding_A", "adapts an embedding"),
        ("base_model.model.h.q.lora_B.bias", "bias of `lora_bias`"),
        ("base_model.model.lm_head.weight", "replaces a weight of the base"),
        ("base_model.model.h.q.lora_diag", "not known to Weft"),
    ],
)
def test_a_tensor_that_is_more_than_lora_is_refused_by_name(edited, name, message):
    directory = edited(tensors=lambda tensors: tensors | {name: torch.zeros(2)})
    with pytest.raises(InputError, match=f"`{name}` .*{message}"):
        read_adapter(directory)


def test_every_misfit_is_told_at_once(edited, make_model):
    def break_four(tensors):
        prefix = "base_model.model.model.layers"
        tensors[f"{prefix}.0.self_attn.q_prj.lora_A.weight"] = tensors.pop(
            f"{prefix}.0.self_attn.q_proj.lora_A.weight"
        )
        tensors[f"{prefix}.1.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 99)
        del tensors[f"{prefix}.2.self_attn.v_proj.lora_B.weight"]
        return tensors

    with pytest.raises(InputError) as caught:
        read_adapter(edited(tensors=break_four), find_sites(make_model("llama")))
    text = str(caught.value)
    assert "trained on some/base, does not fit the base" in text
    assert "model.layers.0.self_attn.q_proj: lora_A is missing" in text
    assert (
        "model.layers.0.self_attn.q_prj: not a place that can be adapted;"
        " did you mean `model.layers.0.self_attn.q_proj`?" in text
    )
    assert "model.layers.1.self_attn.q_proj: lora_A is [2, 99], expected [2, 32]" in text
    assert "model.layers.2.self_attn.v_proj: lora_B is missing" in text


def test_another_base_gives_a_short_error(tmp_path, make_model, adapter_of):
    slots = [Slot(site, 2, 1.0) for site in find_sites(make_model("llama")).values()]
    write_adapter(adapter_of(slots), tmp_path / "a", base_ref="b")
    with pytest.raises(InputError, match=f"and {len(slots) - 12} more") as caught:
        read_adapter(tmp_path / "a", find_sites(make_model("gpt2")))
    assert len(str(caught.value).splitlines()) < 20


def test_a_rank_that_the_tensors_do_not_have_is_refused(edited):
    with pytest.raises(InputError, match=r"lora_A is \[2, 32\], expected \[5, any\]"):
        read_adapter(edited({"rank_pattern": {"layers.0.self_attn.q_proj": 5}}))


def test_fused_experts_are_refused(saved_by_peft):
    directory, _ = saved_by_peft(
        "mixtral",
        r=2,
        target_modules=[],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
    )
    with pytest.raises(InputError) as caught:
        read_adapter(directory)
    for name in ("experts.base_layer.lora_A.weight", "experts.lora_B.weight"):
        assert f"{name}` adapts the experts of a mixture" in str(caught.value)


def test_a_copy_of_the_base_weight_is_refused_with_the_remedy(saved_by_peft):
    directory, _ = saved_by_peft("qwen2", save_embedding_layers=True, target_modules=["lm_head"])
    with pytest.raises(InputError, match=r"lm_head\.base_layer\.weight.*save_embedding_layers"):
        read_adapter(directory)


def test_keys_with_the_adapter_name_or_without_the_prefix_are_read(edited):
    wanted = read_adapter(edited()).adapter

    def renamed(tensors):
        return {
            key.removeprefix("base_model.model.").replace(".weight", ".default.weight"): tensor
            for key, tensor in tensors.items()
        }

    found = read_adapter(edited(tensors=renamed)).adapter
    assert found.layout == wanted.layout
    assert torch.equal(found.flat, wanted.flat)


def test_a_router_under_its_name_of_transformers_4_is_read(saved_by_peft, make_model, tmp_path):
    directory, wanted = saved_by_peft("mixtral", r=2)
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(
        {k.replace(".mlp.gate.", ".block_sparse_moe.gate."): v for k, v in tensors.items()}, path
    )
    assert_same(deltas(read_adapter(directory, find_sites(make_model("mixtral"))).adapter), wanted)


def test_one_place_under_two_names_is_refused(saved_by_peft, make_model):
    directory, _ = saved_by_peft("mixtral", r=2)
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    twice = {k.replace(".mlp.gate.", ".block_sparse_moe.gate."): v for k, v in tensors.items()}
    save_file({name: tensor.clone() for name, tensor in (tensors | twice).items()}, path)
    with pytest.raises(InputError, match=r"gate\.lora_A\.weight` is a second one for the same"):
        read_adapter(directory, find_sites(make_model("mixtral")))


def test_half_precision_is_widened_and_numbers_that_are_not_finite_are_noted(edited):
    def halved(tensors):
        tensors = {key: tensor.bfloat16() for key, tensor in tensors.items()}
        tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"][0, 0] = math.nan
        return tensors

    loaded = read_adapter(edited(tensors=halved))
    assert loaded.adapter.flat.dtype == torch.float32
    assert loaded.notes == ("not finite: model.layers.0.self_attn.q_proj.lora_B",)


def test_files_that_are_not_an_adapter_are_named(edited, tmp_path):
    directory = edited()
    tensors = directory / "adapter_model.safetensors"
    whole = tensors.read_bytes()
    for cut in (0, 5, 100, len(whole) - 1):
        tensors.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cannot read .*adapter_model\.safetensors"):
            read_adapter(directory)
    tensors.unlink()
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors"):
        read_adapter(directory)
    (directory / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InputError, match=r"pickle file(.|\n)*hint: .*convert it"):
        read_adapter(directory)
    with pytest.raises(InputError, match="there is no directory"):
        read_adapter(tmp_path / "nowhere")


def test_a_subfolder_of_a_named_adapter_is_suggested(edited):
    directory = edited()
    with pytest.raises(InputError, match=rf"did you mean {directory}\?"):
        read_any(directory.parent)


def test_formats_recognise_their_own_files(edited, tmp_path):
    directory = edited()
    assert [f.name for f in FORMATS.values() if f.detect(directory)] == ["peft"]
    assert not is_adapter(tmp_path)
    assert {name: f.name for name, f in FORMATS.items()} == {name: name for name in FORMATS}
