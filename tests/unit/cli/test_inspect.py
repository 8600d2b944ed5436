"""`weft inspect`: facts of healthy adapters, and every oddity of sick ones."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import weft
from weft.training.inspect import update_norm

PREFIX = "base_model.model."
SITE = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def sick(run, tmp_path):
    """A function that changes the tensors and the configuration of a copy of an adapter."""

    def change(tensors=None, **config):
        path = shutil.copytree(run / "adapter", tmp_path / "sick")
        file = path / "adapter_model.safetensors"
        found = load_file(file)
        for name, value in (tensors(found) if tensors else {}).items():
            found[name] = value
        save_file(found, file, metadata={"format": "pt"})
        fields = json.loads((path / "adapter_config.json").read_text()) | config
        (path / "adapter_config.json").write_text(json.dumps(fields))
        return path

    return change


def oddities(path):
    (facts,) = weft.inspect(path).adapters
    return [oddity.what for oddity in facts.oddities]


def test_the_update_norm_is_that_of_the_product():
    generator = torch.Generator().manual_seed(0)
    a_rI, b_Or = (torch.randn(shape, generator=generator) for shape in ((3, 20), (30, 3)))
    wanted = torch.linalg.norm((b_Or @ a_rI).double())
    assert update_norm(a_rI, b_Or) == pytest.approx(float(wanted), rel=1e-6)


def test_a_trained_adapter_is_attached_frozen_and_not_odd(run, small_base):
    found = weft.inspect(run)
    (facts,) = found.adapters
    assert found.base_ref == small_base and not found.broken
    assert facts.trainable == 0 and "inference_mode: true" in facts.why
    assert facts.oddities == ()
    assert facts.effect.largest_logit_change > 0 and facts.effect.kl > 0
    assert {(site.rank, site.scale) for site in facts.sites} == {(2, 2.0)}
    assert len(facts.sites) == 21
    assert facts.parameters == sum(2 * (site.inputs + site.outputs) for site in facts.sites)


def test_norms_are_those_of_the_files_and_the_base(run, small_base):
    from weft.model.base import load_base

    model = load_base(small_base).model
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    a, b = (tensors[f"{PREFIX}{SITE}.lora_{factor}.weight"] for factor in "AB")
    (facts,) = weft.inspect(run / "adapter").adapters
    site = next(site for site in facts.sites if site.name == SITE)
    assert site.norm_a == pytest.approx(float(a.norm()), rel=1e-6)
    assert site.norm_b == pytest.approx(float(b.norm()), rel=1e-6)
    assert site.norm_update == pytest.approx(float(torch.linalg.norm(2 * b @ a)), rel=1e-5)
    weight = model.get_submodule(SITE).weight.detach()
    assert site.relative == pytest.approx(site.norm_update / float(weight.norm()), rel=1e-5)


def test_inference_mode_false_is_trainable(sick):
    (facts,) = weft.inspect(sick(inference_mode=False)).adapters
    assert facts.trainable == facts.parameters


def test_a_fresh_adapter_does_nothing_yet(sick, cli):
    path = sick(lambda found: {n: torch.zeros_like(t) for n, t in found.items() if "lora_B" in n})
    (facts,) = weft.inspect(path).adapters
    assert facts.effect.largest_logit_change == 0
    assert oddities(path) == ["B is zero at every site: the adapter changes nothing yet"]
    said = cli("inspect", path)
    assert said.code == 0
    assert "are exactly the base's" in said.out


def test_b_zero_at_some_sites(sick):
    path = sick(lambda f: {n: torch.zeros_like(t) for n, t in f.items() if f"{SITE}.lora_B" in n})
    assert f"B is zero at {SITE}: nothing is changed there" in oddities(path)


def test_a_dead_site(sick):
    path = sick(lambda f: {n: torch.zeros_like(t) for n, t in f.items() if SITE in n})
    assert f"A and B are both zero at {SITE}: no gradient can ever move them" in oddities(path)


def test_numbers_that_are_not_finite_are_broken(sick, cli):
    name = f"{PREFIX}{SITE}.lora_A.weight"

    def spoil(found):
        tensor = found[name].clone()
        tensor[1, 5] = torch.nan
        return {name: tensor}

    path = sick(spoil)
    said = cli("inspect", path)
    assert said.code == 1
    assert f"BROKEN {SITE}: 1 of 64 numbers of A are not finite" in said.out
    assert "the first is nan at [1, 5]" in said.out
    json.loads(cli("inspect", path, "--json").out)


def test_a_far_off_scale(sick):
    found = oddities(sick(lora_alpha=512))
    assert any("scale 256 at 21 sites" in what and "above 64" in what for what in found)


def test_scales_that_differ_between_sites(sick):
    found = oddities(sick(alpha_pattern={SITE: 2}))
    assert any(f"1 at {SITE}" in what and "alpha_pattern" in what for what in found)


def test_a_scale_that_is_not_the_runs(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    config = copy / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 8}))
    found = weft.inspect(copy)
    assert found.broken
    assert "trained at scale 2, and the files give alpha / rank = 4" in str(found.adapters)


def test_an_update_larger_than_the_weight(sick):
    name = f"{PREFIX}{SITE}.lora_B.weight"
    found = oddities(sick(lambda f: {name: f[name] * 1e4}))
    assert any(f"{SITE}: the update is" in what for what in found)


def test_an_adapter_of_another_base(run, cli, make_model, tmp_path, small_base):
    other = tmp_path / "other"
    shutil.copytree(small_base, other)
    make_model("llama", vocab_size=320, hidden_size=48, num_hidden_layers=1).save_pretrained(other)
    said = cli("inspect", run, "--base", other)
    assert said.code == 1
    assert f"BROKEN {SITE} is made for a weight of [32, 32], and the base has [48, 48]" in said.out
    assert "BROKEN model.layers.1.self_attn.q_proj is not a site of the base" in said.out


def test_without_its_base_the_files_are_looked_at(sick, cli):
    said = cli("inspect", sick(base_model_name_or_path="./gone"))
    assert said.code == 0
    assert "base       not loaded" in said.out
    assert "note: only the files were looked at" in said.err


def test_a_base_lists_what_targets_may_say(cli, small_base):
    said = cli("inspect", small_base)
    assert said.code == 0
    assert [line.split()[0] for line in said.out.splitlines()[4:]] == (
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert len(cli("inspect", small_base, "--all").out.splitlines()) == 22


def test_json_has_everything(run, cli):
    found = json.loads(cli("inspect", run, "--json").out)
    (facts,) = found["adapters"]
    assert facts["sites"][0]["relative"] > 0
    assert facts["effect"]["positions"] > 5
