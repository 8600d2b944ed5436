"""A recording of what Weft generates says what it computed, and changes none of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import weft
from weft.cli.main import app
from weft.core.errors import InputError
from weft.core.keys import Key
from weft.diagnose.sides.opening import open_evidence
from weft.formats.peft import write_adapter
from weft.model.adapter import Adapter, initial_adapter
from weft.model.base import load_base
from weft.model.config import AdapterConfig
from weft.model.decode import NotFinite
from weft.model.noise import uniform
from weft.model.sites import choose_sites

PROMPTS = ("the cat sat", "a dog ran to the red house", "on")
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "seed": 3, "max_tokens": 7}


@pytest.fixture(scope="module")
def adapter(small_base, tmp_path_factory):
    """An adapter that matters, beside the base."""
    base = load_base(small_base)
    made = initial_adapter(choose_sites(base.sites, AdapterConfig(rank=3)), Key.of(4))
    flat = made.flat + uniform(made.flat.shape, -0.1, 0.1, Key.of(5))
    directory = tmp_path_factory.mktemp("own") / "adapter"
    write_adapter(Adapter(made.layout, flat), directory, base_ref=small_base)
    return directory


@pytest.fixture(scope="module")
def recorded(adapter, tmp_path_factory):
    """The evidence of a sampled generation, and what was said."""
    root = tmp_path_factory.mktemp("own") / "recording"
    said = weft.generate(adapter, prompts=PROMPTS, batch_size=2, record=root, **SAMPLED)
    return open_evidence(str(root)), said


def test_what_is_said_is_the_same_with_a_recording(adapter, recorded):
    said = weft.generate(adapter, prompts=PROMPTS, batch_size=2, **SAMPLED)
    assert [each.record() for each in said] == [each.record() for each in recorded[1]]


def test_prompts_completions_and_settings_are_there(recorded):
    evidence, said = recorded
    assert [each.prompts[0] for each in evidence.generations] == [s.prompt_ids for s in said]
    assert [each.text for each in evidence.encoded] == [s.prompt for s in said]
    for each, its in zip(evidence.generations, said, strict=True):
        ended = (its.stopped_by,) if its.finish == "stop token" else ()
        assert each.tokens == ((*its.ids, *ended),)
        assert each.texts == (its.text,)
        assert {k: each.settings[k] for k in SAMPLED} == SAMPLED
        assert not each.settings["greedy"]
    assert evidence.settings["generation.top_p"].value == 0.9
    assert [each.seed for each in evidence.seeds] == [3]
    assert evidence.about["status"] == "finished"


def test_logits_are_those_of_the_model_on_the_text_so_far(recorded, small_base, adapter):
    """transformers with PEFT, one whole text after the other, is the reference."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_base), adapter)
    evidence, _ = recorded
    passes = {each.index: each for each in evidence.passes}
    for generation in evidence.generations:
        (prompt,), (tokens,) = generation.prompts, generation.tokens
        assert len(generation.passes) == min(5, len(tokens))
        for step, index in enumerate(generation.passes):
            seen = passes[index]
            text = (*prompt, *tokens[:step])
            fed = evidence.array(seen.ids)[0].tolist()
            assert fed == list(text[-len(fed) :])
            assert evidence.array(seen.positions)[0].tolist() == list(range(len(text)))[-len(fed) :]
            assert (seen.phase, seen.past) == (
                ("decode", len(text) - 1) if step else ("prefill", 0)
            )
            with torch.no_grad():
                wanted = model(torch.tensor([text])).logits[0, -1].numpy()
            np.testing.assert_allclose(evidence.array(seen.logits)[0], wanted, atol=2e-4)


def test_draws_are_from_the_distribution_that_the_settings_make_of_the_logits(recorded):
    evidence, _ = recorded
    passes = {each.index: each for each in evidence.passes}
    for generation in evidence.generations:
        for draw, index in zip(generation.draws, generation.passes, strict=True):
            logits = evidence.array(passes[index].logits)[0].astype(np.float64)
            p = np.exp(logits - logits.max())
            assert draw.probability == pytest.approx((p / p.sum())[draw.token], rel=1e-6)
            warm = p ** (1 / 0.8) / (p ** (1 / 0.8)).sum()
            order = np.argsort(-warm)
            kept = int((np.cumsum(warm[order]) - warm[order] < 0.9).sum())
            assert draw.kept == kept
            assert draw.token in order[:kept]
            assert (draw.how, draw.temperature) == ("draw", 0.8)


