from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

import weft
from weft.model.seen import tensor_seen
from weft.runs.evidence import Happened, Settings, Snapshot, Weights
from weft.runs.recording import Recording
from weft.runs.sketch import probes

IDS = torch.tensor([[5, 6, 7]])


def use(model):
    with torch.no_grad():
        return model(IDS)


def test_weights_say_what_they_are_and_where_they_came_from(small_base, record):
    def run():
        model = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
        use(model)
        return model

    left = record(run)
    (seen,) = left.of(Weights)
    assert (seen.model, seen.name, seen.load, seen.dtype) == (
        "model-0",
        small_base,
        small_base,
        "float32",
    )
    assert (seen.architecture, seen.attention) == ("LlamaForCausalLM", "sdpa")
    assert seen.config["hidden_size"] == 32
    assert seen.changed == {} and seen.step is None
    tensors = dict(left.result.named_parameters())
    assert set(tensors) <= set(seen.tensors)
    for name, tensor in tensors.items():
        assert seen.tensors[name] == tensor_seen(tensor)
    weight = tensors["model.layers.1.mlp.up_proj.weight"].detach().numpy()
    sketch = left.array(seen.sketches["model.layers.1.mlp.up_proj"])
    np.testing.assert_allclose(sketch, weight @ probes(32), rtol=1e-5, atol=1e-6)
    (loaded,) = (event for event in left.of(Happened) if event.what == "load")
    assert loaded.place == small_base


def edit(model):
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1


def edit_data(model):
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1


@pytest.mark.parametrize("change", [edit, edit_data], ids=lambda change: change.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_that_is_not_as_loaded_is_kept_whole(small_base, record, change, dtype):
    def run():
        model = AutoModelForCausalLM.from_pretrained(small_base, dtype=dtype)
        change(model)
        use(model)
        return model

    left = record(run)
    (seen,) = left.of(Weights)
    assert list(seen.changed) == ["model.layers.0.mlp.up_proj.weight"]
    kept = left.array(seen.changed["model.layers.0.mlp.up_proj.weight"])
    weight = left.result.model.layers[0].mlp.up_proj.weight
    np.testing.assert_array_equal(kept, weight.detach().float())


def test_a_cast_is_no_change_and_a_lossy_one_is(small_base, record):
    def run(first, second):
        model = AutoModelForCausalLM.from_pretrained(small_base, dtype=first)
        use(model.to(second))

    rounded = record(lambda: run(torch.float32, torch.float16), "rounded")
    assert rounded.of(Weights)[0].changed == {}
    assert rounded.of(Weights)[0].dtype == "float16"

    def lossy():
        model = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
        use(model.to(torch.bfloat16).float())

    assert record(lossy, "lossy").of(Weights)[0].changed


@pytest.mark.parametrize("change", [edit, edit_data], ids=lambda change: change.__name__)
def test_what_changes_between_two_prompts_is_written_down_then(make_model, record, change):
    model = make_model("llama")

    def run():
        use(model)
        use(model)
        change(model)
        use(model)

    first, second = record(run).of(Weights)
    assert first.load is None and len(first.changed) == len(first.tensors)
    assert list(second.tensors) == ["model.layers.0.mlp.up_proj.weight"]
    assert list(second.sketches) == ["model.layers.0.mlp.up_proj"]


def test_tied_tensors_are_named(make_model, record):
    tied = record(lambda: use(make_model("llama", tie_word_embeddings=True)), "tied")
    assert ("model.embed_tokens.weight", "lm_head.weight") in tied.of(Weights)[0].tied
    apart = record(lambda: use(make_model("llama")), "apart")
    assert not any("lm_head.weight" in names for names in apart.of(Weights)[0].tied)


def test_an_adapter_is_no_weight_of_the_base(make_model, record):
    base = make_model("llama")
    plain = record(lambda: use(base), "plain").of(Weights)[0]
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    dressed = record(lambda: use(model), "dressed").of(Weights)[0]
    assert dressed.tensors == plain.tensors


def test_an_adapter_is_seen_when_used_switched_and_at_the_end(make_model, record):
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(make_model("llama"), config)

    def run():
        use(model)
        use(model)
        with model.disable_adapter():
            use(model)

    left = record(run)
    snapshots = left.of(Snapshot)
    assert [each.when for each in snapshots] == ["use", "use", "end"]
    on, off, _ = (each.modules["model.layers.0.self_attn.q_proj"] for each in snapshots)
    assert (on.rank, on.shape, on.alpha, on.scale) == (2, (32, 32), 8.0, 4.0)
    assert (on.active, off.active, off.seen_scale) == (True, False, 0.0)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    np.testing.assert_array_equal(left.array(on.a), a)
    np.testing.assert_array_equal(left.array(on.b), b)
    assert on.norm_update == pytest.approx(4 * float((b @ a).norm()), rel=1e-5)
    assert snapshots[0].trainable == {
        "adapter": 3 * 2 * 64,
        "base": 0,
        "total": sum(p.numel() for p in model.parameters()),
    }
    settings = {k: v for each in left.of(Settings) for k, v in each.values.items()}
    assert (settings["adapter.rank"], settings["adapter.targets"]) == (2, ["q_proj"])


def test_a_model_without_adapters_has_no_snapshot(make_model, record):
    assert record(lambda: use(make_model("gpt2"))).of(Snapshot) == []


def test_an_adapter_says_where_it_was_read_from(make_model, record, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(make_model("llama"), config).save_pretrained(tmp_path / "adapter")

    def run():
        use(PeftModel.from_pretrained(make_model("llama"), tmp_path / "adapter"))

    left = record(run)
    assert {each.load for each in left.of(Snapshot)} == {str(tmp_path / "adapter")}
    assert left.of(Snapshot)[-1].trainable["adapter"] == 0


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
        PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    ],
    ids=["a factor an output", "virtual tokens"],
)
def test_an_adapter_that_is_not_lora_is_told_to_be_unseen(make_model, tmp_path, config):
    model = get_peft_model(make_model("llama"), config).eval()
    with weft.record(tmp_path / "recording"):
        model(torch.tensor([[5, 6, 7]]))
    said = [each.text for each in Recording(tmp_path / "recording").events if each.kind == "notice"]
    kind = config.peft_type.value
    assert f"adapters of the type {kind} were not looked at, only LoRA" in said
