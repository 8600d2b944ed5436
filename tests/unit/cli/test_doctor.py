"""`weft doctor`: what is on the screen, in JSON, and in the exit code."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import load_file, save_file


def test_a_finished_run_is_healthy(cli, run):
    said = cli("doctor", run)
    assert said.code == 0
    assert said.out.startswith("VERDICT      healthy. ")
    assert "rank: rank 2" in said.out
    assert "scale: scale 2" in said.out


def broken_copy(run, tmp_path):
    """The run's adapter, with numbers in it that are none."""
    source, target = run / "adapter", tmp_path / "broken"
    target.mkdir()
    (target / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    tensors = load_file(source / "adapter_model.safetensors")
    first = next(name for name in tensors if "lora_B" in name)
    tensors[first] = np.full_like(tensors[first], np.nan)
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


def test_a_problem_stands_first_and_is_an_exit_code(cli, run, tmp_path):
    said = cli("doctor", broken_copy(run, tmp_path))
    assert said.code == 1
    assert said.out.startswith("VERDICT      not healthy. 1 problem")
    assert "PROBLEMS     finite factors: factors are not finite at" in said.out
    assert "fix: use an earlier checkpoint" in said.out


def test_json_has_value_and_remedy(cli, run, tmp_path):
    said = cli("doctor", broken_copy(run, tmp_path), "--json")
    assert said.code == 1
    found = json.loads(said.out)
    assert found["healthy"] is False
    lint = found["lints"][0]
    assert (lint["name"], lint["state"], lint["value"]) == ("finite factors", "problem", 1)
    assert lint["fix"]


def test_a_configuration_is_for_weft_check(cli):
    said = cli("doctor", "instruct")
    assert said.code == 2
    assert "weft check instruct" in said.err


def test_what_is_not_there_is_an_error_with_a_hint(cli):
    said = cli("doctor", "runs/nothing")
    assert (said.code, said.out) == (2, "")
    assert "runs/nothing" in said.err and "hint" in said.err
