from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from tests.support.watching import watching
from weft.runs.evidence import Happened, Snapshot, TrainStep

IDS = torch.tensor([[5, 17, 30, 44, 12]])


@pytest.fixture
def model(make_model: Callable[..., Any]) -> Any:
    """LoRA on a tiny Llama, six modules, with a B that is not zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    made = get_peft_model(make_model("llama"), config)
    with torch.no_grad():
        for layer in layers(made):
            layer.lora_B["default"].weight.normal_(std=0.1)
    return made


def layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def step(model: Any, optimiser: torch.optim.Optimizer) -> None:
    model(IDS, labels=IDS).loss.backward()
    optimiser.step()
    optimiser.zero_grad()


def sgd(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)


@torch.no_grad()
def merge_by_hand(model: Any, some: slice = slice(None), reset: bool = True) -> None:
    for layer in layers(model)[some]:
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        layer.base_layer.weight.data += layer.scaling["default"] * b @ a
        if reset:
            torch.nn.init.kaiming_uniform_(a)
            b.zero_()


def test_a_merge_by_hand_is_seen_with_its_step(tmp_path: Path, model: Any) -> None:
    optimiser = sgd(model)
    with watching(tmp_path / "recording") as seen:
        for number in range(1, 6):
            step(model, optimiser)
            if number == 3:
                merge_by_hand(model)
    merge, reset = seen.of(Happened)
    assert (merge.what, merge.step, merge.place) == ("merge", 3, "all 6 adapted modules")
    assert merge.facts == {"by": "hand", "modules": 6}
    assert (reset.what, reset.step) == ("reset", 3)
    assert reset.facts == {
        "by": "hand",
        "modules": 6,
        "b_is_zero": True,
        "a_changed": True,
        "b_changed": True,
    }
    bases = [each.base for each in seen.of(TrainStep)]
    assert bases[0] == bases[1] == bases[2] != bases[3] == bases[4]
    assert [s.step for s in seen.of(Snapshot) if s.when == "merge"] == [3]


def test_a_merge_of_one_module_names_it(tmp_path: Path, model: Any) -> None:
    optimiser = sgd(model)
    with watching(tmp_path / "recording") as seen:
        step(model, optimiser)
        merge_by_hand(model, slice(3, 4), reset=False)
        step(model, optimiser)
    (merge,) = seen.of(Happened)
    assert (merge.what, merge.place) == ("merge", "model.layers.1.self_attn.v_proj")


class Layer(torch.nn.Module):
    """LoRA as people write it."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.lora_a = torch.nn.Parameter(torch.randn(2, base.in_features) * 0.1)
        self.lora_b = torch.nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + 2 * x @ self.lora_a.T @ self.lora_b.T


def test_a_merge_of_hand_written_layers_is_seen(
    tmp_path: Path, make_model: Callable[..., Any]
) -> None:
    plain = make_model("llama").requires_grad_(False)
    for block in plain.model.layers:
        block.self_attn.q_proj = Layer(block.self_attn.q_proj)
    optimiser = sgd(plain)
    with watching(tmp_path / "recording") as seen:
        for number in (1, 2, 3):
            step(plain, optimiser)
            if number == 2:
                for layer in [each for each in plain.modules() if isinstance(each, Layer)]:
                    layer.base.weight.data += 2 * layer.lora_b.data @ layer.lora_a.data
                    layer.lora_b.data.zero_()
    merge, reset = seen.of(Happened)
    assert (merge.what, merge.step, merge.place) == ("merge", 2, "all 3 adapted modules")
    assert (reset.what, reset.step, reset.facts["a_changed"]) == ("reset", 2, False)


def test_a_merge_after_the_last_step_is_seen(tmp_path: Path, model: Any) -> None:
    with watching(tmp_path / "recording") as seen:
        step(model, sgd(model))
        merge_by_hand(model)
    assert [event.what for event in seen.of(Happened)] == ["merge", "reset"]


def test_a_merge_before_an_evaluation_is_seen_before_its_pass(tmp_path: Path, model: Any) -> None:
    with watching(tmp_path / "recording") as seen:
        step(model, sgd(model))
        merge_by_hand(model)
        with torch.no_grad():
            model(IDS)
        merge_by_hand(model, reset=False)  # adds nothing: B is zero
    assert [event.what for event in seen.of(Happened)] == ["merge", "reset"]


def test_what_is_edited_outside_the_adapter_is_no_merge(tmp_path: Path, model: Any) -> None:
    optimiser = sgd(model)
    with watching(tmp_path / "recording") as seen:
        step(model, optimiser)
        model.get_base_model().model.norm.weight.data += 1
        step(model, optimiser)
    (edit,) = seen.of(Happened)
    assert (edit.what, edit.step, edit.place) == ("edit", 1, "model.norm.weight")


