"""When rounds of boosting end, and in which layers they can be drawn (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core.errors import InputError
from weft.methods.config import BoostConfig
from weft.model.adapter import Layout


@dataclass(frozen=True)
class Trigger:
    """When rounds end: the one rule that is active. `every` is in steps; None: not by counting."""

    every: int | None
    patience: int | None
    text: str
    ignored: str | None = None

    def due(self, step: int) -> bool:
        """Whether a round ends right after `step` steps have been taken."""
        return self.every is not None and step % self.every == 0

    def expected(self, steps: int) -> int | None:
        """Commits of a run of `steps` steps; None where only the run can tell."""
        if self.patience is not None:
            return None
        return steps // self.every if self.every else 0


def trigger(config: BoostConfig, steps: int, steps_per_epoch: int) -> Trigger:
    """The rule that a configuration comes to: steps before epochs, 0 for never.

    An interval that is not shorter than the run never ends a round: nothing would train after it.
    """
    if config.plateau is not None:
        patience = config.plateau.patience
        return Trigger(None, patience, _of_plateau(patience))
    ignored = None
    if config.steps_per_iteration:
        every = config.steps_per_iteration
        what = f"every {every:,} steps" if every > 1 else "every step"
        if config.merge_frequency:
            ignored = (
                f"`boost.merge_frequency` {config.merge_frequency} is not used: "
                f"`boost.steps_per_iteration` {config.steps_per_iteration} decides"
            )
    elif config.merge_frequency:
        every = config.merge_frequency * steps_per_epoch
        count = config.merge_frequency
        what = (f"every {count} epochs" if count > 1 else "every epoch") + f" ({every:,} steps)"
    else:
        return Trigger(None, None, "never")
    if every >= steps:
        return Trigger(None, None, f"never: {what} is not within {steps:,} steps", ignored)
    return Trigger(every, None, what, ignored)


def _of_plateau(patience: int) -> str:
    count = f"{patience} evaluations" if patience > 1 else "1 evaluation"
    return f"on a plateau ({count} without a better loss)"


def adapted_layers(layout: Layout) -> list[int]:
    """The numbers of the layers in which the layout has a site."""
    return sorted({s.site.layer for s in layout.slots if s.site.layer is not None})


def refuse_layers(layout: Layout, count: int) -> None:
    """Raise `InputError` where rounds of so many layers cannot be drawn, or leave a site out."""
    layers = adapted_layers(layout)
    if count > len(layers):
        raise InputError(
            f"`boost.layers_per_round` is {count}, and {len(layers)} layers are adapted",
            hint="leave it out to train all of them in every round",
        )
    outside = [slot.site.name for slot in layout.slots if slot.site.layer is None]
    if outside:
        raise InputError(
            f"`boost.layers_per_round` draws layers, and {', '.join(outside)} is in none: it would "
            "never train",
            hint="take it out of adapter.targets, or leave out boost.layers_per_round",
        )