def test_weights_and_adapter_are_the_ones_that_were_used(recorded, adapter):
    evidence, _ = recorded
    (weights,) = evidence.weights
    assert set(weights.sketches) == set(evidence.used().modules)
    files = open_evidence(str(adapter)).last()
    for name, module in evidence.used().modules.items():
        assert module.digest_a == files.modules[name].digest_a
        assert module.digest_b == files.modules[name].digest_b
        assert module.seen_scale == pytest.approx(files.modules[name].scale, rel=1e-5)
    assert evidence.used().load == str(adapter)


def test_its_own_noise_is_measured(recorded):
    evidence, _ = recorded
    nats = {each.name: each.values for each in evidence.checks if each.unit == "nats"}
    bare = nats.pop("bare")
    assert set(nats) == {"repeat", "row", "cache", "ulp", "attached"}
    assert nats["repeat"] == (0.0,)
    assert len(nats["ulp"]) == 3
    assert all(0 <= value < 1e-12 for values in nats.values() for value in values)

    assert len(bare) == len(nats["attached"]) == 5 and min(bare) > 1e-6


def test_an_adapter_that_never_adds_gives_what_the_bare_base_does(adapter, tmp_path, monkeypatch):
    from weft.model.bank import Bank
    from weft.training.refs import Subject

    never = property(lambda self: Bank.of(dict.fromkeys(self.adapters)))
    monkeypatch.setattr(Subject, "bank", never)
    nats = controls(adapter, tmp_path / "r")
    assert max(nats["bare"]) < 1e-12 < 1e-6 < min(nats["attached"])


def test_one_that_stops_adding_after_the_prompt_is_seen_from_the_second_token_on(
    adapter, tmp_path, monkeypatch
):
    """Over a cache that the prompt filled with it."""
    from dataclasses import replace

    from weft.model.steppers import LeanStepper

    extend = LeanStepper.extend

    def without(self, *given):
        self.forward = replace(self.forward, updates={})
        return extend(self, *given)

    monkeypatch.setattr(LeanStepper, "extend", without)
    nats = controls(adapter, tmp_path / "r")
    assert nats["attached"][0] < 1e-12 < 1e-6 < nats["bare"][0]
    assert max(nats["bare"][1:]) < 1e-12 < 1e-6 < min(nats["attached"][1:])


def controls(adapter, root):
    weft.generate(adapter, prompts=PROMPTS, max_tokens=6, ignore_eos=True, record=root)
    checks = open_evidence(str(root)).checks
    return {each.name: each.values for each in checks if each.unit == "nats"}


def test_the_base_alone_has_no_adapter_to_look_for(small_base, tmp_path):
    weft.generate(small_base, prompts=PROMPTS, max_tokens=4, record=tmp_path / "r")
    names = {each.name for each in open_evidence(str(tmp_path / "r")).checks}
    assert names and not names & {"attached", "bare"}


def test_a_cache_that_forgets_fails_its_check(adapter, tmp_path, monkeypatch):
    from weft.model.steppers import LeanStepper

    right = LeanStepper._rotation
    monkeypatch.setattr(
        LeanStepper,
        "_rotation",
        lambda self, place: right(self, place * 0 if self.cache.filled else place),
    )
    weft.generate(adapter, prompts=PROMPTS, max_tokens=6, record=tmp_path / "r")
    nats = {e.name: e.values for e in open_evidence(str(tmp_path / "r")).checks if e.unit == "nats"}
    assert nats["row"][0] < 1e-12
    assert nats["cache"][0] > 1e3 * max(*nats["ulp"], 1e-13)


def test_positions_are_those_that_were_applied(adapter, tmp_path, monkeypatch):
    """Not those that were meant: one beside the other, a step too far is told as that."""
    from weft.model.steppers import LeanStepper

    asked = {"prompts": PROMPTS, "max_tokens": 6, "ignore_eos": True}
    weft.generate(adapter, **asked, record=tmp_path / "right")
    right = LeanStepper._rotation
    monkeypatch.setattr(
        LeanStepper,
        "_rotation",
        lambda self, place: right(self, place + 1 if self.cache.filled else place),
    )
    weft.generate(adapter, **asked, record=tmp_path / "wrong")
    evidence = open_evidence(str(tmp_path / "wrong"))
    for seen in evidence.passes:
        at = evidence.array(seen.positions)[0, -1]
        assert at == seen.past + seen.length - 1 + (seen.phase == "decode")
    first = weft.diff(tmp_path / "right", tmp_path / "wrong").causes[0].finding
    assert (first.label, first.rung, first.value) == ("cache-pos", 8, 1)


