"""vLLM beside Weft: the same tokens from a process of its own, or a word why it is not there."""

import sys

import pytest

from benchmarks import population, vllm_peer
from benchmarks.__main__ import main
from weft.core.errors import CheckFailed

SMALL = population.WORKLOADS[0].small()


@pytest.fixture
def no_vllm(monkeypatch, tmp_path):
    monkeypatch.setattr(vllm_peer, "ENVIRONMENT", tmp_path / "nowhere")


def test_vllm_that_is_not_installed_is_left_out_and_both_the_user_and_the_table_are_told(
    no_vllm, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "population", "--quick"])
    assert main() == 0
    said, told = capsys.readouterr()
    for text in (said, told):
        assert "vLLM is left out: there is no nowhere (`make vllm` makes it)" in " ".join(
            text.split()
        )
    assert "round 1/1: peft_each" in told
    assert "round 1/1: vllm" not in told


def test_why_a_worker_ended_is_told(monkeypatch, tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho a library is missing >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(vllm_peer, "ENVIRONMENT", tmp_path)
    assert vllm_peer.missing() is None
    prompts = population.prompts_of(SMALL.batches(1)[0])
    with pytest.raises(CheckFailed, match="vLLM ended with 3") as error:
        population.build_vllm(SMALL)(prompts, 2)
    assert "a library is missing" in str(error.value.hint)


def test_the_cache_holds_all_rows_and_little_more(tmp_path):
    model = SMALL.model()
    given = vllm_peer.settings(model, tmp_path, adapters=30, rank=8, prompts=8, tokens=130)
    heads, head_size = 1, 32
    row = 256 * 2 * SMALL.layers * heads * head_size * 4  # two blocks; keys and values
    spare = 128 * 2 * SMALL.layers * heads * head_size * 4 * vllm_peer.SPARE_BLOCKS
    assert given["kv_cache_memory_bytes"] == 240 * row + spare
    assert given["max_num_seqs"] == 240
    assert given["dtype"] == "float32"


REAL = pytest.mark.skipif(bool(vllm_peer.missing()), reason="`make vllm` makes it")


@pytest.mark.engines
@REAL
def test_a_real_vllm_says_the_same_under_each_adapter_by_its_own_clock_and_memory():
    prompts = population.prompts_of(SMALL.batches(1)[0])
    with population.vllm_of(SMALL) as vllm:
        seconds, said = vllm.generate(prompts, 4)
    assert said == population.build_weft(SMALL)(prompts, 4)
    assert len({str(texts) for texts in said}) > 1, "adapters act"
    assert seconds > 0
    assert vllm.memory.peak_bytes > vllm.memory.baseline_bytes > 10 * 2**20


@pytest.mark.engines
@REAL
@pytest.mark.parametrize("name", ["population", "population_bfloat16"])
def test_a_real_vllm_has_a_row_in_the_table(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", name, "--quick"])
    assert main() == 0
    said, told = capsys.readouterr()
    assert "\n vLLM " in said
    assert "in a process of its own" in " ".join(said.split())
    assert "round 1/1: vllm" in told
