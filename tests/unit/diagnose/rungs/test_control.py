"""An adapter that is loaded and adds nothing: logits beside forwards with it and without it."""

from __future__ import annotations

import pytest

from tests.support.adapters import adapted, adapter, base, weighted
from tests.support.evidence import Side, pair
from weft.diagnose.lints.adapter import look as doctor
from weft.diagnose.rungs.attachment import look
from weft.diagnose.rungs.control import idle
from weft.runs.evidence import Check

ADDS = ((1e-13, 1e-13, 2e-13), (3.0, 2.0, 5.0))
NEVER = ((3.0, 2.0, 5.0), (0.0, 1e-13, 1e-13))
PROMPT_ONLY = ((1e-13, 2.0, 5.0), (3.0, 1e-13, 1e-13))
OFF = ((0.4, 0.5, 0.6), (3.0, 2.0, 5.0))
SMALL = ((1e-13,) * 3, (1e-13,) * 3)

Values = tuple[tuple[float, ...], tuple[float, ...]]


def side(values: Values) -> Side:
    """Nats off a forward with the adapter, and off one without it."""
    made = adapted(weighted(Side(), base()), adapter(), trainable=9)
    for name, each in zip(("attached", "bare"), values, strict=True):
        made.add(Check(name=name, model="model-0", unit="nats", values=each))
    return made


@pytest.mark.parametrize("values", [ADDS, OFF, SMALL])
def test_an_adapter_that_adds_or_that_is_otherwise_off_or_too_small_is_not_idle(
    values: Values,
) -> None:
    assert idle(side(values).evidence) is None
    assert not look(pair(side(ADDS), side(values))).findings


@pytest.mark.parametrize(("letter", "other"), [("A", "B"), ("B", "A")])
def test_one_that_never_adds_is_not_attached_in_that_side(letter: str, other: str) -> None:
    sides = (side(NEVER), side(ADDS)) if letter == "A" else (side(ADDS), side(NEVER))
    (found,) = look(pair(*sides)).findings
    assert (found.label, found.nature, found.place) == ("attach", "factor", "all adapted modules")
    assert found.words.startswith(f"in {letter}, the adapter is loaded and adds nothing")
    assert found.words.endswith(f"in {other} it acts")


def test_one_that_stops_adding_is_told_with_the_token() -> None:
    (found,) = look(pair(side(ADDS), side(PROMPT_ONLY))).findings
    assert (found.label, found.step) == ("attach", 2)
    assert found.place == "all adapted modules, while decoding, from token 2 on"


def test_what_is_so_in_both_is_no_difference() -> None:
    assert not look(pair(side(NEVER), side(NEVER))).findings


def test_the_doctor_says_both() -> None:
    states = {
        name: next(lint for lint in doctor(side(values).evidence) if lint.name == "adapter adds")
        for name, values in (("adds", ADDS), ("never", NEVER))
    }
    assert (states["adds"].state, states["never"].state) == ("ok", "problem")
    assert "adds nothing" in states["never"].words
