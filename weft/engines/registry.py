"""The engines by the name that `--engine` takes: to add one, write `open` and put it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from weft.core.errors import InputError, did_you_mean
from weft.model.config import DType

if TYPE_CHECKING:
    from weft.engines.engine import Engine


@dataclass(frozen=True)
class EngineKind:
    """An engine that can be asked for. Its libraries are loaded when it is opened, not before."""

    what: str
    open: Callable[[str, DType, str | None, int | None], Engine]
    """From a base's reference, dtype, device (None: the engine's own choice) and rows of one
    forward (None: all)."""


def open_engine(
    name: str,
    ref: str,
    *,
    dtype: DType = "float32",
    device: str | None = None,
    rows_per_forward: int | None = None,
) -> Engine:
    """The engine called `name` over the base `ref`: a bundled name, a directory, or a hub id.

    Raises `InputError` for an unknown engine, for one whose package is not installed, and for a
    base that it cannot load.
    """
    if name not in ENGINES:
        raise InputError(
            f"there is no engine {name!r}; the engines are {', '.join(ENGINES)}",
            hint=did_you_mean(name, list(ENGINES)),
        )
    return ENGINES[name].open(ref, dtype, device, rows_per_forward)


def _local(ref: str, dtype: DType, device: str | None, rows: int | None) -> Engine:
    from weft.engines.local import LocalEngine
    from weft.model.base import load_base

    return LocalEngine(load_base(ref, dtype, device or "cpu"), rows_per_forward=rows)


def _mlx(ref: str, dtype: DType, device: str | None, rows: int | None) -> Engine:
    if device is not None:
        raise InputError(
            f"device is {device!r}, and the mlx engine runs on MLX's own default device",
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

    return open_mlx(ref, dtype)  # every row is a forward of its own: `rows` are never exceeded


ENGINES: dict[str, EngineKind] = {
    "local": EngineKind("PyTorch in this process: many members in one forward", _local),
    "mlx": EngineKind("mlx-lm's own models, member by member", _mlx),
}
