"""vLLM for real: what it says is what the local engine says, and a run survives its death."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from weft.core.batch import Batch
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.rewards import grader_for
from weft.engines.local import LocalEngine
from weft.engines.registry import engine_config, open_engine
from weft.engines.reward import Reward
from weft.formats.peft import write_adapter
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.base import load_base
from weft.model.config import AdapterConfig, RewardConfig
from weft.model.decoding import Decoding
from weft.model.sites import choose_sites

pytestmark = pytest.mark.engines

TIE = 1e-3
"""Two tokens whose logits are this near may change places between two orders of the same sums."""

LONG = Decoding(max_tokens=48)


@pytest.fixture(scope="module")
def local():
    return LocalEngine(load_base("weft/tiny"))


@pytest.fixture(scope="module")
def engine(vllm):
    opened = open_engine(engine_config("vllm", url=vllm.url, members=8), "weft/tiny")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def adapters(local):
    """Ten members, more than are on the server at once, and the base between them."""
    layout = choose_sites(dict(local.sites), AdapterConfig(rank=8))
    generator = torch.Generator().manual_seed(0)
    members = {
        f"m{i}": Adapter(layout, torch.randn(layout.size, generator=generator) * 0.02)
        for i in range(10)
    }
    return {"base": None, **members, "the base again": None}


@pytest.fixture(scope="module")
def split(local):
    config = DataConfig(task="countdown-easy")
    return load_splits(config, local.tokenizer, ("valid",), local.context, responses=False)["valid"]


def margin(local, adapter, ids, directory):
    """How far apart PEFT's two largest logits after `ids` are, and which tokens they are of."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from weft.data.tokenizer import resolve_base

    model = AutoModelForCausalLM.from_pretrained(resolve_base("weft/tiny"), dtype=torch.float32)
    if adapter is not None:
        write_adapter(adapter, directory, base_ref="weft/tiny", sites=local.sites)
        model = PeftModel.from_pretrained(model, directory)
    with torch.no_grad():
        best = model(torch.tensor([ids])).logits[0, -1].topk(2)
    return (best.values[0] - best.values[1]).item(), best.indices.tolist()


def ties(local, adapters, prompts, found, wanted, directory):
    """Where completions differ, if every one of them is a tie; else an assertion says which."""
    told = {}
    for name, row, expected in zip(adapters, found, wanted, strict=True):
        for number, (a, b) in enumerate(zip(row, expected, strict=True)):
            if a == b:
                continue
            pairs = enumerate(zip(a.ids, b.ids, strict=False))
            at = next((i for i, (x, y) in pairs if x != y), min(len(a.ids), len(b.ids)))
            ids = [*prompts[number].tolist(), *b.ids[:at]]
            apart, _ = margin(local, adapters[name], ids, directory / f"{name}-{number}")
            assert apart < TIE, f"{name} on prompt {number}, token {at}: {apart:g} apart"
            told[name, number] = apart
    return told


def test_adapters_say_the_tokens_of_the_local_engine(
    engine, local, adapters, split, tmp_path, capsys
):
    """Greedy, in float32, to the token, up to ties, which are told."""
    prompts = [example.goal.prompt_T for example in split.examples[:6]]
    bank = Bank.of(adapters)
    found, wanted = (each.generate(bank, prompts, LONG) for each in (engine, local))
    tied = ties(local, adapters, prompts, found, wanted, tmp_path)
    tokens = sum(len(said.ids) for row in wanted for said in row)
    with capsys.disabled():
        print(f"\nvLLM and local: {tokens} tokens, {len(tied)} completions differ by a tie {tied}")
    said = {name: [c.ids for c in row] for name, row in zip(adapters, found, strict=True)}
    assert said["base"] == said["the base again"]
    assert sum(said[name] != said["base"] for name in adapters) >= 9, "adapters change something"
    assert engine.again == 0 and not engine.incidents


def test_the_measure_of_a_tie_is_that_of_the_loop(local, adapters, split, tmp_path):
    (prompt,) = (example.goal.prompt_T for example in split.examples[:1])
    ((said,),) = local.generate(Bank.of({"x": adapters["m3"]}), [prompt], Decoding(max_tokens=3))
    apart, best = margin(local, adapters["m3"], [*prompt.tolist(), *said.ids[:2]], tmp_path / "a")
    assert best[0] == said.ids[2] and apart > 0


def test_rewards_are_identical(engine, local, adapters, split, tmp_path):
    reward = Reward(grader_for(RewardConfig(), split.task), LONG)
    batch = Batch(tuple(split.examples[:8]))
    found, wanted = (reward.grade(each, Bank.of(adapters), batch) for each in (engine, local))
    prompts = [example.goal.prompt_T for example in batch.examples]
    same = np.array(found.texts) == np.array(wanted.texts)
    np.testing.assert_array_equal(found.reward_NE[same], wanted.reward_NE[same])
    if not same.all():
        said = (each.generate(Bank.of(adapters), prompts, LONG) for each in (engine, local))
        assert ties(local, adapters, prompts, *said, tmp_path)


