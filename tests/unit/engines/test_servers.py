"""Engines of servers, against servers that keep the contract and fail on request.

Every failure that vLLM and SGLang are known for is one of ours: it ends in the right completions,
or in an error that says what to do, and never in wrong completions.
"""

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.servers import ALWAYS, Contract
from weft.core.errors import EngineError, InputError
from weft.engines.config import SglangConfig, VllmConfig
from weft.engines.local import LocalEngine
from weft.engines.registry import engine_config, open_engine
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.base import load_base
from weft.model.config import AdapterConfig
from weft.model.decode import NotFinite
from weft.model.decoding import Decoding
from weft.model.sites import choose_sites

CONFIGS = {"vllm": VllmConfig, "sglang": SglangConfig}
GREEDY = Decoding(max_tokens=5, ignore_eos=True)
IMPATIENT = {"timeout": 1.0, "load_timeout": 0.5, "unload_timeout": 0.5, "start_timeout": 5.0}


@pytest.fixture(scope="module")
def local(small_base):
    return LocalEngine(load_base(small_base))


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch):
    monkeypatch.setattr("weft.engines.servers.loading.PAUSES", (0.01,))


@pytest.fixture(params=sorted(CONFIGS))
def dialect(request):
    return request.param


@pytest.fixture
def serve(local, dialect, tmp_path):
    """A server with faults, and Weft's engine of it."""
    open_things = []

    def start(config=None, **settings):
        server = Contract(local, dialect, **settings)
        server.__enter__()
        open_things.append(lambda: server.__exit__())
        given = {"url": server.url, "adapters_dir": tmp_path / "adapters", **(config or {})}
        engine = open_engine(CONFIGS[dialect](**given), local.ref)
        open_things.append(engine.close)
        return server, engine

    yield start
    for close in reversed(open_things):
        close()


def member(local, seed, **settings):
    layout = choose_sites(dict(local.sites), AdapterConfig(**{"rank": 4, **settings}))
    generator = torch.Generator().manual_seed(seed)
    return Adapter(layout, torch.randn(layout.size, generator=generator) * 0.2)


def population(local, size=2):
    return Bank.of({f"m{i}": member(local, i) for i in range(size)} | {"centre": None})


def prompts(*lengths):
    generator = np.random.default_rng(0)
    return [generator.integers(2, 320, length) for length in lengths or (4, 2)]


def clean(server, tmp_path):
    """Nothing of ours is on the server or on the disk, and nothing was ever used twice."""
    left = list((tmp_path / "adapters").rglob("*.safetensors"))
    unique = len(set(server.names)) == len(server.names) == len(set(server.paths))
    return not server.adapters and not left and unique


def test_a_population_says_what_the_local_engine_says(local, serve, tmp_path):
    server, engine = serve()
    bank = population(local, 6)  # more than are on the server at once
    for decoding in (GREEDY, Decoding(max_tokens=20), GREEDY.model_copy(update={"stop_ids": (7,)})):
        assert engine.generate(bank, prompts(), decoding) == local.generate(
            bank, prompts(), decoding
        )
    assert clean(server, tmp_path)


def test_a_member_that_changes_nothing_is_the_base_and_alone_needs_no_adapter(local, serve):
    server, engine = serve()
    both = Bank.of({"one": None, "two": None})
    assert engine.generate(both, prompts(), GREEDY) == local.generate(both, prompts(), GREEDY)
    assert not server.names


def test_beside_adapters_the_base_is_never_asked_for_bare(local, serve):
    """vLLM's CPU build computes such a row with the adapter in its last place."""
    server, engine = serve()
    engine.generate(population(local), prompts(), GREEDY)
    asked = [(path, body) for path, body in server.log if "load" not in path]
    names = [body.get("model", body.get("lora_path")) for _, body in asked]
    assert names[0] in ("base", None) and not {"base", None} & set(names[1:])


def test_members_of_different_sites_ranks_and_scales_are_one_rank_and_scale_one(local, serve):
    _, engine = serve()  # the server asserts it of every file
    odd = {
        "all": member(local, 1, rank=3, alpha=6),
        "last": member(local, 2, rank=2, scale=5, targets=("q_proj", "v_proj"), layers="last 1"),
    }
    bank = Bank.of(odd)
    assert engine.generate(bank, prompts(), GREEDY) == local.generate(bank, prompts(), GREEDY)


