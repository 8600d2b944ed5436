"""Hand-built sides of a diagnosis: events with arrays as they would have been recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from weft.diagnose.sides.evidence import Evidence, Kind, Pair
from weft.runs.evidence import Event, Generation, Pass, Settings


class Side:
    """Collects events; `evidence` is what a rung sees of them."""

    def __init__(self, ref: str = "a", kind: Kind = "recording") -> None:
        self.ref, self.kind = ref, kind
        self.events: list[Event] = []
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, event: Event, **arrays: Any) -> Side:
        """Append an event; each keyword is a field of it that names an array."""
        names = {field: f"{len(self.events):06d}/{field}" for field in arrays}
        for field, name in names.items():
            self.arrays[name] = np.asarray(arrays[field])
        self.events.append(event.model_copy(update=names))
        return self

    def settings(self, **values: Any) -> Side:
        """Resolved settings; a double underscore is a dot."""
        return self.add(Settings(values={k.replace("__", "."): v for k, v in values.items()}))

    def forward(self, ids: Any, *, phase: str = "prefill", past: int = 0, **fields: Any) -> Side:
        """A pass on ids [B, T]; arrays among the fields are those of `Pass`."""
        ids_BT = np.atleast_2d(np.asarray(ids))
        arrays = {key: value for key, value in fields.items() if key in ARRAYS}
        plain = {key: value for key, value in fields.items() if key not in ARRAYS}
        rows, length = ids_BT.shape
        index = sum(isinstance(event, Pass) for event in self.events)
        made = Pass(
            model="model-0", index=index, phase=phase, rows=rows, length=length, past=past,
            **({"dtype": "float32"} | plain),
        )  # fmt: skip
        return self.add(made, ids=ids_BT, **{key: value for key, value in arrays.items()})

    def generation(
        self, prompts: Any, tokens: Any, passes: Any = (), driver: str = "loop", **fields: Any
    ) -> Side:
        """Completions of prompts, a row each."""
        return self.add(
            Generation(
                model="model-0",
                driver=driver,
                prompts=tuple(map(tuple, prompts)),
                tokens=tuple(map(tuple, tokens)),
                passes=tuple(passes),
                **fields,
            )
        )

    @property
    def evidence(self) -> Evidence:
        """This side."""
        arrays = self.arrays
        return Evidence(
            self.ref, self.kind, Path(self.ref), tuple(self.events), lambda name: arrays[name]
        )


ARRAYS = ("mask", "positions", "labels", "logits", "nll", "row_nll", "hidden", "sketch")


def pair(a: Side, b: Side) -> Pair:
    """Two sides."""
    return Pair(a.evidence, b.evidence)
