"""vLLM as a contender. Its CPU build has packages of its own, so it runs in a process of its own.

Settings, chosen on two cores:

* The engine runs in the process that calls it, with all threads. By default vLLM starts two more,
  and keeps one core free for them; that was not timed.
* All adapters and all rows at once, with a key/value cache that holds them and no more. With fewer
  rows at once it was no faster.
* Prompts are read in parts of `PART` tokens. vLLM copies both factors of an adapter for each token
  that it reads; in larger parts the copies no longer fit into caches.
* Prefixes are not kept: nobody is asked the same twice. With adapters this build compiles nothing.

Seconds are the worker's own and begin when it has read the prompts. Memory is the resident set of
its process, above what it was when vLLM had been imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import psutil
import torch
import transformers

from benchmarks.device import SAMPLE_SECONDS, Memory
from weft.core.errors import CheckFailed
from weft.formats.peft import write_adapter
from weft.model.adapter import Adapter

ENVIRONMENT = Path(os.environ.get("WEFT_VLLM", Path(__file__).parents[1] / ".venv-vllm"))
WORKER = Path(__file__).with_name("vllm_worker.py")
PART = 512
BLOCK = 128
"""Tokens of a unit of the key/value cache."""
SPARE_BLOCKS = 4
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONSAFEPATH": "1",  # or the modules beside the worker would be found before packages
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def missing() -> str | None:
    """Why it cannot take part, if so."""
    if (ENVIRONMENT / "bin" / "python").exists():
        return None
    return f"vLLM is left out: there is no {ENVIRONMENT.name} (`make vllm` makes it)"


class Vllm:
    """A worker with a base and adapters, which continues prompts under each of them."""

    def __init__(self, process: subprocess.Popen[str], log: Path, memory: Memory) -> None:
        self._process = process
        self._log = log
        self.memory = memory

    def ask(self, **fields: object) -> dict[str, Any]:
        """The answer to a line."""
        with suppress(BrokenPipeError):  # it has ended, and `answer` says why
            print(json.dumps(fields), file=_open(self._process.stdin), flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Its next line."""
        if line := _open(self._process.stdout).readline():
            answer: dict[str, Any] = json.loads(line)
            return answer
        raise CheckFailed(
            f"vLLM ended with {self._process.wait()}", "\n".join(_last_lines(self._log))
        )

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[float, list[list[list[int]]]]:
        """Seconds, and new tokens by adapter and prompt."""
        ids = [list(map(int, prompt)) for prompt in prompts]
        answer = self.ask(prompts=ids, new_tokens=new_tokens)
        rows = answer["rows"]
        said = [rows[i : i + len(ids)] for i in range(0, len(rows), len(ids))]
        return float(answer["seconds"]), said


@contextmanager
def running(
    model: transformers.PreTrainedModel,
    adapters: Mapping[str, Adapter],
    *,
    prompts: int,
    tokens: int,
) -> Iterator[Vllm]:
    """A worker that has room for so many prompts, of so many tokens in the end, with each adapter.

    It ends with the block, or with this process.
    """
    with TemporaryDirectory() as folder:
        base, log = Path(folder, "base"), Path(folder, "log")
        model.save_pretrained(base)
        for name, adapter in adapters.items():
            write_adapter(adapter, Path(folder, name), base_ref=str(base))
        with log.open("w") as errors, _process(errors) as process, _watched(process) as memory:
            vllm = Vllm(process, log, memory)
            vllm.answer()  # it has imported its packages
            memory.baseline_bytes = psutil.Process(process.pid).memory_info().rss
            paths = [str(Path(folder, name)) for name in adapters]
            rank = max(slot.rank for adapter in adapters.values() for slot in adapter.layout.slots)
            its = settings(model, base, len(adapters), rank, prompts, tokens)
            vllm.ask(settings=its, adapters=paths)
            yield vllm


def settings(
    model: transformers.PreTrainedModel,
    base: Path,
    adapters: int,
    rank: int,
    prompts: int,
    tokens: int,
) -> dict[str, object]:
    """Of vLLM's `LLM`."""
    config, rows = model.config, adapters * prompts
    head_size = config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size
    token_bytes *= model.dtype.itemsize
    blocks = rows * -(-tokens // BLOCK) + SPARE_BLOCKS
    return {
        "model": str(base),
        "dtype": str(model.dtype).removeprefix("torch."),
        "skip_tokenizer_init": True,
        "enable_lora": True,
        "max_loras": adapters,
        "max_cpu_loras": adapters,
        "max_lora_rank": rank,
        "max_model_len": tokens,
        "max_num_seqs": rows,
        "max_num_batched_tokens": max(PART, rows, tokens),
        "block_size": BLOCK,
        "kv_cache_memory_bytes": blocks * BLOCK * token_bytes,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "disable_log_stats": True,
    }


def what() -> str:
    """It, in words for the table's facts."""
    (packages,) = ENVIRONMENT.glob("lib/python*/site-packages")
    (vllm,) = distributions(name="vllm", path=[str(packages)])
    return (
        f"vLLM {vllm.version} in a process of its own, whose memory is counted from after its "
        f"imports; it reads prompts in parts of {PART} tokens"
    )


@contextmanager
def _process(errors: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """The worker: it ends when its standard input does."""
    process = subprocess.Popen(
        [ENVIRONMENT / "bin" / "python", WORKER],
        env=os.environ | QUIET | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        cwd=Path(errors.name).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _watched(process: subprocess.Popen[str]) -> Iterator[Memory]:
    """The peak of its resident set."""
    memory, done = Memory(0), threading.Event()
    observed = psutil.Process(process.pid)

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            while not done.wait(SAMPLE_SECONDS):
                memory.peak_bytes = max(memory.peak_bytes, observed.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        done.set()
        watcher.join()


def _open(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _last_lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-20:]