def test_members_are_models_of_their_own(adapter, small_base, tmp_path):
    weft.generate(adapter, small_base, prompts=PROMPTS[:2], max_tokens=3, record=tmp_path / "r")
    evidence = open_evidence(str(tmp_path / "r"))
    assert [each.model for each in evidence.weights] == ["model-0", "model-1"]
    assert evidence.weights[0].tensors == evidence.weights[1].tensors
    assert [each.model for each in evidence.snapshots] == ["model-0"]
    assert [each.model for each in evidence.generations] == ["model-0", "model-1"] * 2
    assert all(draw.how == "argmax" for each in evidence.generations for draw in each.draws)


def test_a_row_of_data_says_which_record_it_is(small_base, rows_dir, tmp_path):
    data = f"{rows_dir}/train.jsonl"
    asked = ["generate", small_base, "--data", data, "--row", "4", "--max-tokens", "3"]
    done = CliRunner().invoke(app, [*asked, "--record", str(tmp_path / "r")])
    assert done.exit_code == 0, done.output
    (encoded,) = open_evidence(str(tmp_path / "r")).encoded
    row = json.loads(Path(data).read_text().splitlines()[3])
    (slot,) = (each for each in encoded.slots if each.field == "instruction")
    assert slot.record.endswith("/train.jsonl:4")
    assert encoded.text[slot.start : slot.stop] == row["instruction"]


def test_a_directory_that_holds_something_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["generate", "base", "--prompt", "a", "--record", str(tmp_path)])
    assert isinstance(done.exception, InputError)
    assert "is there already" in str(done.exception)
    with pytest.raises(InputError, match="is there already"):
        weft.generate(prompts="a", record=tmp_path)


def test_a_generation_that_fails_says_so(small_base, tmp_path):
    base = load_base(small_base)
    layout = choose_sites(base.sites, AdapterConfig(rank=1))
    broken = Adapter(layout, torch.full((layout.size,), 1e30))
    write_adapter(broken, tmp_path / "a", base_ref=small_base)
    with pytest.raises(ArithmeticError):
        weft.generate(tmp_path / "a", prompts="the", record=tmp_path / "r")
    about = open_evidence(str(tmp_path / "r")).about
    assert about["status"] == "failed"
    assert "not finite" in about["error"]


def test_of_logits_that_are_not_finite_the_first_module_is_told(adapter, tmp_path, monkeypatch):
    from weft.training import generate

    opened = generate.open_subject

    def broken(*args, **kwargs):
        subject = opened(*args, **kwargs)
        with torch.no_grad():
            subject.engine.base.model.get_parameter("model.layers.1.mlp.down_proj.weight")[0] = (
                torch.nan
            )
        return subject

    monkeypatch.setattr(generate, "open_subject", broken)
    with pytest.raises(NotFinite):
        weft.generate(adapter, prompts=PROMPTS, max_tokens=3, record=tmp_path / "bad")
    monkeypatch.undo()
    weft.generate(adapter, prompts=PROMPTS, max_tokens=3, record=tmp_path / "good")
    (seen,) = open_evidence(str(tmp_path / "bad")).passes
    assert seen.nonfinite.startswith("model.layers.1.")
    assert seen.largest and np.isfinite(list(seen.largest.values())).all()
    first = weft.diff(tmp_path / "good", tmp_path / "bad").causes[0].finding
    assert (first.label, first.rung, first.place) == ("overflow", 0, seen.nonfinite)


def test_mlx_is_recorded_likewise(adapter, tmp_path):
    pytest.importorskip("mlx_lm")
    for engine in ("local", "mlx"):
        root = tmp_path / engine
        weft.generate(adapter, prompts=PROMPTS, max_tokens=4, engine=engine, record=root)
    local, mlx = (open_evidence(str(tmp_path / engine)) for engine in ("local", "mlx"))
    assert [g.tokens for g in local.generations] == [g.tokens for g in mlx.generations]
    for one, other in zip(local.passes, mlx.passes, strict=True):
        assert (one.past, one.length, one.phase) == (other.past, other.length, other.phase)
        np.testing.assert_allclose(
            local.array(one.logits), mlx.array(other.logits), rtol=1e-3, atol=2e-3
        )
    assert set(mlx.used().modules) == set(local.used().modules)
