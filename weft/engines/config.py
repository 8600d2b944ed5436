"""Which engine computes, and where: the `engine` section of a run, and `--engine` (no torch)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

KV_MEMORY_MIB = 2048
"""For keys and values: 500 texts of 200 tokens of a base with 20 kB a token."""

Seconds = Annotated[float, Field(gt=0, le=86_400)]


def _of_a_server(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
        raise ValueError("not the address of a server: such as http://127.0.0.1:8000")
    return url.rstrip("/")


Url = Annotated[str, AfterValidator(_of_a_server)]


class LocalConfig(BaseModel):
    """PyTorch in this process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["local"] = "local"
    kv_memory_mib: Annotated[
        int,
        Field(ge=1, description="memory for keys and values while texts are made, in MiB"),
    ] = KV_MEMORY_MIB


class MlxConfig(BaseModel):
    """mlx-lm's own models, member by member."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["mlx"] = "mlx"


class ServerConfig(BaseModel):
    """What is the same of every server that loads adapters while it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    url: Annotated[Url, Field(description="of the server, such as http://127.0.0.1:8000")]
    adapters_dir: Annotated[
        Path | None,
        Field(
            description="where adapters are written for the server to read: a path that is the "
            "same for both (default: a temporary directory of this machine)"
        ),
    ] = None
    members: Annotated[
        int | None,
        Field(
            ge=1,
            description="adapters on the server at once (default: as many as it says it holds, "
            "else 8)",
        ),
    ] = None
    concurrency: Annotated[
        int, Field(ge=1, le=4096, description="requests that are under way at once")
    ] = 64
    timeout: Annotated[Seconds, Field(description="seconds for one completion")] = 600.0
    load_timeout: Annotated[Seconds, Field(description="seconds to load one adapter")] = 120.0
    unload_timeout: Annotated[Seconds, Field(description="seconds to unload one adapter")] = 45.0
    start_timeout: Annotated[
        Seconds, Field(description="seconds to wait for the server, at first and after it failed")
    ] = 120.0
    retries: Annotated[
        int,
        Field(ge=0, description="how often a request is made again, and a lost server waited for"),
    ] = 3
    api_key_env: Annotated[
        str | None,
        Field(description="the environment variable that holds the server's key (default: none)"),
    ] = None


class VllmConfig(ServerConfig):
    """A vLLM server."""

    name: Literal["vllm"] = "vllm"
    url: Annotated[Url, Field(description="of the server")] = "http://127.0.0.1:8000"


class SglangConfig(ServerConfig):
    """An SGLang server."""

    name: Literal["sglang"] = "sglang"
    url: Annotated[Url, Field(description="of the server")] = "http://127.0.0.1:30000"


OverConfig = Annotated[LocalConfig | VllmConfig | SglangConfig, Field(discriminator="name")]
"""The engine of a worker."""

Address = Annotated[
    str,
    Field(
        pattern=r"^(local|auto|(ray://)?[^\s/:]+:\d+)$",
        description="local: a cluster on this machine, for this run; auto: the one that runs here; "
        "HOST:PORT or ray://HOST:PORT: another",
    ),
]


class RayConfig(BaseModel):
    """Workers on one or many machines, each with an engine of its own, that share a population."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["ray"] = "ray"
    address: Address = "local"
    workers: Annotated[
        int | None, Field(ge=1, description="how many (default: one for each of `urls`, else 2)")
    ] = None
    threads: Annotated[
        int | None,
        Field(
            ge=1,
            description="processor cores of a worker (default: this machine's cores shared out, "
            "on another cluster 1)",
        ),
    ] = None
    over: Annotated[
        OverConfig,
        Field(description="the engine of each worker: local, which loads the base, vllm or sglang"),
    ] = LocalConfig()
    urls: Annotated[
        tuple[Url, ...] | None,
        Field(min_length=1, description="of the servers, one for each worker, instead of over.url"),
    ] = None
    patience: Annotated[
        Seconds,
        Field(
            description="seconds after which another worker is asked, too; after twice that a "
            "worker counts as lost"
        ),
    ] = 1800.0
    start_timeout: Annotated[Seconds, Field(description="seconds until a worker is there")] = 600.0
    retries: Annotated[
        int,
        Field(ge=0, description="how often a worker is started again, or members handed out again"),
    ] = 3

    @model_validator(mode="after")
    def _a_server_each(self) -> RayConfig:
        serves = self.over.name != "local"
        if self.urls is None and serves and (self.workers or 1) > 1:
            raise ValueError(f"{self.workers} workers need a server each: give `urls`")
        if self.urls is None:
            return self
        if not serves:
            raise ValueError("`urls` are of servers: set `over.name` to vllm or sglang")
        if len(set(self.urls)) != len(self.urls):
            raise ValueError("`urls` names a server twice: each worker needs its own")
        if self.workers not in (None, len(self.urls)):
            raise ValueError(f"{self.workers} workers, and {len(self.urls)} `urls`: one for each")
        return self

    @property
    def engines(self) -> tuple[OverConfig, ...]:
        """That of each worker."""
        if self.urls is not None:
            return tuple(self.over.model_copy(update={"url": url}) for url in self.urls)
        serves = self.over.name != "local"
        return (self.over,) * (self.workers or (1 if serves else 2))

    @property
    def cores(self) -> int:
        """Of each worker."""
        if self.threads is not None:
            return self.threads
        here = (os.cpu_count() or 1) if self.address == "local" else 1
        return max(1, here // len(self.engines))


EngineConfig = Annotated[
    LocalConfig | MlxConfig | VllmConfig | SglangConfig | RayConfig, Field(discriminator="name")
]
"""`engine: {name: vllm, url: ...}`."""


def own_engine(config: EngineConfig) -> EngineConfig:
    """What a run's own process evaluates with: of workers, the engine of the first."""
    return config.engines[0] if isinstance(config, RayConfig) else config
