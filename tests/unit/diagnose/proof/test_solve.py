"""Which exchanges close a gap: on replicas that are plain numbers, with a distance by hand."""

from __future__ import annotations

import math

import pytest

from weft.diagnose.finding import Cause, Diagnosis, Finding, Swap
from weft.diagnose.proof.docket import Docket, concluded, fold, settle, share, trials_of
from weft.diagnose.proof.replica import BaseValue, Context, Replica, Row, Sampler
from weft.diagnose.proof.solve import Trial, solve

BASE = BaseValue(None)
NOISE = 1e-3
A = Replica("A", BASE, rows=(Row((1, 2)),))


def parts(replica):
    """Three factors that can differ from A's, as booleans: dropout, context, prompt."""
    return (
        replica.dropping != A.dropping,
        replica.context != A.context,
        replica.rows != A.rows,
    )


def other(*, drops=False, loses=False, asks=False):
    return A.with_(
        name="B",
        dropping=drops,
        context=Context(visible=(1,)) if loses else A.context,
        rows=(Row((9, 2)),) if asks else A.rows,
    )


MODE, CONTEXT, IDS = Trial("mode", cause=0), Trial("context", cause=1), Trial("ids", cause=2)


def adding(*weights):
    """Each factor adds its own to the distance."""

    def distance(replica):
        return math.hypot(*(w for w, off in zip(weights, parts(replica), strict=True) if off))

    return distance


def factors(shown):
    return [each.trial.factor for each in shown]


def test_two_causes_are_both_needed_and_both_proven():
    b = other(drops=True, loses=True)
    solved = solve(A, b, [MODE, CONTEXT, IDS], adding(3.0, 4.0, 0.0), NOISE)
    assert (solved.gap, solved.left) == (5.0, 0.0)
    assert factors(solved.accepted) == ["context", "mode"]  # what closes more comes first
    assert [solved.confidence(each) for each in solved.accepted] == ["proven", "proven"]
    assert [each.without for each in solved.accepted] == [4.0, 3.0]
    assert [each.took for each in solved.accepted] == [2.0, 3.0]
    assert parts(solved.mended) == (False, False, False)


def test_cause_that_is_hidden_behind_another_is_found_when_both_are_exchanged():
    """Either one alone makes all of the difference, so that neither alone closes any of it."""

    def distance(replica):
        drops, loses, _ = parts(replica)
        return 1.0 if drops or loses else 0.0

    b = other(drops=True, loses=True)
    solved = solve(A, b, [MODE, CONTEXT], distance, NOISE)
    assert solved.closed
    assert set(factors(solved.accepted)) == {"mode", "context"}
    assert all(each.alone == 1.0 and each.opens == 1.0 for each in solved.accepted)
    assert all(solved.confidence(each) == "proven" for each in solved.accepted)


def test_suspect_that_changes_nothing_is_not_accepted():
    b = other(drops=True, loses=True)
    solved = solve(A, b, [MODE, CONTEXT], adding(3.0, 0.0, 0.0), NOISE)
    assert factors(solved.accepted) == ["mode"]
    (idle,) = solved.others
    assert (idle.trial, idle.opens, idle.alone) == (CONTEXT, 0.0, 3.0)
    assert solved.confidence(idle) == "located"


def test_suspect_in_which_the_sides_do_not_differ_is_not_tried():
    tried = []

    def distance(replica):
        tried.append(replica)
        return adding(3.0, 4.0, 1.0)(replica)

    solved = solve(A, other(drops=True), [MODE, CONTEXT, IDS], distance, NOISE)
    assert factors(solved.accepted) == ["mode"] and not solved.others
    assert len(tried) == 3  # the gap, and one exchange in either direction


def test_of_two_exchanges_that_close_all_the_one_that_exchanges_less_is_the_cause():
    """What B loses shows only because it is asked something else: both exchanges close it all."""

    def distance(replica):
        _, loses, asks = parts(replica)
        return 1.0 if loses and asks else 0.0

    solved = solve(A, other(loses=True, asks=True), [IDS, CONTEXT], distance, NOISE)
    assert factors(solved.accepted) == ["context"]
    assert factors(solved.others) == ["ids"]
    # A with B's context alone computes as A does: shown in one direction only
    assert solved.confidence(solved.accepted[0]) == "supported"


