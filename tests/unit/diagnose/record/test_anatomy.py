from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from weft.diagnose.record.anatomy import (
    is_model,
    loras,
    plain_name,
    plan_of,
    unwrapped,
)
from weft.diagnose.record.probing import base_sketch, seen_scale
from weft.runs.sketch import probes

OUT, IN, RANK = 12, 8, 3


class Parameters(nn.Module):
    """A linear layer beside two bare factors."""

    def __init__(self, scale, size=(OUT, IN), turned=False, names=("lora_A", "lora_B")):
        super().__init__()
        out, inputs = size
        self.base = nn.Linear(inputs, out)
        self.scaling, self.turned, self.names = scale, turned, names
        a, b = torch.randn(RANK, inputs), torch.randn(out, RANK)
        setattr(self, names[0], nn.Parameter(a.T.clone() if turned else a))
        setattr(self, names[1], nn.Parameter(b.T.clone() if turned else b))

    def forward(self, x):
        a, b = (getattr(self, name) for name in self.names)
        update = x @ a @ b if self.turned else x @ a.T @ b.T
        return self.base(x) + self.scaling * update


class Layers(nn.Module):
    """A linear layer beside two small ones, with dropout."""

    def __init__(self, scale):
        super().__init__()
        self.linear = nn.Linear(IN, OUT)
        self.down = nn.Linear(IN, RANK, bias=False)
        self.up = nn.Linear(RANK, OUT, bias=False)
        self.drop = nn.Dropout(0.5)
        self.scale = scale

    def forward(self, x):
        return self.linear(x) + self.up(self.down(self.drop(x))) * self.scale


class Inherited(nn.Linear):
    """A linear layer that has the factors itself."""

    def __init__(self, scale):
        super().__init__(IN, OUT)
        self.lora_a = nn.Parameter(torch.randn(RANK, IN))
        self.lora_b = nn.Parameter(torch.randn(OUT, RANK))
        self.factor = scale

    def forward(self, x):
        return super().forward(x) + self.factor * (x @ self.lora_a.T @ self.lora_b.T)


MAKERS = {
    "parameters": Parameters,
    "turned parameters": lambda scale: Parameters(scale, turned=True),
    "a square layer": lambda scale: Parameters(scale, size=(IN, IN)),
    "a square layer, turned": lambda scale: Parameters(scale, size=(IN, IN), turned=True),
    "odd names": lambda scale: Parameters(scale, names=("first", "second")),
    "layers": Layers,
    "inherited": Inherited,
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("scale", [0.0, 2.0, 16.0])
def test_a_hand_written_adapter_is_found_and_its_scale_is_measured(kind, scale):
    torch.manual_seed(0)
    model = nn.Sequential(MAKERS[kind](scale))
    (lora,) = loras(model)
    assert (lora.name, lora.style) == ("0", "hand-written")
    a, b = lora.factors()
    x = torch.randn(5, IN)
    base = lora.base if lora.base is not lora.module else nn.Linear(IN, OUT)
    if base is not lora.base:
        base.load_state_dict({"weight": lora.base.weight, "bias": lora.base.bias})
    model.eval()
    torch.testing.assert_close(model(x), base(x) + scale * (x @ a.T @ b.T), rtol=1e-4, atol=1e-4)
    seen, unexplained = seen_scale(lora)
    assert seen == pytest.approx(scale, abs=1e-5)
    assert unexplained < 1e-5


@pytest.mark.parametrize("kind", ["parameters", "layers", "inherited"])
def test_a_scale_is_measured_while_b_is_zero_and_nothing_is_left_behind(kind):
    model = MAKERS[kind](4.0).train()
    (lora,) = loras(model)
    with torch.no_grad():
        lora.parts[1].zero_()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    versions = [part._version for part in model.parameters()]
    generator = torch.get_rng_state()
    assert seen_scale(lora)[0] == pytest.approx(4.0, abs=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [part._version for part in model.parameters()] == versions
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(part.training for part in model.modules())


def test_a_module_that_does_more_than_its_factors_say_is_not_explained():
    class Odd(Parameters):
        def forward(self, x):
            return super().forward(x) + x.abs().sum(-1, keepdim=True)

    (lora,) = loras(Odd(2.0))
    assert seen_scale(lora)[1] > 0.1


def test_hooks_of_the_script_are_not_called_by_a_measurement():
    model, calls = Parameters(2.0), []
    model.base.register_forward_hook(lambda *args: calls.append(1))
    (lora,) = loras(model)
    seen_scale(lora)
    assert calls == []
    model(torch.randn(1, IN))
    assert calls == [1]


@pytest.mark.parametrize(
    ("settings", "scale"),
    [({}, 4.0), ({"use_rslora": True}, 8 / 2**0.5)],
    ids=["alpha / r", "alpha / sqrt(r)"],
)
def test_adapters_of_peft_are_found_under_plain_names(make_model, settings, scale):
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"], lora_dropout=0.1, **settings)
    model = get_peft_model(make_model("llama"), config)
    found = loras(unwrapped(model))
    assert [lora.name for lora in found] == [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]
    for lora in found:
        assert (lora.alpha, lora.dropout, lora.active, lora.merged) == (8.0, 0.1, True, False)
        assert lora.scale == pytest.approx(scale)
        assert seen_scale(lora)[0] == pytest.approx(scale, rel=1e-5)


def test_an_adapter_of_peft_that_is_switched_off_or_merged_adds_nothing(make_model):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(make_model("llama"), config)
    with model.disable_adapter():
        off = loras(unwrapped(model))[0]
        assert not off.active
        assert seen_scale(off)[0] == 0.0
    model.merge_adapter()
    merged = loras(unwrapped(model))[0]
    assert merged.merged
    assert seen_scale(merged)[0] == 0.0


def test_several_active_adapters_are_one(make_model):
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    other = LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(make_model("llama"), config)
    model.add_adapter("other", other)
    model.base_model.set_adapter(["default", "other"])
    lora = loras(unwrapped(model))[0]
    a, b = lora.factors()
    layer = lora.module
    expected = sum(
        layer.scaling[name] * layer.lora_B[name].weight @ layer.lora_A[name].weight
        for name in ("default", "other")
    )
    torch.testing.assert_close(lora.scale * b @ a, expected.detach())
    assert seen_scale(lora)[0] == pytest.approx(lora.scale, rel=1e-5)


def test_modules_that_are_not_adapters_are_not_taken_for_such(make_model):
    for architecture in ("llama", "mixtral", "gpt2", "opt", "bloom", "gptj"):
        assert loras(make_model(architecture)) == []


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_sketch_is_what_a_layer_makes_of_the_probes(make_model, architecture):
    model = make_model(architecture)
    layer = (
        model.model.layers[0].mlp.up_proj
        if architecture == "llama"
        else (model.transformer.h[0].mlp.c_fc)
    )
    x = torch.from_numpy(probes(32).copy()).T
    bias = 0 if layer.bias is None else layer.bias
    torch.testing.assert_close(base_sketch(layer), (layer(x) - bias).T.detach())


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2", "opt", "gptj", "bloom"])
def test_blocks_are_those_of_the_decoder(make_model, architecture):
    model = make_model(architecture)
    names = {id(part): name for name, part in model.named_modules()}
    found = [names[id(part)] for part in plan_of(model).blocks]
    assert len(found) == 3
    assert all(name.endswith(f".{i}") for i, name in enumerate(found))


def test_a_plan_is_made_again_when_a_block_is_another(make_model):
    model = make_model("llama")
    assert plan_of(model) is plan_of(model)
    before, wrapped = plan_of(model), nn.Sequential(model.model.layers[1])
    model.model.layers[1] = wrapped
    assert plan_of(model) is not before


def test_a_model_embeds_tokens_and_a_loss_does_not(make_model):
    assert is_model(make_model("llama"))
    assert not is_model(nn.CrossEntropyLoss())
    assert not is_model(nn.Embedding(3, 3))
    assert plan_of(make_model("gpt2")).positions and plan_of(make_model("llama")).positions


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.q_proj.base_layer",
        "model.layers.0.q_proj",
        "module._orig_mod.model.layers.0.q_proj",
    ],
)
def test_a_plain_name_has_no_wrappers(name):
    assert plain_name(name) == "model.layers.0.q_proj"