def test_members_share_the_seed_of_a_prompt_and_copies_have_their_own(local, serve):
    server, engine = serve()
    sampled = Decoding(temperature=0.9, max_tokens=4, seed=3)
    again = [*prompts(4, 2), prompts(4, 2)[0]]
    said = engine.generate(population(local), again, sampled)
    seeds = {}
    for _, body in server.log:
        seed = body.get("seed", body.get("sampling_params", {}).get("sampling_seed"))
        temperature = body.get("temperature", body.get("sampling_params", {}).get("temperature"))
        if temperature:
            ids = tuple(body.get("prompt", body.get("input_ids")))
            seeds.setdefault(ids, []).append(seed)
    counts = sorted((len(set(of)), len(of)) for of in seeds.values())  # requests come in any order
    assert counts == [(1, 3), (2, 6)]  # no copy, and one
    assert said[-1][0] != said[-1][2]
    other = engine.generate(population(local), again, sampled.model_copy(update={"seed": 4}))
    assert other != said == engine.generate(population(local), again, sampled)


def test_every_parameter_is_sent_so_that_no_default_of_the_server_counts(local, serve, dialect):
    server, engine = serve()
    decoding = Decoding(temperature=0.5, top_p=0.9, max_tokens=3, seed=1)
    engine.generate(Bank.of({"base": None}), prompts(4), decoding)
    (body,) = (body for path, body in server.log if "load" not in path)
    sent = body if dialect == "vllm" else body["sampling_params"]
    assert sent["temperature"] == 0.5 and sent["top_p"] == 0.9 and sent["min_p"] == 0
    assert sent["top_k"] == {"vllm": 0, "sglang": -1}[dialect]
    assert sent["max_tokens" if dialect == "vllm" else "max_new_tokens"] == 3
    assert {"frequency_penalty", "presence_penalty", "repetition_penalty", "stop"} < sent.keys()
    assert sent["n"] == 1 and set(local.stop_ids) == set(sent["stop_token_ids"])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"order": "mlx", "temperature": 1.0}, "order"),
        ({"repetition_penalty": 1.2, "repetition_window": 5}, "repetition_window"),
        ({"temperature": 1e-7}, "temperature"),
        ({"temperature": 1.0, "min_p": 0.1, "top_p": 0.9}, "min_p"),
    ],
)
def test_what_no_server_does_as_asked_is_an_error_before_anything_is_asked(
    change, word, local, serve
):
    server, engine = serve()
    with pytest.raises(InputError, match=f"cannot decode as asked:(.|\n)*{word}"):
        engine.generate(population(local), prompts(), GREEDY.model_copy(update=change))
    assert not server.names


@pytest.mark.parametrize("dialect", ["sglang"])
@pytest.mark.parametrize(
    ("change", "flags", "word"),
    [
        ({"temperature": 1.0, "min_p": 0.1}, {}, "min_p"),
        ({"temperature": 1.0, "top_k": 5, "top_p": 0.9}, {}, "top_k"),
        ({"repetition_penalty": 1.1}, {}, "repetition_penalty"),
        ({"temperature": 1.0}, {"enable_deterministic_inference": False}, "ignores seeds"),
    ],
)
def test_what_sglang_does_not_do_as_asked_is_an_error(change, flags, word, local, serve):
    _, engine = serve(flags=flags)
    with pytest.raises(InputError, match=word):
        engine.generate(population(local), prompts(), GREEDY.model_copy(update=change))


@pytest.mark.parametrize("dialect", ["sglang"])
@pytest.mark.parametrize("flag", ["enable_lora", "lora_strict_loading"])
def test_an_sglang_server_without_a_flag_that_it_needs_is_refused(flag, serve):
    with pytest.raises(InputError, match=f"--{flag.replace('_', '-')}") as caught:
        serve(flags={flag: False})
    assert "--lora-strict-loading" in caught.value.hint


