"""How the formats tell what is wrong with an adapter: all of it at once, the first lines in full.

Shapes: r rank, I inputs and O outputs of a site.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from weft.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import torch

_SHOWN = 12  # problems that an error lists before it counts the rest

Fields = TypeVar("Fields", bound=BaseModel)
Wanted = tuple[int | None, ...]
"""The shape that a tensor must have; None where any size will do."""


class Tensor(Protocol):
    """A tensor of PyTorch or an array of NumPy, as far as names and shapes go."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sizes."""
        ...

    @property
    def dtype(self) -> Any:
        """Whatever its library calls it."""
        ...


def is_real(tensor: Tensor) -> bool:
    """Whether it holds floating point numbers."""
    return "float" in str(tensor.dtype)


def parsed(kind: type[Fields], fields: Any, what: str) -> Fields:
    """The fields of a configuration as `kind`; one `InputError` for all that are wrong."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problems = [
            f"\n  `{'.'.join(map(str, e['loc']))}`: {e['msg']}"
            + ("" if e["type"] == "missing" else f", not {e['input']!r:.80}")
            for e in error.errors()
        ]
        raise InputError(f"{what}:{''.join(problems)}") from None


def refuse(what: str, problems: Sequence[str], hint: str | None) -> None:
    """Raise one `InputError` for all `problems`, if there are any."""
    if problems:
        raise InputError(f"{what}:\n  {shortened(problems, chr(10) + '  ')}", hint)


def shortened(items: Sequence[str], separator: str) -> str:
    """The first items, and how many more there are."""
    more = [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return separator.join([*items[:_SHOWN], *more])


def strangers(names: Iterable[str], known: Collection[str] | None) -> Iterator[str]:
    """Names that are not among the `known` ones of the base, with the nearest that is."""
    unknown = [name for name in names if known is not None and name not in known]
    for index, name in enumerate(unknown):
        near = did_you_mean(name, list(known or ())) if index < _SHOWN else None  # it is slow
        yield f"{name}: not a place that can be adapted" + (f"; {near}" if near else "")


def misfits(site: str, pair: Mapping[str, Tensor], wanted: Mapping[str, Wanted]) -> Iterator[str]:
    """Factors of one site, by their names in the file, that are missing or of another shape."""
    for factor, sizes in wanted.items():
        if factor not in pair:
            yield f"{site}: {factor} is missing"
            continue
        shape = tuple(pair[factor].shape)
        fits = len(shape) == len(sizes)
        if not fits or any(w not in (None, s) for s, w in zip(shape, sizes, strict=True)):
            words = ", ".join("any" if size is None else str(size) for size in sizes)
            yield f"{site}: {factor} is {list(shape)}, expected [{words}]"


def not_finite(tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """A note on the tensors that hold NaN or infinity, if any do."""
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    return (f"not finite: {shortened(broken, ', ')}",) if broken else ()


def fit_words(trained_on: str | None, *, knows_base: bool) -> str:
    """The end of "the adapter X ...", for tensors that do not fit."""
    origin = f", trained on {trained_on}," if trained_on else ""
    return f"{origin} does not fit {'the base' if knows_base else 'together'}"


def natural(name: str) -> list[str | int]:
    """Sort key that puts layer 2 before layer 10."""
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]
