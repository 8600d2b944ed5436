"""Which engine computes, and where: the `engine` section of a run, and `--engine` (no torch)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

KV_MEMORY_MIB = 2048
"""For keys and values: 500 texts of 200 tokens of a base with 20 kB a token."""

Seconds = Annotated[float, Field(gt=0, le=86_400)]


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
    url: Annotated[str, Field(description="of the server, such as http://127.0.0.1:8000")]
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

    @field_validator("url")
    @classmethod
    def _is_a_server(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
            raise ValueError("not the address of a server: such as http://127.0.0.1:8000")
        return url.rstrip("/")


class VllmConfig(ServerConfig):
    """A vLLM server."""

    name: Literal["vllm"] = "vllm"
    url: Annotated[str, Field(description="of the server")] = "http://127.0.0.1:8000"


class SglangConfig(ServerConfig):
    """An SGLang server."""

    name: Literal["sglang"] = "sglang"
    url: Annotated[str, Field(description="of the server")] = "http://127.0.0.1:30000"


EngineConfig = Annotated[
    LocalConfig | MlxConfig | VllmConfig | SglangConfig, Field(discriminator="name")
]
"""`engine: {name: vllm, url: ...}`."""
