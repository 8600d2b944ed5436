"""On which weights an adapter was made, as its run or its certificate recorded them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weft.core.errors import InputError
from weft.engines.engine import Engine
from weft.engines.local import LocalEngine
from weft.formats.certificate import certificate_of
from weft.formats.folder import CERTIFICATE
from weft.runs.manifest import Manifest


@dataclass(frozen=True)
class Origin:
    """A base by the hash of its weights, in the dtype in which they were loaded."""

    base: str
    sha256: str
    dtype: str
    recorded: Path  # the file that says so


def origin_of_run(manifest: Manifest, path: Path) -> Origin | None:
    """The base of a run; None where the run recorded no hash."""
    digest = manifest.fingerprints.get("base")
    if digest is None:
        return None
    return Origin(manifest.config["base"], digest, manifest.config["dtype"], path)


def origin_of_files(adapter: Path) -> Origin | None:
    """The base that the certificate beside an adapter names; None where there is none."""
    found = certificate_of(adapter)
    if found is None:
        return None
    path = (adapter if adapter.is_dir() else adapter.parent) / CERTIFICATE
    return Origin(found.base.ref, found.base.sha256, found.base.dtype, path)


def check_origins(
    named: Sequence[tuple[str, Origin | None]], engine: Engine, digest: str | None = None
) -> tuple[str, ...]:
    """Compare what was recorded of each (reference, origin) with the base that was loaded.

    `digest` is the base's fingerprint, where it is known. Other weights of the same dtype are an
    `InputError`. What cannot be compared is a notice.
    """
    known = [(ref, origin) for ref, origin in named if origin is not None]
    if not known:
        return ()
    if not isinstance(engine, LocalEngine):
        what = f"the {engine.name} engine holds the base in a form of its own"
        return (f"{what}: that it is the one of {known[0][0]} was not checked by its hash",)
    dtype = str(engine.base.dtype).removeprefix("torch.")
    notices = [
        f"the hash of {ref}'s base was taken in {origin.dtype}, and the base is loaded in {dtype}: "
        "they were not compared"
        for ref, origin in known
        if origin.dtype != dtype
    ]
    same = [(ref, origin) for ref, origin in known if origin.dtype == dtype]
    if not same:
        return tuple(notices)
    loaded = digest or engine.base.fingerprint()  # reads all weights: once
    for ref, origin in same:
        if origin.sha256 != loaded:
            raise InputError(
                f"{ref} belongs to other weights: {origin.recorded} says that its "
                f"base {origin.base} has sha256 {origin.sha256[:12]}, and {engine.ref} "
                f"has {loaded[:12]}",
                hint="give the base that it was trained on with --base; to use it on these weights "
                "on purpose, copy the files of the adapter alone to a directory of their own",
            )
    return tuple(notices)