def test_cause_that_leaves_most_of_a_gap_is_supported_at_most():
    b = other(drops=True, asks=True)
    solved = solve(A, b, [MODE], adding(3.0, 0.0, 1.0), NOISE)
    assert not solved.closed
    assert solved.confidence(solved.accepted[0]) == "supported"


def test_sides_within_noise_have_no_causes():
    solved = solve(A, other(drops=True), [MODE], adding(NOISE / 2, 0, 0), NOISE)
    assert solved.closed and not solved.accepted and not solved.others


def test_factor_that_makes_up_for_another_is_kept_apart_from_what_opens_the_gap():
    """Two factors cancel in part: exchanging one of them alone makes the gap larger."""

    def distance(replica):
        drops, loses, _ = parts(replica)
        return abs(3.0 * drops - 2.0 * loses)

    solved = solve(A, other(drops=True, loses=True), [MODE, CONTEXT], distance, NOISE)
    assert solved.closed
    assert set(factors(solved.accepted)) == {"mode", "context"}
    mode = next(each for each in solved.accepted if each.trial is MODE)
    assert (mode.alone, mode.opens, mode.without) == (2.0, 3.0, 3.0)


def diagnosed(*factors):
    causes = tuple(
        Cause(Finding(rung, "factor", label, "place", factor, swap=Swap(factor)), "located")
        for rung, label, factor in factors
    )
    return Diagnosis("a", "b", "different", "words", causes)


def test_causes_are_ranked_by_what_they_do_and_the_idle_are_set_apart():
    diagnosis = diagnosed((0, "mode", "mode"), (8, "cache", "context"), (2, "data", "ids"))
    case = Docket(diagnosis)
    trials = list(trials_of(diagnosis.causes))
    assert [each.cause for each in trials] == [0, 1, 2]
    solved = solve(A, other(drops=True, loses=True), trials, adding(3.0, 4.0, 0), NOISE)
    for each in solved.accepted:
        settle(case, each, solved, True, "nats", "mean KL", by_nats=True)
    case.idle[2] = "it changes nothing"
    found = concluded(case, 7)
    assert [cause.finding.label for cause in found.causes] == ["cache", "mode"]
    assert all(cause.confidence == "proven" for cause in found.causes)
    assert [cause.gap_closed for cause in found.causes] == pytest.approx([2 / 5, 3 / 5])
    assert found.words == "context, and 1 more" and found.forwards == 7
    assert found.harmless == ("ids (it changes nothing)",)


def test_what_is_not_sure_is_no_more_than_supported():
    diagnosis = diagnosed((0, "mode", "mode"))
    case = Docket(diagnosis)
    solved = solve(A, other(drops=True), list(trials_of(diagnosis.causes)), adding(3, 0, 0), NOISE)
    settle(case, solved.accepted[0], solved, False, "nats", "mean KL")
    assert case.proven[0].confidence == "supported"


def test_a_factor_that_was_found_twice_is_one_cause():
    diagnosis = diagnosed((8, "cache", "context"), (8, "cache-pos", "context"))
    case = Docket(diagnosis)
    trials = list(trials_of(diagnosis.causes))
    solved = solve(A, other(loses=True), trials[:1], adding(0, 1, 0), NOISE)
    settle(case, solved.accepted[0], solved, True, "nats", "mean KL")
    fold(case, [shown.trial for shown in solved.accepted])
    assert [cause.finding.label for cause in concluded(case, 0).causes] == ["cache"]


def test_positions_of_decoding_are_exchanged_with_its_context():
    diagnosis = diagnosed((8, "cache-pos", "positions"), (2, "positions", "positions"))
    assert [each.factor for each in trials_of(diagnosis.causes)] == ["context", "positions"]


def test_shares_stay_within_nothing_and_all():
    assert [share(*each) for each in ((1, 2), (3, 2), (-1, 2), (1, 0))] == [0.5, 1.0, 0.0, 0.0]


def test_sampler_is_no_reading():
    """Exchanges that change no prediction are told apart by the replica that comes back."""
    b = A.with_(sampler=Sampler())
    assert Trial("sampler").swap(b, b) is b
    assert Trial("sampler").swap(b, A).sampler is None
