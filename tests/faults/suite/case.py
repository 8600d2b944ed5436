"""What a case is: two sides, and the answer that a diagnosis of them is judged by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

Kind = Literal["single", "benign", "double", "cancel"]
SAME_KINDS = ("benign", "cancel")


@dataclass(frozen=True)
class Patch:
    """One place of one file, written anew. The old text must be there exactly once."""

    file: str
    old: str
    new: str

    def apply(self, files: dict[str, str]) -> None:
        count = files[self.file].count(self.old)
        if count != 1:
            raise ValueError(f"{self.file} has {count} times: {self.old!r}")
        files[self.file] = files[self.file].replace(self.old, self.new)


@dataclass(frozen=True)
class Side:
    """A directory that can be run: the files of a subject, patches, and what it is given."""

    subject: str
    patches: tuple[Patch, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    """Names in the directory, and the assets that they stand for."""
    env: Mapping[str, str] = field(default_factory=dict)

    def patched(self, *patches: Patch) -> Side:
        return replace(self, patches=(*self.patches, *patches))

    def given(self, **links: str) -> Side:
        """With other assets under the same names."""
        return replace(self, links={**self.links, **links})

    def where(self, **env: str) -> Side:
        return replace(self, env={**self.env, **env})

    def files(self, subjects: Path) -> dict[str, str]:
        """The text of every file of the directory."""
        found = {p.name: p.read_text() for p in sorted((subjects / self.subject).glob("*.*"))}
        for patch in self.patches:
            patch.apply(found)
        return found

    def key(self, subjects: Path) -> str:
        """Names the side by all that it consists of, so that equal sides are run once."""
        whole = [self.files(subjects), dict(self.links), dict(self.env)]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]


Change = Callable[[Side], Side]


@dataclass(frozen=True)
class Answer:
    """What one fault must be called, and where it must be found."""

    fault: str
    labels: frozenset[str]
    rungs: frozenset[int]
    place: str | None = None
    """A regular expression, searched for in the place; None where there is nothing to say."""
    steps: frozenset[int] | None = None
    value: float | None = None
    """Where `labels` is a class by virtue of a value (a scale of 0 is an adapter that is not
    attached): the value that goes with `aliases`."""
    aliases: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """Two sides and the truth about them."""

    name: str
    kind: Kind
    a: Side
    b: Side
    answers: tuple[Answer, ...] = ()
    severity: str = ""
    held_out: bool = False
    tolerance: float = 1e-4
    """Relative, of the numbers that the sides print: within it they say the same."""
    fails: bool = False
    """Side b ends with an error: Weft notices that fault itself, and refuses to finish."""

    @property
    def faults(self) -> tuple[str, ...]:
        return tuple(answer.fault for answer in self.answers)

    @property
    def subject(self) -> str:
        return self.a.subject

    @property
    def is_same(self) -> bool:
        return self.kind in SAME_KINDS
