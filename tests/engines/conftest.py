"""A real vLLM server on this machine, over the bundled base. `make test-engines` runs these."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from weft.data.tokenizer import resolve_base

ROOT = Path(__file__).parents[2]
VLLM = Path(os.environ.get("WEFT_VLLM", ROOT / ".venv-vllm")) / "bin" / "vllm"
FLAGS = (
    "--host 127.0.0.1 --enable-lora --max-loras 8 --max-cpu-loras 16 --max-lora-rank 8 "
    "--max-model-len 512 --dtype float32 --enforce-eager --generation-config vllm "
    "--max-num-seqs 32"
)
MINUTES = 10 * 60


def _die_with_parent() -> None:
    """The server gets SIGTERM when the tests are gone, however they went (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Server:
    """One server that can be killed and started again, at the same address."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            self.port = trial.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it; `wait` says when it is ready."""
        base = resolve_base("weft/tiny")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [VLLM, "serve", base, "--port", str(self.port), *FLAGS.split()],
                env=os.environ
                | {
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
                    "VLLM_CPU_KVCACHE_SPACE": "1",
                    "VLLM_NO_USAGE_STATS": "1",
                    "HF_HUB_OFFLINE": "1",
                    "OMP_NUM_THREADS": "1",
                },
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def wait(self) -> None:
        deadline = time.monotonic() + MINUTES
        while not self.said("/health") and time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                break
            time.sleep(0.2)
        assert self.said("/health") is not None, self.log.read_text()[-4000:]

    def said(self, path: str) -> str | None:
        with suppress(OSError, urllib.error.URLError):
            return urllib.request.urlopen(self.url + path, timeout=10).read().decode() or "ok"
        return None

    def busy(self) -> bool:
        """Whether a completion is under way."""
        lines = (self.said("/metrics") or "").splitlines()
        running = [line for line in lines if line.startswith("vllm:num_requests_running")]
        return any(float(line.split()[-1]) > 0 for line in running)

    def kill(self) -> None:
        """All of it, at once."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory):
    """A server that is ready."""
    if not VLLM.exists():
        pytest.skip("there is no .venv-vllm: `make test-engines` makes it")
    server = Server(tmp_path_factory.mktemp("vllm") / "server.log")
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()