@pytest.mark.parametrize("dialect", ["vllm"])
def test_a_vllm_server_that_does_not_load_adapters_while_it_runs_is_refused(serve):
    with pytest.raises(InputError, match="does not load adapters while it runs") as caught:
        serve(loads_at_run_time=False)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in caught.value.hint


def test_a_server_that_is_not_there_is_an_error_at_once(local, dialect):
    started = time.monotonic()
    with pytest.raises(EngineError, match=f"there is no {dialect} server at http://127.0.0.1:9"):
        open_engine(engine_config(dialect, url="http://127.0.0.1:9"), local.ref)
    assert time.monotonic() - started < 5


def test_another_kind_of_server_is_an_error(local, dialect):
    other = {"vllm": "sglang", "sglang": "vllm"}[dialect]
    with (
        Contract(local, other) as server,
        pytest.raises((EngineError, InputError), match=f"no {dialect} server|load adapters"),
    ):
        open_engine(engine_config(dialect, url=server.url), local.ref)


def test_a_server_that_is_starting_is_waited_for(local, serve):
    _, engine = serve(faults={"is starting": 3})
    bank = Bank.of({"base": None})
    assert engine.generate(bank, prompts(), GREEDY) == local.generate(bank, prompts(), GREEDY)


def test_losses_are_for_the_local_engine(local, serve, dialect):
    from weft.core.batch import Batch

    _, engine = serve()
    with pytest.raises(InputError, match=f"{dialect} engine generates; losses are .* --engine loc"):
        engine.score(population(local), Batch(()))


def test_a_member_that_is_not_finite_is_named(local, serve):
    _, engine = serve()
    broken = member(local, 1)
    broken.flat[3] = float("nan")
    with pytest.raises(NotFinite, match="broken"):
        engine.generate(Bank.of({"m": member(local, 0), "broken": broken}), prompts(), GREEDY)


# Failures that are mended: what comes out is what the local engine says.

MENDED = [
    {"load fails": 2},
    {"load answers late": 1},  # times out, and is then "already loaded": ours
    {"unload is incomplete": 2},
    {"lets go of an adapter by itself": 1},
    {"completion fails": 3},
    {"drops the connection": 3},
    {"gives up a completion": 2},
    {"completion hangs": 1},
]


@pytest.mark.parametrize("faults", MENDED, ids=lambda faults: next(iter(faults)))
def test_a_failure_that_passes_changes_nothing(faults, local, serve, tmp_path):
    server, engine = serve(IMPATIENT, faults=faults)
    bank = population(local)
    assert engine.generate(bank, prompts(), GREEDY) == local.generate(bank, prompts(), GREEDY)
    assert clean(server, tmp_path) and not engine.incidents
    assert sum(faults.values()) and all(server.faults[fault] <= 0 for fault in faults)
    if "completion" in next(iter(faults)):
        assert engine.again == sum(faults.values())


# Failures that are found out: an error that says what to do, and no completion.

FOUND_OUT = [
    ("answers with the base", EngineError, "does not use them", "silent fallback"),
    ("answers with one adapter for all", EngineError, "mixes adapters up", "restart"),
    ("load fails", EngineError, "does not load an adapter, asked 4 times: 500", "its log"),
    ("refuses the rank", InputError, "refuses an adapter: LoRA rank 8", "--max-lora-rank"),
    ("knows the name from elsewhere", InputError, "already been loaded", "room"),
    ("loads and does not list", EngineError, "does not list", "engine.members"),
    ("lists one adapter only", EngineError, "does not list", "engine.members"),
    ("unload hangs", EngineError, "did not unload an adapter within 0.5 s", "restart the server"),
    ("unload is incomplete", EngineError, "does not unload an adapter, asked 4", "--resume"),
    ("completion fails", EngineError, "asked 4 times: 500: something broke", "its log"),
    ("drops the connection", EngineError, "does not complete prompt .*, asked 4 times", "its log"),
    ("gives up a completion", EngineError, "gave up a completion", "its log"),
    ("stops where nothing ends it", EngineError, "after 1 of . tokens", "restart"),
    ("ends for its length too early", EngineError, "for its length after 1 of .", "restart"),
    ("answers another prompt", EngineError, "is to another", "restart"),
    ("leaves a completion out", EngineError, "gave a wrong|refuses", "restart"),
    ("says no JSON", EngineError, "no JSON", "restart"),
]


