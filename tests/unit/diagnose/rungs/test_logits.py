"""Rung 7: distributions, flips that noise explains, padding that is read, harmless shifts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.evidence import Side, pair
from weft.diagnose.finding import Looked, Outcome
from weft.diagnose.rungs.logits import look
from weft.runs.evidence import TokenizerSeen, TrainStep

IDS = [[3, 4, 5, 6], [3, 9, 5, 6], [3, 4, 8, 7]]
LOGITS = 3 * np.random.default_rng(1).standard_normal((3, 11)).astype(np.float32)


def side(logits: Any = LOGITS, ids: Any = IDS, **fields: Any) -> Side:
    return Side().forward(ids, logits=np.float32(logits), **fields)


def outcome(looked: Looked, name: str) -> Outcome:
    return next(each for each in looked.outcome if each.name == name)


def test_equal_distributions_are_the_same_and_are_told() -> None:
    looked = look(pair(side(), side()))
    assert not looked.findings
    assert outcome(looked, "kl").apart == "same"
    assert "3 prompts" in looked.equal[0]


def test_a_difference_is_an_outcome_and_an_effect_but_no_cause() -> None:
    looked = look(pair(side(), side(2 * LOGITS)))
    assert outcome(looked, "kl").apart == "different"
    assert outcome(looked, "kl").prompts == 3
    assert {each.nature for each in looked.findings} == {"effect"}


def test_equal_hidden_states_and_other_logits_are_the_output_layer() -> None:
    hidden = np.random.default_rng(2).standard_normal((3, 3, 8))
    looked = look(pair(side(hidden=hidden), side(LOGITS[:, ::-1], hidden=hidden)))
    (found,) = looked.findings
    assert (found.label, found.place) == ("tied", "lm_head")


def test_a_constant_on_all_logits_is_harmless() -> None:
    looked = look(pair(side(), side(LOGITS + 4)))
    (found,) = looked.findings
    assert found.nature == "harmless" and "constant" in found.words
    assert outcome(looked, "kl").apart == "same"


def test_a_flip_at_a_small_margin_is_noise_and_at_a_large_one_is_not() -> None:
    near = np.zeros((1, 11), np.float32)
    near[0, :2] = 5, 4.9999
    flipped = near[:, [1, 0, *range(2, 11)]]
    looked = look(pair(side(near, IDS[:1]), side(flipped, IDS[:1])))
    assert outcome(looked, "top1").apart == "same"
    assert "1 flips are at margins" in outcome(looked, "top1").words
    far = near + np.float32([0, -1, *[0] * 9])
    turned = far[:, [1, 0, *range(2, 11)]]
    assert outcome(look(pair(side(far, IDS[:1]), side(turned, IDS[:1]))), "top1").value == 1


def padded(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    width = max(lengths)
    ids = np.zeros((len(lengths), width), int)
    mask = np.zeros_like(ids)
    for n, length in enumerate(lengths):
        ids[n, width - length :] = 10 + n + np.arange(length)
        mask[n, width - length :] = 1
    return ids, mask


def test_error_that_grows_with_pads_names_padding() -> None:
    lengths = [9, 7, 4, 2]
    ids, mask = padded(lengths)
    clean = 3 * np.random.default_rng(1).standard_normal((4, 11)).astype(np.float32)
    off = np.random.default_rng(2).standard_normal(clean.shape)
    wrong = clean + off * (9 - np.array(lengths))[:, None] / 5
    a = Side()
    for row, length in enumerate(lengths):
        a.forward([ids[row, 9 - length :]], logits=clean[[row]])
    found = [f for f in look(pair(a, side(wrong, ids, mask=mask))).findings if f.label == "mask"]
    (found_mask,) = found
    assert found_mask.nature == "factor" and "3 padded ones are not" in found_mask.words
    pads = TokenizerSeen(name="tiny", size=11, vocabulary="", template=None, special={"pad": 0})
    open_ = side(wrong, ids, mask=np.ones_like(mask)).add(pads)
    known = look(pair(a, open_)).findings
    assert [f.nature for f in known if f.label == "mask"] == ["effect"]  # rung 2 sees the mask


def test_a_side_that_is_not_finite_has_no_divergence() -> None:
    looked = look(pair(side(), side(np.full_like(LOGITS, np.nan))))
    assert outcome(looked, "finite").value == 1
    assert "in B only" in outcome(looked, "finite").words
    assert not [each for each in looked.outcome if each.name == "kl"]


def test_given_tokens_have_a_loss_and_a_perplexity() -> None:
    nll = np.full((3, 3), 2.0)
    looked = look(pair(side(nll=nll), side(nll=nll * 1.01)))
    found = outcome(looked, "nll")
    assert found.value == pytest.approx(0.01)
    assert found.apart == "different" and "perplexity 7.389" in found.words


def test_prompts_after_training_are_an_outcome_of_training_too() -> None:
    def trained(factor: float) -> Side:
        made = side(ids=[[1, 2]] * 3)
        made.add(TrainStep(step=1))
        return made.forward(IDS, logits=LOGITS * np.float32(factor))

    looked = look(pair(trained(1), trained(1.3)))
    assert outcome(looked, "kl").apart == "same"
    assert outcome(looked, "kl trained").apart == "different"
    assert 11 in outcome(looked, "kl trained").rungs and 11 not in outcome(looked, "kl").rungs


def test_without_prompts_it_says_so() -> None:
    assert look(pair(side(), Side())).unseen


def test_a_vocabulary_that_few_prompts_have_is_said_to_be_left_out() -> None:
    def both() -> Side:
        return side().forward([[7, 8]], logits=np.zeros((1, 4), np.float32))

    looked = look(pair(both(), both()))
    assert "3 prompts" in looked.equal[0]
    assert "1 prompt " in looked.unseen[0] and "11 tokens" in looked.unseen[0]