def test_a_seed_draws_the_same_for_members_that_are_the_same(engine, adapters, split):
    sampled = Decoding(temperature=0.8, top_p=0.95, max_tokens=24, seed=5)
    prompts = [example.goal.prompt_T for example in split.examples[:3]] * 2
    twins = Bank.of({"a": adapters["m1"], "b": adapters["m1"], "c": adapters["m2"]})
    first = engine.generate(twins, prompts, sampled)
    assert first[0] == first[1] != first[2]
    assert first[0][:3] != first[0][3:], "copies of a prompt have noise of their own"
    assert engine.generate(twins, prompts, sampled) == first
    assert engine.generate(twins, prompts, sampled.model_copy(update={"seed": 6})) != first


def test_a_text_ends_where_weft_says(engine, local, adapters, split):
    prompts = [example.goal.prompt_T for example in split.examples[:4]]
    bank = Bank.of({name: adapters[name] for name in ("base", "m0", "m5")})
    free = local.generate(bank, prompts, LONG)
    token = free[1][0].ids[3]
    text = local.tokenizer.decode(free[2][1].ids[2:4])
    for change in ({"stop_ids": (token,)}, {"stop": (text,)}, {"ignore_eos": True}):
        decoding = LONG.model_copy(update=change)
        found = engine.generate(bank, prompts, decoding)
        assert found == local.generate(bank, prompts, decoding), change
        if "ignore_eos" not in change:
            assert {said.finish for row in found for said in row} > {"max_tokens"}


def test_an_adapter_that_the_server_has_no_room_for_is_an_error(engine, local, split):
    from weft.core.errors import EngineError

    layout = choose_sites(dict(local.sites), AdapterConfig(rank=16))
    prompts = [split.examples[0].goal.prompt_T]
    with pytest.raises(EngineError, match="LoRA rank 16 is greater") as caught:
        engine.generate(Bank.of({"x": Adapter(layout, torch.ones(layout.size))}), prompts, LONG)
    assert "--max-lora-rank" in caught.value.hint


# Runs

CONFIG = """
data: {task: countdown-easy}
objective: {name: reward, decoding: {max_tokens: 32}}
method: {name: es, population: 6, samples_per_generation: 4}
adapter: {rank: 4}
steps: 3
eval: {every: 3, rows: 4}
checkpoint_every: 1
"""


def config(directory, **engine):
    path = directory / "es.yaml"
    path.write_text(CONFIG + (f"engine: {json.dumps(engine)}\n" if engine else ""))
    return path


def weft(*arguments, wait=True):
    command = [sys.executable, "-m", "weft", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return (*process.communicate(), process.returncode) if wait else process


def learned(run):
    """What determines the result of a run: rewards and seeds, and the adapter."""
    adapter = (run / "adapter_last" / "adapter_model.safetensors").read_bytes()
    return (run / "evidence.jsonl").read_text(), adapter


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run on the local engine."""
    directory = tmp_path_factory.mktemp("local")
    _, err, code = weft("train", config(directory), "--run-dir", directory / "run")
    assert code == 0, err
    return learned(directory / "run")


def test_generations_on_a_server_learn_what_they_do_here(vllm, undisturbed, tmp_path):
    """Bit for bit: rewards of greedy completions, and so every update, are the same."""
    path = config(tmp_path, name="vllm", url=vllm.url)
    _, err, code = weft("train", path, "--run-dir", tmp_path / "run")
    assert code == 0, err
    assert learned(tmp_path / "run") == undisturbed
    times = json.loads((tmp_path / "run" / "results" / "time_breakdown.json").read_text())
    assert {"server launch", "loading", "unloading"} <= set(str(times).replace("'", '"').split('"'))


def killed_in_a_generation(vllm, path, run):
    """A run whose server was killed while it completed something after the first step."""
    process = weft("train", path, "--run-dir", run, wait=False)
    steps = run / "steps.jsonl"
    deadline = time.monotonic() + 300
    while not (steps.exists() and steps.read_text().count("\n") and vllm.busy()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    vllm.kill()
    return process


def test_a_run_goes_on_when_its_server_comes_back(vllm, undisturbed, tmp_path):
    path = config(tmp_path, name="vllm", url=vllm.url, start_timeout=600)
    process = killed_in_a_generation(vllm, path, tmp_path / "run")
    vllm.start()
    _, err = process.communicate()
    assert process.returncode == 0, err
    told = "\n".join(json.loads((tmp_path / "run" / "manifest.json").read_text())["notices"])
    assert "waiting for it" in told
    assert "completions were made again, and 0 of them differ" in told
    assert learned(tmp_path / "run") == undisturbed


def test_a_run_whose_server_stays_away_stops_and_is_resumed(vllm, undisturbed, tmp_path):
    run = tmp_path / "run"
    path = config(tmp_path, name="vllm", url=vllm.url, start_timeout=2)
    process = killed_in_a_generation(vllm, path, run)
    _, err = process.communicate()
    vllm.start()
    assert process.returncode == 1 and "Traceback" not in err
    assert "did not come back within 2 s" in err and "weft train --resume" in err
    kept = [json.loads(line)["step"] for line in (run / "steps.jsonl").read_text().splitlines()]
    assert kept and kept == list(range(1, len(kept) + 1))
    vllm.wait()
    _, err, code = weft("train", "--resume", run)
    assert code == 0, err
    assert learned(run) == undisturbed