@pytest.mark.parametrize("found", FOUND_OUT, ids=lambda found: found[0])
def test_a_failure_that_stays_ends_in_an_error_that_says_what_to_do(found, local, serve):
    fault, kind, problem, hint = found
    server, engine = serve(IMPATIENT, faults={fault: ALWAYS})
    with pytest.raises(kind, match=problem) as caught:
        engine.generate(population(local), prompts(), GREEDY)
    assert hint in caught.value.hint
    assert server.url in str(caught.value)


@pytest.mark.parametrize("dialect", ["vllm"])
def test_an_answer_of_another_model_is_found_out(local, serve):
    _, engine = serve(faults={"says that another model answers": ALWAYS})
    with pytest.raises(EngineError, match="was asked, and base answered"):
        engine.generate(population(local), prompts(), GREEDY)


def test_after_an_error_nothing_of_ours_stays_on_the_server(local, serve, tmp_path):
    server, engine = serve(IMPATIENT, faults={"completion fails": 4})
    with pytest.raises(EngineError):
        engine.generate(population(local), prompts(), GREEDY)
    assert clean(server, tmp_path)


def test_an_unloaded_name_is_never_asked_for_again(local, serve):
    """SGLang would silently load it anew, from wherever it once was."""
    server, engine = serve()
    for _ in range(2):
        engine.generate(population(local), prompts(), GREEDY)
    last_unload, asked = {}, {}
    for at, (path, body) in enumerate(server.log):
        name = body.get("lora_name") or body.get("model") or body.get("lora_path")
        if "unload" in path:
            last_unload[name] = at
        elif "load" not in path and name not in (None, "base"):
            asked[name] = at
    assert len(asked) == len(server.names) and all(asked[n] < last_unload[n] for n in asked)


# A server that dies.

CALLS_OF_THE_CANARY = 3


@pytest.mark.parametrize("at", [1, CALLS_OF_THE_CANARY + 3, CALLS_OF_THE_CANARY + 8])
def test_a_server_that_dies_and_comes_back_gets_all_anew(at, local, serve, tmp_path):
    server, engine = serve(IMPATIENT, faults={"dies at completion": at})
    told = []
    engine.notice = told.append
    bank = population(local)
    assert engine.generate(bank, prompts(), GREEDY) == local.generate(bank, prompts(), GREEDY)
    assert clean(server, tmp_path)
    if at <= CALLS_OF_THE_CANARY + 3:
        (incident,) = engine.incidents
        assert incident.differed == 0 and incident.repeated <= max(0, at - CALLS_OF_THE_CANARY)
        assert "waiting for it" in told[0] and "0 of them differ" in told[1]
        asked_bare = [b for p, b in server.log if b.get("model") == "base" or _bare(p, b)]
        assert len(asked_bare) >= 2, "the canary was asked of the new server, too"


def _bare(path, body):
    return path == "/generate" and body["lora_path"] is None


def test_completions_that_differ_after_a_restart_are_counted(local, serve):
    server, engine = serve(
        IMPATIENT | {"concurrency": 1}, faults={"dies at completion": CALLS_OF_THE_CANARY + 4}
    )
    told = []
    engine.notice = told.append
    bank = population(local)
    truth, say = local.generate(bank, prompts(), GREEDY), server.say

    def other_at_first(name, prompt, decoding):
        ids, stopped, by = say(name, prompt, decoding)
        first = CALLS_OF_THE_CANARY < server.completions <= CALLS_OF_THE_CANARY + 2
        return ([*ids[:-1], (ids[-1] + 1) % 320] if first else ids), stopped, by

    server.say = other_at_first
    assert engine.generate(bank, prompts(), GREEDY) == truth
    (incident,) = engine.incidents
    assert (incident.repeated, incident.differed) == (3, 2)
    assert "3 completions were made again, and 2 of them differ" in told[-1]


