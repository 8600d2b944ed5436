"""The certificate of a conversion: what became what, and how far the two are apart.

It lies beside the files of the result as `certificate.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weft import __version__
from weft.core.errors import InputError
from weft.core.files import read_json, sha256_file, write_json
from weft.formats.folder import CERTIFICATE
from weft.runs.manifest import utc_now

SCHEMA_VERSION = 1


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
