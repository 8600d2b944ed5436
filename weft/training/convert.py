"""From one form of an adapter to another, with a certificate that the function is the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from weft.core.batch import Example
from weft.core.errors import CheckFailed, InputError, NumericError, did_you_mean
from weft.core.files import atomic_dir
from weft.data.tokenizer import resolve_base
from weft.engines.local import LocalEngine
from weft.formats.certificate import (
    BaseRecord,
    Certificate,
    Files,
    LogitRecord,
    SiteRecord,
    hashes,
    load_certificate,
)
from weft.formats.differences import merged_records, rounding_unit, site_records
from weft.formats.folder import CERTIFICATE, CONFIG
from weft.formats.loaded import LoadedAdapter, UndecidedScale
from weft.formats.merged import merged_weights, write_merged
from weft.formats.problems import shortened
from weft.formats.registry import FORMATS, detect_format, read_any
from weft.model.adapter import Adapter
from weft.model.base import Base, load_base, load_config, stored_dtype
from weft.model.config import DType
from weft.training.origin import check_origins
from weft.training.refs import Place, common_base, locate, read_adapter
from weft.training.trial import Apart, apart, examples

MERGED = "merged"
TARGETS = (*FORMATS, MERGED)
"""What an adapter can be exported to."""

FORWARD_ROUNDING = 1e-5
"""How far two float32 forwards of one function are apart, as a share of the largest logit."""

UNITS = 8
"""Units of rounding in every weight that the logits may show: layers add up."""


Scale = float | Literal["auto"] | None


@dataclass(frozen=True, eq=False)
class Conversion:
    """An adapter, the base that it belongs to, and what it shall become: all checked."""

    place: Place
    path: Path
    format: str
    base: Base
    base_sha256: str
    scale: Scale
    to: str
    out: Path
    dtype: DType
    notices: tuple[str, ...]

    def read(self) -> LoadedAdapter:
        """The adapter at the scale that was given, else at that of its files.

        Raises `UndecidedScale` where the files determine none and none was given.
        """
        if isinstance(self.scale, float):
            return replace(self.read_at(self.scale), scale_from="given with --scale")
        return read_adapter(self.path, self.base.sites, self.base.model.config)

    def read_at(self, scale: float) -> LoadedAdapter:
        """The adapter at a scale of the caller's."""
        config = self.base.model.config
        return read_any(self.path, self.base.sites, scale=scale, base_config=config)


def prepare(
    ref: str,
    to: str,
    out: Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    insist: str | None = None,
    scale: Scale = None,
) -> Conversion:
    """Check everything that can be checked before work starts, and load the base in float32.

    `insist` is the format that the source must have, `dtype` that of a merged model's files
    (default: that of the base's files). `scale` goes before that of the files; with "auto" it may
    be open until somebody chooses it. Raises `InputError` for what is wrong with any of these.
    """
    checked, scale = _check_target(to, dtype), _checked_scale(scale)
    _require_free(out)
    out = out.resolve()  # a link stays one, and what it leads to is replaced
    place = locate(ref)
    path = _one_adapter(place)
    found = detect_format(path)
    assert found is not None  # `locate` finds nothing else
    _check_insisted(path, found.name, insist)
    _require_apart(out, path, "the adapter to convert")
    name = base or common_base([place])
    _require_apart(out, Path(resolve_base(name)), f"the base {name}")
    undecided = (UndecidedScale,) if scale is not None else ()
    with suppress(*undecided):  # files that cannot be read are found before the weights are loaded
        read_adapter(path, base_config=load_config(name))
    loaded = load_base(name)
    with suppress(*undecided):  # tensors that do not fit say more than hashes that differ
        read_adapter(path, loaded.sites, loaded.model.config)
    digest = loaded.fingerprint()
    return Conversion(
        place=place,
        path=path,
        format=found.name,
        base=loaded,
        base_sha256=digest,
        scale=scale,
        to=to,
        out=out,
        dtype=checked or (stored_dtype(name) if to == MERGED else None) or "float32",
        notices=check_origins([(ref, place.origin)], LocalEngine(loaded), digest),
    )


