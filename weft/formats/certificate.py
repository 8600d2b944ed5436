"""The certificate of a conversion: what became what, and how far the two are apart.

It lies beside the files of the result as `certificate.json`. Shapes: O outputs and I inputs of a
site, r rank, q both ranks together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weft import __version__
from weft.core.errors import InputError
from weft.core.files import read_json, sha256_file, write_json
from weft.formats.folder import CERTIFICATE
from weft.model.adapter import Adapter
from weft.model.base import DTYPES, Base
from weft.model.config import DType
from weft.runs.manifest import utc_now

SCHEMA_VERSION = 1

UPDATE_TOLERANCE = 1e-6
"""Largest relative difference of a site's update between two adapters: some roundings of fp32."""


def rounding_unit(dtype: DType) -> float:
    """The largest relative error of rounding one number to a dtype."""
    return torch.finfo(DTYPES[dtype]).eps / 2


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Files(_Record):
    """One side of a conversion."""

    path: str | None = None  # of the source; the result lies where the certificate does
    format: str
    files: dict[str, str]  # sha256 by name
    dtype: str | None = None  # of the weights in a result


class BaseRecord(_Record):
    """The base on which both sides were run."""

    ref: str
    sha256: str  # `Base.fingerprint` of the weights as they were loaded
    dtype: str  # in which they were loaded


class Strength(_Record):
    """How an adapter acts at one site: dW = scale * B @ A."""

    rank: int
    scale: float


class SiteRecord(_Record):
    """One site on both sides; a merged model has no factors left."""

    source: Strength | None
    result: Strength | None
    update_difference: float  # |dW - dW'| / |dW|, Frobenius, of the larger dW
    update_tolerance: float  # the largest that rounding explains


class LogitRecord(_Record):
    """Forwards of source and result on the same texts, in float32."""

    texts: int
    positions: int
    largest_logit: float
    adapter_effect: float  # largest |source - base|
    largest_difference: float  # largest |source - result|
    tolerance: float
    reason: str  # of the tolerance, in words


class Certificate(_Record):
    """What a conversion read and wrote, and whether the function is the same."""

    schema_version: int = SCHEMA_VERSION
    weft: str = __version__
    time: str = Field(default_factory=utc_now)
    source: Files
    result: Files
    base: BaseRecord
    scale_from: str
    scale_choice: dict[str, Any] | None = None
    """The losses by which `--scale auto` chose."""

    sites: dict[str, SiteRecord]
    logits: LogitRecord
    holds: bool
    notes: tuple[str, ...] = ()

    @property
    def update_difference(self) -> float:
        """The largest over all sites."""
        return max((site.update_difference for site in self.sites.values()), default=0.0)

    def save(self, directory: Path) -> None:
        """Write it into the directory of the result."""
        write_json(directory / CERTIFICATE, self.model_dump(), sort_keys=False)


def load_certificate(directory: Path) -> Certificate | None:
    """The certificate in a directory; None where there is none."""
    path = directory / CERTIFICATE
    if not path.is_file():
        return None
    raw = read_json(path)
    hint = "if it is not Weft's, or not of this adapter, move it away"
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version}; this Weft reads up to {SCHEMA_VERSION}",
            hint=f"update Weft; {hint}",
        )
    try:
        return Certificate.model_validate(raw)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, issue['loc'])) or 'the file'}: {issue['msg']}"
            for issue in error.errors()
        ]
        text = "\n  ".join(problems[:5])
        raise InputError(f"{path} is not a certificate of Weft:\n  {text}", hint) from None


