"""The factors of an adapter in any format, as arrays: for whoever must not wait for torch.

Names, shapes and scales are told by the same code that the formats' own readers use. Shapes: r
rank, I inputs and O outputs of a site.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weft.core.errors import InputError
from weft.core.files import read_json
from weft.formats import mlx_places, mlx_scale, peft_config
from weft.formats.arrays import read_npz, read_safetensors
from weft.formats.certificate import certified_scale
from weft.formats.folder import CONFIG, USUAL, contents, find_tensors
from weft.formats.loaded import ScaleCandidate, UndecidedScale
from weft.formats.mlx_config import MlxConfig, beyond_lora, candidates
from weft.formats.peft_names import by_site
from weft.formats.problems import fit_words, parsed, refuse

CERTIFIED = "the certificate beside it"


@dataclass(frozen=True, eq=False)
class Pair:
    """The factors of one site: the update is `scale * b_Or @ a_rI`."""

    a_rI: np.ndarray
    b_Or: np.ndarray
    scale: float
    alpha: float | None = None  # as declared, where the format has one

    @property
    def rank(self) -> int:
        """r."""
        return len(self.a_rI)


@dataclass(frozen=True, eq=False)
class FactorFile:
    """An adapter as its files hold it, in the dtype that they have (bfloat16 as float32)."""

    path: Path  # of the tensors
    format: str
    sites: Mapping[str, Pair]
    config: Mapping[str, Any]  # the format's own, as it was read; {} where it has none
    base_ref: str | None
    dropout: float
    scale_from: str  # how the scales were found, in words


def kinds_at(path: Path) -> dict[str, Path]:
    """The formats of the adapters at `path`, a directory or a file, and the files they are in."""
    found = {kind: find_tensors(path, kind, usual) for kind, usual in USUAL.items()}
    return {kind: file for kind, file in found.items() if file is not None}


def read_factors(path: Path) -> FactorFile:
    """Read an adapter without its base. Raises `InputError` where its format's reader does.

    `UndecidedScale` where neither its files nor a certificate of Weft for them say its scale.
    """
    kinds = kinds_at(path)
    if len(kinds) != 1:
        several = f"several formats: {', '.join(kinds)}" if kinds else "none that Weft knows"
        raise InputError(
            f"{path} holds adapters in {several}; {contents(path)}",
            hint="name the file of the one that is meant",
        )
    ((kind, file),) = kinds.items()
    return _peft(path, file) if kind == "peft" else _mlx(path, file, is_npz=kind == "npz")


def _peft(path: Path, file: Path) -> FactorFile:
    source = file.parent / CONFIG
    if not source.exists():
        raise InputError(
            f"{file} has no {CONFIG} beside it, which says its rank, its alpha and its base",
            hint="copy it to that place, too: an adapter of PEFT is two files",
        )
    fields = read_json(source)
    config = peft_config.parse(fields, source)
    pairs = by_site(path, read_safetensors(file), config)
    return FactorFile(
        file,
        "peft",
        {
            name: Pair(pair["A"], pair["B"], config.scale(name), config.alpha(name))
            for name, pair in pairs.items()
        },
        fields,
        config.base_model_name_or_path or None,
        _number(fields.get("lora_dropout")),
        config.rule,
    )


def _mlx(path: Path, file: Path, *, is_npz: bool) -> FactorFile:
    source = file.parent / CONFIG
    fields: dict[str, Any] = read_json(source) if source.is_file() and not is_npz else {}
    config = parsed(MlxConfig, fields, f"{source} is not mlx-lm's configuration")
    found = mlx_places.sort_out(read_npz(file) if is_npz else read_safetensors(file), None)
    refuse(
        f"the adapter {path} is more than W + scale * B @ A",
        [*beyond_lora(config), *found.foreign],
        hint="fuse it into its base and use that as the base",
    )
    trained_on = config.model or fields.get("base_model_name_or_path") or None
    refuse(
        f"the adapter {path}{fit_words(trained_on, knows_base=False)}",
        mlx_places.problems_of(found, None, config.lora.rank),
        hint=None,
    )
    if found.rotated:
        raise InputError(
            f"the adapter {path} is in Meta's rotary order, which takes its base to undo",
            hint=f"convert it once: `weft import {path} --base BASE --out DIR`",
        )
    choice = (
        (mlx_scale.without_config(npz=True, meta=bool(found.meta)), False)
        if is_npz
        else candidates(config, found)
    )
    scale, reason = _decided(path, *choice)
    said = config.lora_parameters.model_extra if config.lora_parameters else None
    return FactorFile(
        file,
        "npz" if is_npz else "mlx",
        {n: Pair(p["lora_a"].T, p["lora_b"].T, scale) for n, p in found.pairs.items()},
        fields,
        trained_on,
        _number((said or {}).get("dropout")),
        reason,
    )


def _decided(path: Path, meant: list[ScaleCandidate], determined: bool) -> tuple[float, str]:
    with suppress(UndecidedScale):
        decided = mlx_scale.decide(f"the adapter {path}", meant, determined, given=None)
        return decided.scale, decided.reason
    scale = certified_scale(path)
    if scale is None:
        raise UndecidedScale(
            f"the adapter {path} does not say at which scale it was trained; it may be",
            meant,
            hint=f"say it once: `weft import {path} --out DIR --scale NUMBER`",
        )
    return scale, CERTIFIED


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