def carry_out(
    job: Conversion,
    adapter: LoadedAdapter,
    *,
    scale_choice: dict[str, Any] | None = None,
    rows: Sequence[Example] = (),
) -> Certificate:
    """Write the result with its certificate, once source and result are the same function.

    Both are read back from disk and run on Weft's own texts and on `rows`. Raises `CheckFailed`,
    and leaves nothing, where they differ by more than rounding explains.
    """
    if not adapter.adapter.flat.isfinite().all():
        raise NumericError(
            f"{job.path} holds numbers that are not finite: nothing was converted",
            hint=f"`weft inspect {job.path}` says where",
        )
    rows = (*examples(job.base), *rows)
    with atomic_dir(job.out) as directory:
        if job.to == MERGED:
            sites, measured = _merge(job, adapter.adapter, directory, rows)
        else:
            sites, measured = _rewrite(job, adapter, directory, rows)
        if not math.isfinite(measured.effect):
            raise NumericError(
                f"with {job.path} the base gives logits that are not finite: nothing was converted",
                hint=f"`weft inspect {job.path}` says how large its updates are",
            )
        record = _logit_record(job, measured)
        made = Certificate(
            source=Files(path=str(job.path), format=job.format, files=_read_files(job, adapter)),
            result=Files(format=job.to, files=hashes(directory), dtype=job.dtype),
            base=BaseRecord(ref=job.base.ref, sha256=job.base_sha256, dtype=_name(job.base.dtype)),
            scale_from=adapter.scale_from,
            scale_choice=scale_choice,
            sites=sites,
            logits=record,
            holds=_holds(sites, record),
            notes=(*adapter.notes, *job.notices),
        )
        if not made.holds:
            raise CheckFailed(*_broken(job, made))
        made.save(directory)
    return made


def _rewrite(
    job: Conversion, source: LoadedAdapter, directory: Path, rows: Sequence[Example]
) -> tuple[dict[str, SiteRecord], Apart]:
    """Write the adapter in another format, read it back, and compare."""
    target, base = FORMATS[job.to], job.base
    config = base.model.config
    target.write(
        source.adapter,
        directory,
        base_ref=base.ref,
        dropout=_dropout(source.config),
        sites=base.sites,
        base_config=config,
    )
    read = target.read(directory, base.sites, scale=target.fixed_scale, base_config=config)
    sites = site_records(source.adapter, read.adapter)
    return sites, apart(base, source.adapter, read.adapter, rows)


def _merge(
    job: Conversion, adapter: Adapter, directory: Path, rows: Sequence[Example]
) -> tuple[dict[str, SiteRecord], Apart]:
    """Write base and adapter as one model, load it like any base, and compare."""
    write_merged(job.base, merged_weights(job.base, adapter, job.dtype), job.dtype, directory)
    merged = load_base(str(directory))
    sites = merged_records(job.base, merged, adapter, job.dtype)
    return sites, apart(job.base, adapter, merged, rows)


def _read_files(job: Conversion, adapter: LoadedAdapter) -> dict[str, str]:
    """sha256 of the files of the source: of a single file, with the configuration beside it."""
    found = hashes(job.path)
    if job.path.is_file() and adapter.config:
        found |= hashes(job.path.with_name(CONFIG))
    return found


def _logit_record(job: Conversion, found: Apart) -> LogitRecord:
    tolerance = FORWARD_ROUNDING * found.largest_logit
    reason = f"rounding of float32 forwards: {FORWARD_ROUNDING:g} of the largest logit"
    if job.to == MERGED and job.dtype != "float32":
        unit = rounding_unit(job.dtype)
        tolerance = max(tolerance, min(UNITS * unit * found.largest_logit, found.effect / 2))
        reason = (
            f"merging rounds each weight to {job.dtype}, by up to {unit:.2g} of itself: "
            f"{UNITS} times that of the largest logit, or half of the adapter's own effect if that "
            "is less"
        )
    return LogitRecord(
        texts=found.texts,
        positions=found.positions,
        largest_logit=found.largest_logit,
        adapter_effect=found.effect,
        largest_difference=found.difference,
        tolerance=tolerance,
        reason=reason,
    )


def _holds(sites: dict[str, SiteRecord], logits: LogitRecord) -> bool:
    """Whether nothing differs by more than its tolerance; NaN does."""
    updates = all(s.update_difference <= s.update_tolerance for s in sites.values())
    return updates and logits.largest_difference <= logits.tolerance