def test_what_has_adapters_inside_is_none_itself(make_model):
    model = make_model("llama")
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            old = getattr(layer.self_attn, name)
            new = Parameters(2.0, size=(old.out_features, old.in_features))
            setattr(layer.self_attn, name, new)
    names = [lora.name.rpartition(".")[2] for lora in loras(model)]
    assert names == ["q_proj", "v_proj"] * 3


def patched(layer, a, b, scale):
    plain = layer.forward

    def forward(x):
        return plain(x) + scale * (x @ a.T) @ b.T

    layer.forward = forward


def hooked(layer, a, b, scale):
    layer.register_forward_hook(lambda module, args, out: out + scale * (args[0] @ a.T) @ b.T)


def hooked_by_default(layer, a, b, scale):
    def hook(module, args, out, down=a, up=b):
        return out + scale * (args[0] @ down.T) @ up.T

    layer.register_forward_hook(hook)


def hooked_module(layer, a, b, scale):
    pair = nn.Sequential(nn.Linear(IN, RANK, bias=False), nn.Linear(RANK, OUT, bias=False))
    with torch.no_grad():
        pair[0].weight.copy_(a)
        pair[1].weight.copy_(b)
    layer.register_forward_hook(lambda module, args, out: out + scale * pair(args[0]))


@pytest.mark.parametrize("way", [patched, hooked, hooked_by_default, hooked_module])
def test_an_adapter_outside_of_its_module_is_found_by_what_its_function_holds(way):
    a, b = torch.randn(RANK, IN), torch.randn(OUT, RANK)
    layer = nn.Linear(IN, OUT)
    model = nn.Sequential(layer, nn.Linear(OUT, IN))
    way(layer, a, b, 3.0)
    (lora,) = loras(model)
    assert lora.name == "0"
    for seen, given in zip(lora.factors(), (a, b), strict=True):
        assert torch.equal(seen, given)
    assert seen_scale(lora)[0] == pytest.approx(3.0, rel=1e-5)


def test_a_hook_that_only_looks_is_no_adapter():
    layer, kept = nn.Linear(IN, OUT), []
    layer.register_forward_hook(lambda module, args, out: kept.append(out))
    assert loras(nn.Sequential(layer)) == [] and kept == []
