"""The engines by the name that `--engine` takes: to add one, write `open` and put it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from weft.core.errors import InputError, did_you_mean
from weft.engines.config import EngineConfig
from weft.model.config import DType
from weft.runs.timing import Stopwatch

if TYPE_CHECKING:
    from weft.engines.engine import Engine
    from weft.engines.population import Crew, Work


@dataclass(frozen=True)
class Settings:
    """How an engine is to compute, whose time it is, and who is told of mended failures.

    None is its own choice.
    """

    dtype: DType | None = None
    device: str | None = None
    rows_per_forward: int | None = None
    clock: Stopwatch | None = None
    notice: Callable[[str], None] | None = None


@dataclass(frozen=True)
class EngineKind:
    """An engine that can be asked for. Its libraries are loaded when it is opened, not before."""

    what: str
    open: Callable[[Any, str, Settings], Engine]
    """From its configuration, a base's reference, and how it is to compute."""
    scores: bool = True
    """Whether it computes losses; every one of them generates."""
    here: bool = True
    """Whether it computes in this process, on a device and in a dtype that can be chosen."""


def engine_config(name: str, **settings: Any) -> EngineConfig:
    """The configuration of an engine by its name. Raises `InputError` for what there is not."""
    if name not in ENGINES:
        raise InputError(
            f"there is no engine {name!r}; the engines are {', '.join(ENGINES)}",
            hint=did_you_mean(name, list(ENGINES)),
        )
    try:
        config: EngineConfig = TypeAdapter(EngineConfig).validate_python({"name": name, **settings})
    except ValidationError as error:
        problem = error.errors()[0]
        key, said = problem["loc"][-1], problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            said = f"the {name} engine has no such setting"
        raise InputError(f"engine.{key}: {said}", hint=f"given: {problem['input']!r}") from None
    return config


def open_engine(
    config: EngineConfig | str,
    ref: str,
    *,
    dtype: DType | None = None,
    device: str | None = None,
    rows_per_forward: int | None = None,
    clock: Stopwatch | None = None,
    notice: Callable[[str], None] | None = None,
) -> Engine:
    """An engine over the base `ref`: a bundled name, a directory, or a hub id.

    `config` may be a name, for an engine as it is by default. A server has a dtype and a device of
    its own. Raises `InputError` for an unknown engine, for one whose package is not installed, and
    for a base that it cannot load; `EngineError` for a server that is not there.
    """
    if isinstance(config, str):
        config = engine_config(config)
    settings = Settings(dtype, device, rows_per_forward, clock, notice)
    return ENGINES[config.name].open(config, ref, settings)


def _local(config: Any, ref: str, settings: Settings) -> Engine:
    from weft.engines.local import LocalEngine
    from weft.model.base import load_base

    base = load_base(ref, settings.dtype or "float32", settings.device or "cpu")
    return LocalEngine(
        base, rows_per_forward=settings.rows_per_forward, kv_memory_mib=config.kv_memory_mib
    )


def _mlx(config: Any, ref: str, settings: Settings) -> Engine:
    if settings.device is not None:
        raise InputError(
            f"device is {settings.device!r}, and the mlx engine runs on MLX's own default device",
            hint="leave it out",
        )
    try:
        for package in ("mlx.core", "mlx_lm"):
            import_module(package)
    except ImportError as error:
        raise InputError(
            f"the mlx engine needs the packages mlx and mlx-lm: {error}",
            hint="pip install 'weft[mlx]'",
        ) from error
    from weft.engines.mlx import open_mlx

    # every row is a forward of its own: `rows_per_forward` are never exceeded
    return open_mlx(ref, settings.dtype or "float32")


def _server(config: Any, ref: str, settings: Settings) -> Engine:
    from weft.engines.servers.engine import open_server

    engine = open_server(config, ref, settings.clock)
    engine.notice = settings.notice or engine.notice
    return engine


def _ray(config: Any, work: Work, engine: Engine, notice: Callable[[str], None]) -> Crew:
    try:
        import_module("ray")
    except ImportError as error:
        raise InputError(
            f"the ray engine needs the package ray: {error}", hint="pip install 'weft[ray]'"
        ) from error
    from weft.engines.crew.crew import open_crew

    return open_crew(config, work, engine, notice)


ENGINES: dict[str, EngineKind] = {
    "local": EngineKind("PyTorch in this process: many members in one forward", _local),
    "mlx": EngineKind("mlx-lm's own models, member by member", _mlx),
    "vllm": EngineKind("a vLLM server", _server, scores=False, here=False),
    "sglang": EngineKind("an SGLang server", _server, scores=False, here=False),
}

CREWS: dict[str, Callable[[Any, Work, Engine, Callable[[str], None]], Crew]] = {"ray": _ray}
"""Who shares out populations, by the name of a run's `engine`: from its configuration, the work,
what the run itself evaluates with, and who is told what went wrong and was mended."""
