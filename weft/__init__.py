"""Weft trains, runs and explains LoRA adapters. The commands are functions here, too.

    import weft

    run = weft.train("instruct", ["steps=100"], run_dir="runs/mine")
    print(run.results)

Importing this module loads nothing else: a function brings what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.training.train import Outcome

__version__ = "0.1.0"
__all__ = ["__version__", "train"]


def train(
    config: str | Path, overrides: Sequence[str] = (), run_dir: str | Path | None = None
) -> Outcome:
    """Train what a recipe or a YAML file says, with `key=value` overrides.

    Without `run_dir` a new directory below `runs/` is made.
    """
    from weft.training.resolve import resolve
    from weft.training.train import train as start

    return start(resolve(str(config), overrides), None if run_dir is None else Path(run_dir))