def test_a_server_that_does_not_come_back_stops_the_work_with_what_to_do(local, serve):
    _, engine = serve(
        IMPATIENT | {"start_timeout": 0.5}, faults={"dies at completion": 5}, back_after=None
    )
    with pytest.raises(EngineError, match=r"did not come back within 0\.5 s") as caught:
        engine.generate(population(local), prompts(), GREEDY)
    assert "weft train --resume" in caught.value.hint and caught.value.exit_code == 1


def test_a_server_that_comes_back_with_another_base_is_not_used(local, serve):
    _, engine = serve(
        IMPATIENT, faults={"dies at completion": 5, "comes back with another base": 1}
    )
    with pytest.raises(EngineError, match=r"came back with another/base for its base"):
        engine.generate(population(local), prompts(), GREEDY)


def test_a_server_that_dies_again_and_again_ends_in_an_error(local, serve):
    server, engine = serve(IMPATIENT | {"retries": 1}, faults={"dies at completion": 5})
    die = server.die

    def once_more():
        server.faults["dies at completion"] = server.completions + 5
        die()

    server.die = once_more
    with pytest.raises(EngineError, match="was lost 2 times in one call"):
        engine.generate(population(local), prompts(), GREEDY)


def test_requests_that_are_under_way_stay_within_the_bound(local, serve):
    server, engine = serve({"concurrency": 3})
    say, now, most = server.say, [0], [0]
    lock = threading.Lock()

    def counted(*args):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        try:
            return say(*args)
        finally:
            with lock:
                now[0] -= 1

    server.say = counted
    engine.generate(population(local), prompts(4, 2, 3), GREEDY)
    assert 1 < most[0] <= 3


def test_the_time_is_told_by_phase(local, serve):
    _, engine = serve()
    engine.generate(population(local), prompts(), GREEDY)
    names = {phase.name for phase in engine.clock.breakdown().phases}
    assert {"server launch", "creating adapters", "loading", "evaluation", "unloading"} <= names


def test_what_it_says_of_itself(local, serve, dialect):
    server, engine = serve()
    record = engine.record()
    assert record["url"] == server.url and record["model"] == local.ref
    assert record[dialect] == {"vllm": "0.32.0", "sglang": "0.5.23"}[dialect]
    assert engine.notices == ()
    server.path = "some/where"
    other = open_engine(engine_config(dialect, url=server.url), local.ref)
    other.close()
    assert "some/where" in other.notices[0] and "not checked" in other.notices[0]


def test_the_key_of_a_server_comes_from_the_environment(local, dialect, monkeypatch):
    with Contract(local, dialect) as server:
        config = engine_config(dialect, url=server.url, api_key_env="WEFT_TEST_KEY")
        with pytest.raises(InputError, match="no such environment variable"):
            open_engine(config, local.ref)
        monkeypatch.setenv("WEFT_TEST_KEY", "secret")
        engine = open_engine(config, local.ref)
        assert engine.client.get("/health").request.headers["authorization"] == "Bearer secret"
        assert "secret" not in str(engine.record())
        engine.close()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x", "http://", "http://a b", "http://x/?q"]
)
def test_an_address_that_is_none_is_an_error(url, dialect):
    with pytest.raises(InputError, match=r"engine\.url: not the address of a server"):
        engine_config(dialect, url=url)


def test_a_directory_that_cannot_be_written_is_an_error(local, dialect, tmp_path):
    (tmp_path / "file").write_text("")
    with Contract(local, dialect) as server:
        config = engine_config(dialect, url=server.url, adapters_dir=tmp_path / "file" / "x")
        engine = open_engine(config, local.ref)
        with pytest.raises(InputError, match="adapters_dir"):
            engine.generate(population(local), prompts(), GREEDY)
        engine.close()


def test_the_weights_of_the_base_are_not_read_here(local, dialect, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(local.ref, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert not list(Path(bare).glob("*.safetensors"))
    with Contract(local, dialect) as server:
        engine = open_engine(engine_config(dialect, url=server.url), str(bare))
        bank = population(local)
        assert engine.generate(bank, prompts(), GREEDY) == local.generate(bank, prompts(), GREEDY)
        engine.close()
