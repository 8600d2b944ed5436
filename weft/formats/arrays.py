"""The tensors of an adapter's file as arrays of NumPy: reading them takes no torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from weft.core.errors import InputError
from weft.formats.folder import ZIP_ERRORS
from weft.formats.problems import shortened

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, bfloat16 as the float32 that it is the first half of.

    `InputError` for a file that is torn or empty, and for numbers that NumPy does not have.
    """
    try:
        found = deserialize(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"cannot read {path} as a safetensors file: {error}",
            hint="it may have been cut short by a download or a copy; fetch it again",
        ) from None
    if not found:
        raise InputError(f"{path} holds no tensors")
    return {name: _array(path, name, **facts) for name, facts in found}


def _array(path: Path, name: str, dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    if dtype == "BF16":
        halves = np.frombuffer(data, "<u2").astype("<u4") << 16
        return halves.view("<f4").reshape(shape)
    if dtype not in _DTYPES:
        raise InputError(f"{path}: tensor `{name}` is {dtype}, which NumPy does not have")
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file, without pickles; `InputError` for one that is torn or empty."""
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                    member.read()  # at the end the checksum is compared
                arrays[name.removesuffix(".npy")] = array
    except ZIP_ERRORS as error:
        if "allow_pickle=False" in str(error):
            raise InputError(
                f"{path} holds pickled Python objects, not only arrays of numbers",
                hint="Weft opens no pickles; save the factors again with"
                " `mlx.core.savez` or `numpy.savez` as plain arrays",
            ) from None
        raise InputError(
            f"cannot read {path} as an npz file: {error}",
            hint="it may have been cut short by a download or a copy; fetch it again",
        ) from None
    if not arrays:
        raise InputError(f"{path} holds no tensors")
    strange = [
        f"{n} is {array.dtype}" for n, array in arrays.items() if array.dtype.kind not in "fiub"
    ]
    if strange:
        raise InputError(f"{path} holds what is not numbers: {shortened(strange, ', ')}")
    return {
        name: value.astype(value.dtype.newbyteorder("="), copy=True)
        for name, value in arrays.items()
    }
