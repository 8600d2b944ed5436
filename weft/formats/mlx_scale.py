"""The scale of an MLX adapter: what its files say of it, and what they may mean.

mlx-lm and mlx-examples changed the meaning of the same fields without a mark in the files:

    until 2024-01-09   mlx-examples: 2, a constant; places in Meta's names
    from 2024-01-09    mlx-examples: 20, a constant
    until 2024-06-02   mlx-lm: `scale` * `alpha` / `rank`, by default 10 * 16 / 8 = 20
    from 2024-06-02    mlx-lm: `scale`, by default 10; a leftover `alpha` counts for nothing
    from 2024-09-29    the same, and the field `lora_layers` is called `num_layers`
    from 2025-06-05    the same, by default 20
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weft.formats.loaded import GIVEN, ScaleCandidate, UndecidedScale

EXAMPLES_SCALE = 20.0
META_SCALE = 2.0


@dataclass(frozen=True)
class Decided:
    """The scale, where it is from in words, and what is odd about it."""

    scale: float
    reason: str
    notes: tuple[str, ...] = ()


def decide(
    what: str, candidates: Sequence[ScaleCandidate], determined: bool, *, given: float | None
) -> Decided:
    """The scale that was `given`, or the one that the files determine.

    Raises `UndecidedScale` with the candidates where they determine none. A given scale that the
    files speak against is used, and a note says so.
    """
    if given is not None:
        told = ", or ".join(f"{c.scale:g} ({c.reason})" for c in candidates)
        fits = any(c.scale == given for c in candidates)
        note = f"the scale {given:g} was given and is used; the files mean {told}"
        return Decided(given, GIVEN, () if fits else (note,))
    if determined:
        return Decided(candidates[0].scale, candidates[0].reason)
    raise UndecidedScale(
        f"{what} does not say at which scale it was trained; it may be",
        candidates,
        hint="give the scale that it was trained with (`--scale`)",
    )


def of_config(
    scale: float, rank: int, alpha: float | None, *, dated: bool
) -> tuple[list[ScaleCandidate], bool]:
    """What a configuration may mean, and whether that is only one thing.

    `dated`: it has `num_layers`, so it was written after `alpha` had lost its meaning.
    """
    plain = ScaleCandidate(
        scale,
        "`scale` in adapter_config.json, which multiplies B @ A itself"
        + ("" if dated else " since 2024-06-02"),
    )
    if dated or alpha is None:  # before 2024-06-02 there was no adapter without alpha
        return [plain], True
    old = ScaleCandidate(
        scale * alpha / rank,
        f"scale * alpha / rank = {scale:g} * {alpha:g} / {rank}, the rule of"
        " mlx-lm before 2024-06-02",
    )
    if old.scale == plain.scale:
        return [plain], True
    return [old, plain], False


def without_config(*, npz: bool, meta: bool) -> list[ScaleCandidate]:
    """What tensors alone may mean; never only one thing, for any of these could be edited."""
    first = ScaleCandidate(META_SCALE, "the constant of mlx-examples until 2024-01-09")
    second = ScaleCandidate(EXAMPLES_SCALE, "the constant of mlx-examples since 2024-01-09")
    if meta:
        return [first, second]
    if npz:
        return [second, first]
    return [
        ScaleCandidate(EXAMPLES_SCALE, "mlx-lm's default since 2025-06-05, and until 2024-06-02"),
        ScaleCandidate(10.0, "mlx-lm's default between 2024-06-02 and 2025-06-05"),
    ]