def _broken(job: Conversion, made: Certificate) -> tuple[str, str]:
    found = made.logits
    problem = (
        f"the {job.to} result is not the same function as {job.path}, and was not kept: logits "
        f"differ by up to {found.largest_difference:.3g} on {found.texts} texts, where "
        f"{found.tolerance:.3g} is allowed ({found.reason}); the adapter's own effect is "
        f"{found.adapter_effect:.3g}, and updates differ by up to {made.update_difference:.3g} "
        "of their size"
    )
    wrong = [n for n, s in made.sites.items() if not s.update_difference <= s.update_tolerance]
    if wrong:
        problem += f", which rounding does not explain at {shortened(wrong, ', ')}"
    elif job.to == MERGED and job.dtype != "float32":
        return problem, "write the merged model with --dtype float32, or keep the adapter as one"
    return problem, "please report this, with the numbers above"


def _check_target(to: str, dtype: str | None) -> DType | None:
    """The dtype, checked."""
    if to not in TARGETS:
        raise InputError(
            f"there is no format {to!r} to export to",
            hint=did_you_mean(to, list(TARGETS)) or f"the formats are {', '.join(TARGETS)}",
        )
    if dtype is None:
        return None
    if to != MERGED:
        raise InputError(
            f"--dtype is for merged models, and {to} is an adapter: it is written in float32",
            hint="leave --dtype out",
        )
    for known in get_args(DType):
        if dtype == known:
            return known
    raise InputError(
        f"there is no dtype {dtype!r} for a merged model",
        hint=did_you_mean(dtype, list(get_args(DType))) or f"one of {', '.join(get_args(DType))}",
    )


def _checked_scale(scale: Scale) -> Scale:
    if scale is None or scale == "auto":
        return scale
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(
            f"the scale is {scale}, and it must be a positive number",
            hint="it is what B @ A is multiplied by: alpha / rank, or MLX's `scale`",
        )
    return float(scale)


def _check_insisted(path: Path, found: str, insist: str | None) -> None:
    if insist is not None and insist not in FORMATS:
        raise InputError(
            f"there is no format {insist!r} to import from",
            hint=did_you_mean(insist, list(FORMATS)) or f"the formats are {', '.join(FORMATS)}",
        )
    if insist not in (None, found):
        raise InputError(
            f"{path} is an adapter in the format {found}, by the names of its tensors, "
            f"and not in {insist}",
            hint="leave --from out",
        )


def _one_adapter(place: Place) -> Path:
    if not place.adapters:
        raise InputError(
            f"{place.ref} is a base: there is no adapter to convert",
            hint="give an adapter or a run",
        )
    if len(place.adapters) > 1:
        assert place.run is not None
        members = "\n".join(f"  {path.parent}" for path in place.adapters.values())
        raise InputError(
            f"{place.ref} has {len(place.adapters)} adapters, and one is converted at a time",
            hint=f"name one of its members:\n{members}",
        )
    return next(iter(place.adapters.values()))


def _require_apart(out: Path, source: Path, what: str) -> None:
    """Nothing that the conversion reads is replaced by its result."""
    if out in (source.resolve(), *source.resolve().parents):
        raise InputError(
            f"--out {out} would be replaced, and {what} lies there",
            hint="choose another directory for the result",
        )


def _require_free(out: Path) -> None:
    """A directory can be made there, and nothing but an earlier conversion is replaced."""
    for place in (out, *out.absolute().parents):
        if place.exists() and not place.is_dir():
            below = "" if place == out else f" cannot be made: {place}"
            raise InputError(
                f"--out {out}{below} is a file", hint="give a directory that does not exist yet"
            )
    if out.resolve() == Path.cwd():
        raise InputError(
            f"--out {out} is the directory that you are in, and a result replaces it whole",
            hint="give a directory that does not exist yet",
        )
    present = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if not present:
        return
    try:
        earlier = load_certificate(out)
    except InputError:
        earlier = None
    if earlier is None or not present <= {CERTIFICATE, *earlier.result.files}:
        raise InputError(
            f"--out {out} exists and holds other files: {', '.join(sorted(present)[:5])}",
            hint="give a directory that does not exist yet",
        )


def _dropout(config: dict[str, Any]) -> float:
    """What the source's configuration says for whoever trains on: in PEFT's or mlx-lm's field."""
    mlx = config.get("lora_parameters")
    found = config.get("lora_dropout", mlx.get("dropout") if isinstance(mlx, dict) else None)
    return float(found) if isinstance(found, int | float) else 0.0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
