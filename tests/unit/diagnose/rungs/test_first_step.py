"""Rung 10: what the first step minimised, on what, from which start, and with which gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.evidence import Side, pair
from weft.diagnose.finding import Finding, Looked
from weft.diagnose.rungs.first_step import look
from weft.diagnose.sides.objective import candidates, explained, tokens_of
from weft.runs.evidence import AdapterModule, Seeded, Snapshot, TrainStep

IDS = ([[5, 6, 7, 8, 9], [5, 7, 9, 2, 2]], [[5, 3, 3, 3, 3], [5, 6, 6, 6, 6]])
LABELS = (
    [[-100, -100, 7, 8, 9], [-100, -100, -100, -100, 2]],
    [[-100, 3, 3, 3, 3], [-100, 6, 6, 6, 6]],
)
NLL = tuple(np.random.default_rng(n).uniform(1, 3, (2, 4)) for n in (1, 2))

COUNTS = (4, 8)
TOTALS = tuple(
    float(nll[np.array(labels)[:, 1:] != -100].sum())
    for nll, labels in zip(NLL, LABELS, strict=True)
)
MEANS = [total / count for total, count in zip(TOTALS, COUNTS, strict=True)]


def side(losses: Any = None, *, seen: bool = True, **fields: Any) -> Side:
    """A step of two forwards; by default it minimises the mean over its tokens."""
    made = Side()
    if seen:
        for ids, labels, nll in zip(IDS, LABELS, NLL, strict=True):
            made.forward(ids, phase="train", grad=True, labels=labels, nll=nll)
    token_mean = [total / sum(COUNTS) for total in TOTALS]
    losses = tuple(token_mean if losses is None else losses)
    fields = {"batch": "x", "labels": "y", "supervised": sum(COUNTS)} | fields
    return made.add(
        TrainStep(step=1, passes=(0, 1) if seen else (), losses=losses,
                  loss=float(np.mean(losses)), **fields)
    )  # fmt: skip


def found(looked: Looked, label: str) -> Finding:
    return next(each for each in looked.findings if each.label == label)


def test_an_equal_first_step_is_told_piece_by_piece() -> None:
    looked = look(pair(side(grad_norms={"q": 1.0}), side(grad_norms={"q": 1.0 + 1e-6})))
    assert not looked.findings
    told = " ".join(looked.equal)
    assert "labels of step 1 equal: 12 supervised tokens" in told
    assert "loss of step 1 equal within noise" in told and "gradient norms" in told


def test_candidates_are_the_plain_loops_they_say() -> None:
    made = side().evidence
    known = candidates(tokens_of(made, made.steps[0]))
    flat = [
        (float(NLL[m][b, t]), LABELS[m][b][t + 1] != -100, (m, b))
        for m in range(2) for b in range(2) for t in range(4)
    ]  # fmt: skip
    kept = [nats for nats, supervised, _ in flat if supervised]
    assert known["the mean over tokens"] == pytest.approx(np.mean(kept))
    assert known["the sum over tokens"] == pytest.approx(np.sum(kept))
    assert known["the mean of the forwards' means"] == pytest.approx(np.mean(MEANS))
    rows = [np.mean([n for n, s, at in flat if s and at == row]) for row in {at for *_, at in flat}]
    assert known["the mean of the rows' means"] == pytest.approx(np.mean(rows))
    everywhere = np.sum(kept) / len(flat)
    assert known["the mean over all positions, supervised or not"] == pytest.approx(everywhere)


@pytest.mark.parametrize(
    ("losses", "name"),
    [
        ([mean / 2 for mean in MEANS], "B the mean of the forwards' means"),
        (MEANS, "B the sum of the forwards' means"),
        (TOTALS, "B the sum over tokens"),
        ([total / 16 for total in TOTALS], "B the mean over all positions, supervised or not"),
    ],
)
def test_another_mean_of_the_same_tokens_is_named(losses: list[float], name: str) -> None:
    cause = found(look(pair(side(), side(losses))), "normaliser")
    assert cause.nature == "factor" and cause.step == 1
    assert "of the same 12 supervised tokens (2 forwards in A, 2 in B)" in cause.words
    assert "A takes the mean over tokens" in cause.words and name in cause.words
    assert cause.swap is not None and cause.swap.factor == "normaliser"


def test_other_micro_batches_with_the_same_mean_are_no_difference() -> None:
    whole = sum(TOTALS) / sum(COUNTS)
    one = Side().forward([*IDS[0], *IDS[1]], phase="train", grad=True)
    one.add(TrainStep(step=1, passes=(0,), losses=(whole,), loss=whole, batch="x", labels="y"))
    assert not look(pair(side(), one)).findings


def test_without_tokens_the_ratio_may_still_be_a_count() -> None:
    cause = found(look(pair(side(seen=False), side(losses=[2 * t / 12 for t in TOTALS],
                                                   seen=False))), "normaliser")  # fmt: skip
    assert "the ratio is 2 forwards" in cause.words


def test_a_loss_that_no_mean_explains_is_an_effect_unless_its_tokens_are_equal() -> None:
    losses = [1.01 * total / sum(COUNTS) for total in TOTALS]
    blind = pair(side(seen=False), side(losses, seen=False))
    assert [each.nature for each in look(blind).findings] == ["effect"]
    of_equal_tokens = found(look(pair(side(), side(losses))), "normaliser")
    assert "B none that is known" in of_equal_tokens.words


def test_a_loss_and_gradients_off_by_one_number_are_the_normaliser_and_its_count_is_told() -> None:
    norms = {"q": 0.5, "v": 2.0}
    losses = [total / 10 for total in TOTALS]
    both = (
        side(seen=False, grad_norms=norms),
        side(losses, seen=False, grad_norms={name: 1.2 * norm for name, norm in norms.items()}),
    )
    cause = found(look(pair(*both)), "normaliser")
    assert "divided by 10 where A divides by 12 tokens" in cause.words
    uneven = side(losses, seen=False, grad_norms={"q": 0.6, "v": 2.2})
    assert [each.nature for each in look(pair(both[0], uneven)).findings] == ["effect"] * 2


def test_a_loss_that_hardly_differs_is_not_divided_by_another_number() -> None:
    """Gradients that agree to a part in a thousand say nothing of a ratio of 1.0005."""
    norms = {"q": 0.5, "v": 2.0}
    losses = [1.0005 * total / 12 for total in TOTALS]
    near = side(losses, seen=False, grad_norms={"q": 0.50075, "v": 2.0})
    found = look(pair(side(seen=False, grad_norms=norms), near)).findings
    assert {each.nature for each in found} == {"effect"}


def test_labels_that_only_the_script_saw_are_read_at_the_columns_of_their_rows() -> None:
    made = Side().forward([[0, 5, 6, 7], [4, 5, 6, 7]], phase="train", grad=True,
                          mask=[[0, 1, 1, 1], [1] * 4], nll=[[9, 1, 2], [9, 4, 8]])  # fmt: skip
    made.arrays["targets"] = np.array([[-100, 6, 7, -100], [-100, -100, 6, 7]])
    made.add(TrainStep(step=1, passes=(0,), targets={"0": "targets"}, supervised=4))
    (tokens,) = tokens_of(made.evidence, made.evidence.steps[0])
    assert (tokens.total, tokens.count, tokens.row_means) == (15.0, 4, (1.5, 6.0))


ROW_NATS, ROW_COUNTS = (4.0, 9.0, 2.0), (2, 3, 1)


def by_row(loss: float) -> Side:
    """A step of one pass of three rows, of which the nats are known by row."""
    made = Side().forward(
        [[1, 2, 3, 4]] * 3, phase="train", grad=True, row_nll=ROW_NATS,
        labels=[[-100] * (4 - n) + [7] * n for n in ROW_COUNTS],
    )  # fmt: skip
    return made.add(TrainStep(step=1, passes=(0,), loss=loss, batch="x", labels="y", supervised=6))


def test_a_mean_of_the_means_of_parts_of_a_batch_is_told_by_the_nats_of_its_rows() -> None:
    mean, parts = 15 / 6, (13 / 5 + 2 / 1) / 2
    cause = found(look(pair(by_row(mean), by_row(parts))), "normaliser")
    assert (cause.nature, cause.place) == ("factor", "step 1")
    assert "A takes the mean over tokens, B the mean of the means of 2 rows each" in cause.words


def test_of_means_that_a_loss_nearly_is_the_nearest_is_told() -> None:
    of = tokens_of((made := by_row(2.5)).evidence, made.evidence.steps[0])
    assert explained(2.3, of, 0.02) == (
        "the mean of the means of 2 rows each",
        "the mean of the rows' means",
    )


def test_means_that_are_nearly_equal_are_told_apart() -> None:
    """Two thousandths and less: what explains one loss must not explain the other."""
    cause = found(look(pair(by_row(2.5), by_row(2.5 * (1 + 2e-4)))), "normaliser")
    assert "A takes the mean over tokens, B none that is known" in cause.words


def test_tokens_of_other_nats_are_never_blamed_on_the_mean() -> None:
    other = Side()
    for ids, labels, nll in zip(IDS, LABELS, NLL, strict=True):
        other.forward(ids, phase="train", grad=True, labels=labels, nll=nll * 2)
    losses = tuple(2 * mean / 2 for mean in MEANS)
    other.add(TrainStep(step=1, passes=(0, 1), losses=losses, loss=1.0, batch="x", labels="y"))
    assert found(look(pair(side(), other)), "unknown").nature == "effect"


def test_other_labels_of_the_same_rows_are_a_cause_only_where_no_rung_before_reads_them() -> None:
    read = found(look(pair(side(), side(labels="z", supervised=3))), "labels")
    blind = found(
        look(pair(side(seen=False), side(labels="z", supervised=3, seen=False))), "labels"
    )
    assert (read.nature, blind.nature) == ("effect", "factor")
    assert "12 in A, 3 in B" in blind.words


def test_a_mean_over_no_token_is_said_to_be_that() -> None:
    looked = look(pair(side(), side([float("nan")], labels="z", supervised=0)))
    assert "a mean over no supervised token" in found(looked, "overflow").words


def test_gradients_off_by_one_factor_everywhere_and_in_one_module() -> None:
    norms = {"q": 1.0, "k": 3.0, "v": 0.5}
    tripled = {name: 3 * norm for name, norm in norms.items()}
    everywhere = look(pair(side(grad_norms=norms), side(grad_norms=tripled))).findings[0]
    assert everywhere.place == "all 3 modules" and everywhere.value == pytest.approx(3)
    one = look(pair(side(grad_norms=norms), side(grad_norms={**norms, "k": 9.0}))).findings[0]
    assert one.place == "k" and "1 of 3 modules" in one.words
    assert {everywhere.nature, one.nature} == {"effect"}


def fresh(digest: str, norm_a: float = 1.0) -> Snapshot:
    module = AdapterModule(rank=2, shape=(4, 4), norm_a=norm_a, norm_b=0.0, norm_update=0.0,
                           digest_a=digest, digest_b="0")  # fmt: skip
    return Snapshot(model="model-0", when="use", style="peft", modules={"q": module})


@pytest.mark.parametrize(
    ("seeds", "words"), [((0, None), "no seed in B"), ((0, 1), "torch seed 1")]
)
def test_a_start_drawn_with_other_numbers_is_the_seed(
    seeds: tuple[int, int | None], words: str
) -> None:
    sides = []
    for letter, seed in zip("ab", seeds, strict=True):
        made = side().add(fresh(letter))
        sides.append(made if seed is None else made.add(Seeded(library="torch", seed=seed)))
    cause = found(look(pair(*sides)), "seed")
    assert cause.nature == "factor" and words in cause.words


def test_the_same_start_is_told_and_another_norm_is_left_to_rung_4() -> None:
    same = look(pair(side().add(fresh("a")), side().add(fresh("a"))))
    assert any("bit by bit" in words for words in same.equal)
    assert not look(pair(side().add(fresh("a")), side().add(fresh("b", 0.05)))).findings


def test_without_steps_it_says_on_which_side() -> None:
    assert "no training step in B" in look(pair(side(), Side())).unseen[0]