def hashes(path: Path) -> dict[str, str]:
    """sha256 of a file, or of every file in a directory but its certificate, by name."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    return {file.name: sha256_file(file) for file in files if file.name != CERTIFICATE}


def strengths(adapter: Adapter) -> dict[str, Strength]:
    """Rank and scale at every site."""
    return {s.site.name: Strength(rank=s.rank, scale=s.scale) for s in adapter.layout.slots}


def site_records(source: Adapter, result: Adapter) -> dict[str, SiteRecord]:
    """Every site of either adapter, and how far the two updates are apart."""
    before, after = strengths(source), strengths(result)
    return {
        name: SiteRecord(
            source=before.get(name),
            result=after.get(name),
            update_difference=update_difference(_factors(source, name), _factors(result, name)),
            update_tolerance=UPDATE_TOLERANCE,
        )
        for name in {**before, **after}
    }


def merged_records(
    base: Base, merged: Base, adapter: Adapter, dtype: DType
) -> dict[str, SiteRecord]:
    """Every adapted weight of a merged model in `dtype`, and how far it is from W + dW."""
    found = {}
    for name, strength in strengths(adapter).items():
        before, after = (m.model.get_submodule(name).weight.double() for m in (base, merged))
        factors = _factors(adapter, name)
        assert factors is not None
        dw = factors[1] @ factors[0]
        if adapter.layout.by_name[name].site.kind == "conv1d":
            dw = dw.T
        wanted = before.cpu() + dw
        size = float(dw.norm()) or float(wanted.norm()) or 1.0
        # below the smallest normal number, what is rounded is a share of that one
        least = torch.finfo(DTYPES[dtype]).tiny * wanted.numel() ** 0.5
        rounded = rounding_unit(dtype) * (float(wanted.norm()) + least)
        found[name] = SiteRecord(
            source=strength,
            result=None,
            update_difference=float((after.cpu() - wanted).norm()) / size,
            update_tolerance=rounded * (1 + 1e-3) / size,
        )
    return found


Factors = tuple[torch.Tensor, torch.Tensor] | None
"""A [r, I] and scale * B [O, r] in float64; None where a site is not adapted."""


def update_difference(source: Factors, result: Factors) -> float:
    """|dW - dW'| / |dW| of the larger dW, without forming either; 0 where both are zero.

    The difference is one low-rank product [sB, -s'B'] @ [A; A'], whose norm is that of the two
    triangles of its factors. The Grams of the factors would give the same number, but not below
    1e-8: there they subtract squares that agree in all their digits.
    """
    if source is None or result is None:
        return 0.0 if _norm(source) == _norm(result) == 0 else 1.0
    (a_rI, b_Or), (other_rI, other_Or) = source, result
    if torch.equal(a_rI, other_rI) and torch.equal(b_Or, other_Or):
        return 0.0
    apart = _norm((torch.cat([a_rI, other_rI]), torch.cat([b_Or, -other_Or], dim=1)))
    size = max(_norm(source), _norm(result))
    return apart / size if size else 0.0


def _norm(factors: Factors) -> float:
    """|B @ A|, Frobenius, without forming it."""
    if factors is None:
        return 0.0
    a_qI, b_Oq = factors
    left_qq = torch.linalg.qr(b_Oq, mode="r").R
    right_qq = torch.linalg.qr(a_qI.T, mode="r").R
    return float(torch.linalg.norm(left_qq @ right_qq.T))


def _factors(adapter: Adapter, site: str) -> Factors:
    slot = adapter.layout.by_name.get(site)
    if slot is None:
        return None
    a_rI, b_Or = (factor.detach().cpu().double() for factor in adapter.sites[site])
    return a_rI, slot.scale * b_Or


def certified_scale(path: Path) -> float | None:
    """The one scale that the certificate beside an adapter gives for exactly these files.

    Formats that do not store their scale are read with it. None without a certificate, where the
    files are not those that it was made for, and where the scales of the sites differ.
    """
    found = certificate_of(path)
    if found is None:
        return None
    scales = {site.result.scale for site in found.sites.values() if site.result}
    return scales.pop() if len(scales) == 1 else None


def certificate_of(path: Path) -> Certificate | None:
    """The certificate of the adapter at `path`, a directory or a file; None where it has none.

    A certificate that is there and was made for other files counts for nothing.
    """
    directory = path if path.is_dir() else path.parent
    found = load_certificate(directory)
    if found is None:
        return None
    names = [path.name] if path.is_file() else list(found.result.files)
    same = all(
        (directory / name).is_file()
        and sha256_file(directory / name) == found.result.files.get(name)
        for name in names
    )
    return found if same else None
