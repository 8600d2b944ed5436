"""The verdict: differences that act are causes, and what follows from them is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from weft.diagnose.finding import Finding, Looked, Nature, Outcome
from weft.diagnose.labels import Label
from weft.diagnose.ladder import Rung
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.verdict import judge
from weft.runs.evidence import Notice


def side(ref: str, *notices: str) -> Evidence:
    events = tuple(Notice(text=text) for text in notices)
    return Evidence(ref, "recording", Path(ref), events, lambda name: np.zeros(0))


def finding(rung: int, label: Label, nature: Nature = "factor", step: int | None = None) -> Finding:
    return Finding(rung, nature, label, "somewhere", f"{label} differs", step)


def kl(
    value: float, floor: float = 1e-6, prompts: int = 4, of: int = 4, last_rung: int = 7
) -> Outcome:
    rungs = tuple(range(last_rung + 1))
    return Outcome("kl", value, floor, "nats", f"{value} nats", prompts, of, rungs)


def verdict(*looks: tuple[int, Looked]) -> tuple[str, list[str]]:
    found = judge(PAIR, {Rung(n, str(n), lambda _, look=look: look): look for n, look in looks})
    return found.verdict, [cause.finding.label for cause in found.causes]


PAIR = Pair(side("a"), side("b"))


def test_a_difference_that_moved_the_outcome_is_a_cause() -> None:
    look = Looked((finding(5, "scale"),)), Looked(outcome=(kl(1.0),))
    assert verdict((5, look[0]), (7, look[1])) == ("different", ["scale"])


def test_a_difference_without_effect_is_told_as_harmless() -> None:
    looks = {
        Rung(5, "update", lambda _: Looked()): Looked((finding(5, "scale"),)),
        Rung(7, "logits", lambda _: Looked()): Looked(outcome=(kl(1e-7),)),
    }
    found = judge(PAIR, looks)
    assert found.verdict == "same"
    assert found.causes == ()
    assert found.harmless == ("scale differs (without effect on what was compared)",)
    assert found.words == "A and B are the same within noise"


def test_where_a_side_ended_early_a_difference_without_effect_is_not_harmless() -> None:
    early = replace(finding(0, "unknown", "effect"), place="status")
    looks = {
        Rung(0, "validity", lambda _: Looked()): Looked((early,)),
        Rung(1, "settings", lambda _: Looked()): Looked((finding(1, "optimiser"),)),
        Rung(11, "trajectory", lambda _: Looked()): Looked(outcome=(kl(0.0),)),
    }
    found = judge(PAIR, looks)
    assert found.verdict == "unsure" and found.harmless == ()
    assert found.not_checked[0] == (
        "optimiser differs (without effect on what was compared): one side ended before it could "
        "have"
    )


def test_a_difference_whose_outcome_nobody_saw_is_a_cause() -> None:
    looks = (11, Looked((finding(11, "schedule"),))), (7, Looked(outcome=(kl(0.0),)))
    assert verdict(*looks) == ("different", ["schedule"])


def test_another_sampler_is_a_cause_even_where_it_drew_the_same_tokens() -> None:
    same = Outcome("tokens", 0.0, 0.0, "share", "no row differs")
    looks = (9, Looked((finding(9, "sampler"), finding(9, "stop")), outcome=(same,)))
    assert verdict(looks) == ("different", ["sampler"])


def test_what_follows_from_another_cause_is_none() -> None:
    looks = (2, Looked((finding(2, "tokens"), finding(2, "template")))), (7, Looked())
    assert verdict(*looks) == ("different", ["template"])


def test_an_outcome_without_a_cause_is_located() -> None:
    effect = finding(6, "implementation", "effect")
    found = judge(
        PAIR, {Rung(6, "hidden", lambda _: Looked()): Looked((effect,), outcome=(kl(1),))}
    )
    assert found.verdict == "different"
    assert [cause.confidence for cause in found.causes] == ["unresolved"]
    assert found.first is effect


def test_between_one_floor_and_three_it_is_not_sure() -> None:
    assert verdict((7, Looked(outcome=(kl(2e-6),)))) == ("unsure", [])


@pytest.mark.parametrize(
    ("prompts", "of", "expected"), [(1, 4, "unsure"), (2, 4, "different"), (1, 1, "different")]
)
def test_one_prompt_of_several_is_not_enough(prompts: int, of: int, expected: str) -> None:
    assert verdict((7, Looked(outcome=(kl(1, prompts=prompts, of=of),))))[0] == expected


def test_where_nothing_was_compared_nothing_is_said_to_be_the_same() -> None:
    assert verdict((0, Looked(unseen=("no prompts",)))) == ("unsure", [])


def test_what_moves_more_comes_first() -> None:
    own = Outcome("kl decode", 5.0, 1e-6, "nats", "", 4, 4, (8,))
    looks = (
        (2, Looked((finding(2, "data"),))),
        (7, Looked(outcome=(kl(0.5),))),
        (8, Looked((finding(8, "cache"),), outcome=(own,))),
    )
    assert verdict(*looks) == ("different", ["cache", "data"])
    rungs = {Rung(n, str(n), lambda _: Looked()): look for n, look in looks}
    first = judge(PAIR, rungs).first
    assert first is not None and first.label == "data"  # where they part, whatever moves more


def test_what_a_side_could_not_show_is_told() -> None:
    pair = Pair(side("a", "no room"), side("b"))
    assert judge(pair, {}).not_checked == ("A: no room",)


def test_a_merge_and_its_reset_are_one_cause() -> None:
    merge, reset = (finding(11, "schedule", step=4) for _ in range(2))
    later = finding(11, "schedule", step=8)
    assert verdict((11, Looked((merge, reset, later)))) == ("different", ["schedule", "schedule"])
