"""Configurations of runs of Weft as values: what differs, and one with settings of the other."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from weft.diagnose.rungs.keys import meaning
from weft.engines.config import own_engine
from weft.training.config import Lane, RunConfig
from weft.training.draft import leaves, pairs, put

FILES = ("base", "data.path", "data.valid_path", "data.test_path", "data.chat_template")
"""Settings that name files, as seen from where the run was started."""


@dataclass(frozen=True, eq=False)
class Setup:
    """What one adapter of a run is told to be, without what only looks at it while it trains."""

    values: Mapping[str, Any]  # plain, as a manifest has them
    start: Path | None = None  # the run's own copy of the adapter that it was given

    @classmethod
    def of(cls, config: RunConfig, lane: Lane, start: Path | None) -> Setup:
        """That of one lane of a run; it evaluates only where its course depends on that."""
        values = config.model_dump(mode="json")
        values |= {"name": None, "description": "", "seed": lane.seed, "seeds": None}
        values["optimiser"] |= {"lr": lane.lr}
        values["engine"] = own_engine(config.engine).model_dump(mode="json")
        if config.boost is None or config.boost.plateau is None:
            values["eval"] |= {"every": 0}
            values["keep"] = "last"
        return cls(values, start if config.start is not None else None)

    @cached_property
    def config(self) -> RunConfig:
        """Checked; `ValidationError` where its settings do not go together."""
        return RunConfig.model_validate(self.values)

    @cached_property
    def problem(self) -> str | None:
        """Why its settings do not go together."""
        try:
            self.config  # noqa: B018
        except ValidationError as error:
            return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        return None

    @cached_property
    def key(self) -> str:
        """The same for what is the same."""
        return f"{json.dumps(self.values, sort_keys=True)} {self.start}"

    def at(self, key: str) -> Any:
        """What stands at a dotted key; None where there is no such section."""
        value: Any = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def with_(self, keys: Iterable[str], other: Setup) -> Setup:
        """The same with the values of another at some keys."""
        values, start = copy.deepcopy(dict(self.values)), self.start
        for key in keys:
            put(values, key, copy.deepcopy(other.at(key)))
            start = other.start if key == "start" else start
        made = Setup(values, start)
        return self if made.key == self.key else made

    def found(self, root: Path) -> Setup:
        """With files where they are now: seen from a directory above the run, else from here.

        A manifest does not say where its run was started; digests tell whether a file is the one.
        """
        values = copy.deepcopy(dict(self.values))
        for key in FILES:
            name = self.at(key)
            above = () if name is None else (each / name for each in root.resolve().parents)
            place = next((each for each in above if each.exists()), None)
            if place is not None:
                put(values, key, str(place))
        return Setup(values, self.start)

    def split(self) -> Setup:
        """The same in smaller forwards, which only round otherwise."""
        return Setup({**self.values, "members_per_forward": 1}, self.start)


def differing(a: Setup, b: Setup) -> tuple[str, ...]:
    """Keys whose values differ and can matter; sections of two kinds count as one key."""
    return tuple(
        key
        for key in _differing(a.values, b.values, "")
        if any(meaning(leaf).weight == "semantic" for leaf in leaves_of(key, a, b))
    )


def sharing(a: Setup, b: Setup, same: Mapping[str, bool]) -> Setup:
    """B with A's files where theirs are the same, by the first part of their settings' keys."""
    keys = [key for key in FILES if same.get(key.partition(".")[0]) and b.at(key) is not None]
    return b.with_([key for key in keys if a.at(key) is not None], a)


def leaves_of(key: str, a: Setup, b: Setup) -> tuple[str, ...]:
    """The keys at and below a key at which two setups differ."""
    one, other = (dict(pairs(each.at(key), key)) for each in (a, b))
    return tuple(
        leaf for leaf in dict.fromkeys((*one, *other)) if one.get(leaf) != other.get(leaf)
    ) or tuple(leaves(a.at(key), key))


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], above: str) -> Iterator[str]:
    for name in dict.fromkeys((*a, *b)):
        one, other = a.get(name), b.get(name)
        if one == other:
            continue
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            yield f"{above}{name}"
        elif one.get("name") == other.get("name"):
            yield from _differing(one, other, f"{above}{name}.")
        else:
            yield f"{above}{name}"
