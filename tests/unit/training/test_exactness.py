"""What a boosted run writes is the function that it trained, or the run fails."""

from __future__ import annotations

import shutil

import pytest
import torch

from weft.core.errors import CheckFailed
from weft.methods.boosting import stacked
from weft.runs.reader import RunReader
from weft.training.train import train

BOOSTED = ["adapter.rank=1", "adapter.dropout=0", "boost.steps_per_iteration=5"]


@pytest.mark.parametrize("merge", ["stack", "weights"])
@pytest.mark.parametrize("method", [[], ["method.name=mezo", "optimiser.lr=1e-2"]])
def test_the_files_are_the_stack_and_the_adapter_above_it(merge, method, resolved, tmp_path):
    train(resolved(*BOOSTED, *method, f"boost.merge={merge}", "keep=last"), tmp_path / "run")
    found = RunReader(tmp_path / "run").results("certificate")
    assert found["holds"] and found["texts"] == 5
    (its,) = found["members"].values()
    assert (its["rank"], its["commits"]) == (3, 2)
    assert its["adapter_effect"] > 1e-3
    size = found["largest_logit"] + 10 * its["adapter_effect"]
    assert found["tolerance"] == pytest.approx(1e-5 * size)
    assert 0 < its["largest_difference"] <= found["tolerance"]  # other sums, the same function


def test_every_member_has_its_own_line(resolved, tmp_path):
    train(resolved(*BOOSTED, "seeds=[0,1]"), tmp_path / "run")
    found = RunReader(tmp_path / "run").results("certificate")
    assert list(found["members"]) == ["seed-0", "seed-1"] and found["holds"]
    effects = {its["adapter_effect"] for its in found["members"].values()}
    assert len(effects) == 2


@pytest.mark.parametrize(
    ("family", "context"), [("gpt2", {"n_positions": 256}), ("bloom", {"seq_length": 256})]
)
def test_other_bases_with_and_without_padding(
    family, context, make_model, small_base, resolved, tmp_path
):
    base = shutil.copytree(small_base, tmp_path / "base")
    make_model(family, vocab_size=320, **context).save_pretrained(base)
    train(resolved(*BOOSTED, f"base={base}", "adapter.targets=all-linear"), tmp_path / "run")
    assert RunReader(tmp_path / "run").results("certificate")["holds"]


def test_rounding_beyond_the_usual_is_measured_on_the_adapter_itself(
    resolved, tmp_path, monkeypatch
):
    """As where a base amplifies it, by the thousand for some."""
    monkeypatch.setattr("weft.training.exactness.FORWARD_ROUNDING", 1e-12)
    train(resolved(*BOOSTED, "keep=last"), tmp_path / "run")
    found = RunReader(tmp_path / "run").results("certificate")
    assert found["holds"] and found["reason"].startswith("10 times what rounding changes")
    (its,) = found["members"].values()
    assert 0 < its["largest_difference"] <= found["tolerance"] < its["adapter_effect"] / 1e3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_on_a_16_bit_base_rounding_is_that_of_the_dtype(dtype, resolved, tmp_path):
    train(resolved(*BOOSTED, f"dtype={dtype}", "boost.merge=weights"), tmp_path / "run")
    found = RunReader(tmp_path / "run").results("certificate")
    assert found["holds"] and found["reason"].startswith(f"rounding to {dtype}, 8 times ")


def test_a_file_that_is_another_function_fails_the_run(resolved, tmp_path, monkeypatch):
    """A commit is lost on the way to the file."""
    monkeypatch.setattr(
        "weft.training.job.chain",
        lambda layout, stack_KP, theta_P: stacked(layout, torch.cat([stack_KP[1:], theta_P[None]])),
    )
    with pytest.raises(CheckFailed, match="the adapter that was written is not the one that was"):
        train(resolved(*BOOSTED, "keep=last"), tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    assert not reader.done and reader.manifest.status == "failed"
    assert reader.results("certificate")["holds"] is False


def test_an_ordinary_run_has_none(resolved, tmp_path):
    train(resolved("steps=2", "eval.every=1"), tmp_path / "run")
    assert "certificate" not in RunReader(tmp_path / "run").result_names()