def test_training_alone_is_no_event(tmp_path: Path, model: Any) -> None:
    optimiser = sgd(model)
    with watching(tmp_path / "recording") as seen:
        for _ in range(4):
            step(model, optimiser)
            with torch.no_grad():
                model.eval()(IDS)
            model.train()
    assert seen.of(Happened) == []


def test_freezing_and_unfreezing_are_seen(tmp_path: Path, model: Any) -> None:
    optimiser = sgd(model)
    norm = model.get_base_model().model.norm.weight
    with watching(tmp_path / "recording") as seen:
        step(model, optimiser)
        norm.requires_grad_(True)
        step(model, optimiser)
        norm.requires_grad_(False)
        layers(model)[0].lora_A["default"].weight.requires_grad_(False)
        step(model, optimiser)
    unfreeze, freeze = seen.of(Happened)
    assert (unfreeze.what, unfreeze.step, unfreeze.place) == ("unfreeze", 1, "model.norm.weight")
    assert unfreeze.facts == {"by": "hand", "modules": 1, "parameters": 32, "base": 1}
    assert (freeze.what, freeze.step) == ("freeze", 2)
    assert freeze.facts == {"by": "hand", "modules": 2, "parameters": 32 + 2 * 32, "base": 1}


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (["merge_adapter"], ["merge"]),
        (["merge_adapter", "unmerge_adapter"], ["merge", "unmerge"]),
        (["merge_and_unload"], ["merge"]),
        (["unload"], ["unload"]),
        (["disable_adapter_layers", "enable_adapter_layers"], ["disable", "enable"]),
    ],
)
def test_what_peft_does_is_seen_once(
    tmp_path: Path, model: Any, calls: list[str], expected: list[str]
) -> None:
    with watching(tmp_path / "recording") as seen:
        step(model, sgd(model))
        for call in calls:
            getattr(model, call)()
            with torch.no_grad():
                model(IDS)
    events = seen.of(Happened)
    assert [event.what for event in events] == expected
    assert [event.facts["call"] for event in events] == calls
    assert {(event.step, event.facts["modules"]) for event in events} == {(1, 6)}


def test_a_disabled_adapter_is_seen(tmp_path: Path, model: Any) -> None:
    with watching(tmp_path / "recording") as seen, model.disable_adapter(), torch.no_grad():
        model(IDS)
    assert [event.what for event in seen.of(Happened)] == ["disable", "enable"]


def test_combined_and_chosen_adapters_are_seen(tmp_path: Path, model: Any) -> None:
    with watching(tmp_path / "recording") as seen:
        model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        model.add_weighted_adapter(
            ["default", "other"], [0.5, 0.5], "both", combination_type="linear"
        )
        model.set_adapter("both")
    combine, activate = seen.of(Happened)
    assert (combine.what, combine.place) == ("combine", "both")
    assert combine.facts["weights"] == [0.5, 0.5]
    assert (activate.what, activate.place) == ("activate", "both")


def test_an_adapter_that_peft_saves_and_loads_is_seen(
    tmp_path: Path, model: Any, make_model: Callable[..., Any]
) -> None:
    with watching(tmp_path / "recording") as seen:
        model.save_pretrained(tmp_path / "adapter")
        PeftModel.from_pretrained(make_model("llama"), tmp_path / "adapter")
    save, load = (event for event in seen.of(Happened) if event.facts["by"] != "load_state_dict")
    file = tmp_path / "adapter/adapter_model.safetensors"
    assert (save.what, load.what) == ("save", "load")
    assert save.place == load.place == str(tmp_path / "adapter")
    assert save.facts["sha256"] == load.facts["sha256"]
    assert save.facts["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (load.facts["modules"], load.facts["of"], load.facts["missing"]) == (6, 6, 0)
    assert load.facts["trainable"] is False


def test_a_state_that_a_script_loads_by_hand_is_seen(
    tmp_path: Path, model: Any, make_model: Callable[..., Any]
) -> None:
    import safetensors.torch

    model.save_pretrained(tmp_path / "adapter")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    other = get_peft_model(make_model("llama"), config)
    file = tmp_path / "adapter/adapter_model.safetensors"
    with watching(tmp_path / "recording") as seen:
        state = safetensors.torch.load_file(file)  # keys without the adapter's name: none fits
        other.load_state_dict(state, strict=False)
    read, into = seen.of(Happened)
    assert (read.what, read.place, read.facts["tensors"]) == ("load", str(file), 12)
    assert (into.what, into.place) == ("load", str(file))
    assert (into.facts["taken"], into.facts["unexpected"]) == (0, 12)
    assert len(into.facts["unexpected_names"]) == 8
    assert load_file(file).keys() == state.keys()


def test_what_happens_over_and_over_is_kept_a_few_times(tmp_path: Path, model: Any) -> None:
    with watching(tmp_path / "recording") as seen:
        for _ in range(70):
            model.set_adapter("default")
    assert len(seen.of(Happened)) == 64
