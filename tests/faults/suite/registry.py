"""All cases, and the choice of some of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.faults.suite.case import Case
from tests.faults.suite.faults import SINGLES
from tests.faults.suite.held import HELD
from tests.faults.suite.others import BENIGN, CANCELLING, DOUBLE
from tests.faults.suite.own import OWN

CASES: tuple[Case, ...] = (*SINGLES, *OWN, *HELD, *BENIGN, *DOUBLE, *CANCELLING)


def numbers(cases: Sequence[Case] = CASES) -> dict[str, int]:
    """A number for each case, by name, which says nothing about it."""
    shuffled = [case.name for case in cases]
    random.Random(34).shuffle(shuffled)
    return {name: number for number, name in enumerate(shuffled, 1)}


def chosen(
    *,
    types: Sequence[str] = (),
    kinds: Sequence[str] = (),
    subjects: Sequence[str] = (),
    names: Sequence[str] = (),
    development: bool = False,
    held_out: bool = False,
) -> list[Case]:
    """The cases that fit; a type such as F34 is all of F34a to F34c."""
    return [
        case
        for case in CASES
        if (not types or any(f.startswith(t) for f in case.faults for t in types))
        and (not kinds or case.kind in kinds)
        and (not subjects or case.subject in subjects)
        and (not names or any(name in case.name for name in names))
        and not (development and case.held_out)
        and not (held_out and not case.held_out)
    ]
