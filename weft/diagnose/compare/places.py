"""Names of groups of modules, as a person would say them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile


def kind_of(name: str) -> str:
    """`self_attn.q_proj` of `model.layers.0.self_attn.q_proj`; the whole name outside blocks."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else name


def block_of(name: str) -> int | None:
    """The number of its block; None outside blocks."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    return numbers[0] if numbers else None


def group(names: Sequence[str], among: Collection[str], what: str = "adapted modules") -> str:
    """Names as one: `all 42 adapted modules`, `all 6 q_proj`, `12 of 42 adapted modules (layers 0
    to 2)`; within one block with its path, `model.layers.3.self_attn: q_proj and v_proj (2 of 42
    adapted modules)`.
    """
    if not names:
        return f"none of {len(among)} {what}"
    if len(names) == 1:
        return names[0]
    if len(names) == len(among):
        return f"all {len(names)} {what}"
    if len({block_of(name) for name in names} - {None}) == 1 and _shared(names):
        path = _shared(names)
        inside = [name.removeprefix(f"{path}.") for name in names]
        complete = sum(name.startswith(f"{path}.") for name in among) == len(names)
        parts = f": {_list(inside)}" if len(inside) <= 3 and not complete else ""
        return f"{path}{parts} ({len(names)} of {len(among)} {what})"
    kinds = {kind_of(name) for name in names}
    peers = [name for name in among if kind_of(name) in kinds]
    if len(kinds) <= 3 and len(peers) == len(names):
        short = sorted(kind.rpartition(".")[2] for kind in kinds)
        return f"all {len(names)} {_list(short)}"
    blocks = sorted({block for name in names if (block := block_of(name)) is not None})
    whole = [name for name in among if block_of(name) in blocks]
    few = _ranges(blocks)
    some = f"{len(names)} of {len(among)} {what}"
    if len(whole) == len(names):
        return f"{some} ({few})"
    if len(kinds) <= 2:
        return f"{some} ({_list(sorted(kind.rpartition('.')[2] for kind in kinds))} in {few})"
    return f"{some} (in {few})" if blocks else some


def _shared(names: Sequence[str]) -> str:
    """The path that all names begin with."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    common = takewhile(lambda level: len(set(level)) == 1, levels)
    return ".".join(level[0] for level in common)


def _ranges(blocks: Sequence[int]) -> str:
    """`layer 3`, `layers 0 to 2`, `layers 0, 2, 4`."""
    if len(blocks) == 1:
        return f"layer {blocks[0]}"
    if len(blocks) > 2 and blocks[-1] - blocks[0] == len(blocks) - 1:
        return f"layers {blocks[0]} to {blocks[-1]}"
    shown = ", ".join(map(str, blocks[:8]))
    return f"layers {shown}{', ...' if len(blocks) > 8 else ''}"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def number(value: float) -> str:
    """Four digits at most, without an exponent where it can be avoided."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 and value == int(value) else f"{value:.4g}"
