"""Rung 8: what each decoding step was given, alone and across sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.evidence import Side, pair
from weft.diagnose.compare.context import check
from weft.diagnose.finding import Looked
from weft.diagnose.rungs.decoding import look
from weft.runs.evidence import Draw

PROMPT = (5, 6, 7, 8)
SAID = (9, 3, 9, 4)
VOCABULARY = 12


def logits_of(text: tuple[int, ...]) -> np.ndarray:
    """A model that reads all of its text."""
    seed = int(np.dot(text, [31**n % 9973 for n in range(len(text))]))
    return 3 * np.random.default_rng(seed).standard_normal((1, VOCABULARY)).astype(np.float32)


def decoded(way: str = "cached", *, offset: int = 0, noise: float = 0.0, said: Any = SAID) -> Side:
    """A loop that feeds its tokens in one of several ways."""
    made = Side()
    for k in range(len(said)):
        text = PROMPT + said[:k]
        fed, past = text[-1:], len(text) - 1
        if k == 0 or way == "whole":
            fed, past = text, 0
        elif way == "lost":
            past = 0
        elif way == "prompt only":
            past = len(PROMPT)
        elif way == "twice":
            fed, past = text, len(text) - 1
        seen = text[: past + 1][-past - 1 :] if way == "prompt only" and k else text
        seen = fed if way == "lost" else seen
        start = past + (offset if k else 0)
        made.forward(
            [fed],
            phase="prefill" if k == 0 else "decode",
            past=past,
            positions=[list(range(start, start + len(fed)))],
            logits=logits_of(seen) + noise * np.sin(np.arange(VOCABULARY)) * (k > 0),
        )
    return made.generation([PROMPT], [said], range(len(said)))


def labels(looked: Looked) -> list[tuple[str, str]]:
    return [(each.nature, each.label) for each in looked.findings]


@pytest.mark.parametrize("way", ["cached", "whole"])
def test_a_cache_and_reading_it_all_again_are_both_right(way: str) -> None:
    assert check(decoded(way).evidence) == ()
    looked = look(pair(decoded(), decoded(way)))
    assert not looked.findings
    assert any("whole text so far" in words for words in looked.equal)
    assert any("decoding equal within noise: 3 steps" in words for words in looked.equal)


def test_one_token_and_no_cache_is_lost_context_named_from_its_step() -> None:
    looked = look(pair(decoded(), decoded("lost")))
    found = looked.findings[0]
    assert (found.nature, found.label, found.step) == ("factor", "cache", 2)
    assert found.swap is not None and found.swap.factor == "context"
    assert "in B, context is lost" in found.words and "not so in A" in found.words


def test_lost_context_is_identified_by_the_distribution_of_the_token_alone() -> None:
    (found,) = check(decoded("lost", said=(9, 3, 9, 4)).evidence)
    assert "after token 9 the distribution is that of the token alone" in found.words


def test_what_lost_context_does_is_measured_beyond_what_the_prompt_explains() -> None:
    looked = look(pair(decoded(), decoded("lost")))
    (outcome,) = looked.outcome
    assert outcome.name == "kl decode" and outcome.rungs == (8,)
    assert outcome.apart == "different"
    assert looked.curves["decode"]["step"] == [1, 2, 3, 4]
    assert looked.curves["decode"]["kl"][0] == 0


@pytest.mark.parametrize(
    ("way", "said"), [("prompt only", "context is cut"), ("twice", "positions more than")]
)
def test_a_cache_that_does_not_grow_and_one_that_holds_text_twice(way: str, said: str) -> None:
    found = look(pair(decoded(), decoded(way))).findings[0]
    assert found.label == "cache" and said in found.words


def test_positions_off_by_a_constant_are_told_with_the_constant() -> None:
    looked = look(pair(decoded(), decoded(offset=1, noise=0.5)))
    found = looked.findings[0]
    assert (found.nature, found.label, found.value, found.step) == ("factor", "cache-pos", 1.0, 2)
    assert "off by +1 in 3 decoding steps" in found.words


def test_positions_that_are_off_and_change_nothing_are_harmless() -> None:
    looked = look(pair(decoded(), decoded(offset=1)))
    assert labels(looked) == [("harmless", "cache-pos")]


def test_positions_that_are_right_after_a_prompt_at_wrong_ones_are_an_effect_of_the_prompt() -> (
    None
):
    late = decoded(offset=0, noise=0.5)
    late.arrays["000000/positions"] = late.arrays["000000/positions"] + 3
    looked = look(pair(decoded(), late))
    assert ("effect", "positions") in labels(looked)
    assert "their prompts were not" in looked.findings[0].words


def test_what_a_step_does_is_measured_by_its_token_where_no_logits_were_kept() -> None:
    def spoken(probabilities: tuple[float, ...], offset: int) -> Side:
        made = decoded(offset=offset)
        for event in made.events[2:-1]:
            made.arrays[event.logits][:] = np.nan  # type: ignore[union-attr, index]
        of = made.events.pop()
        draws = tuple(Draw(row=0, step=k, token=SAID[k], how="argmax", probability=p)
                      for k, p in enumerate(probabilities))  # fmt: skip
        made.events = [
            event.model_copy(update={"logits": None}) if k > 1 else event
            for k, event in enumerate(made.events)
        ]
        made.events.append(of.model_copy(update={"draws": draws}))
        return made

    looked = look(pair(spoken((0.9, 0.9, 0.5, 0.5), 0), spoken((0.9, 0.9, 0.4, 0.5), 1)))
    (outcome,) = looked.outcome
    assert outcome.apart == "different" and "of which one token is known" in outcome.words
    bound = 0.5 * np.log(0.5 / 0.4) + 0.5 * np.log(0.5 / 0.6)
    assert looked.curves["decode"]["kl"][2] == pytest.approx(bound)


def test_context_lost_at_one_step_and_cut_after_it_is_one_cause() -> None:
    made = Side()
    for k in range(len(SAID)):
        text = PROMPT + SAID[:k]
        fed, past = (text, 0) if k == 0 else (text[-1:], (len(text) - 1, 0, 1)[k - 1])
        made.forward([fed], past=past, logits=logits_of(text if k < 2 else text[-1:]))
    (found,) = check(made.generation([PROMPT], [SAID], range(4)).evidence)
    assert (found.fault, found.step, found.steps) == ("lost", 3, 2)
    assert "then context is cut" in found.words


def test_a_cause_in_a_is_told_as_that() -> None:
    assert "in A, context is lost" in look(pair(decoded("lost"), decoded())).findings[0].words


def test_the_same_fault_on_both_sides_sets_them_not_apart() -> None:
    looked = look(pair(decoded("lost"), decoded("lost")))
    assert not looked.findings
    assert any("in both sides alike" in words for words in looked.equal)


def test_decoding_that_differs_after_an_equal_prompt_is_located_there() -> None:
    looked = look(pair(decoded(), decoded(noise=0.5)))
    assert labels(looked) == [("factor", "cache")]
    assert looked.findings[0].place == "prompt 1, token 2"


def beside(*, offsets: tuple[int, int, int], noise: tuple[float, float, float]) -> Side:
    """Three prompts of 4, 6 and 4 tokens, each a generation of its own, as Weft records them."""
    made, at = Side(), 0
    for extra, offset, wrong in zip((0, 2, 0), offsets, noise, strict=True):
        prompt = (*range(1, 1 + extra), *PROMPT)
        for k in range(len(SAID)):
            text = prompt + SAID[:k]
            fed, past = (text[-1:], len(text) - 1) if k else (text, 0)
            start = past + (offset if k else 0)
            made.forward(
                [fed],
                phase="decode" if k else "prefill",
                past=past,
                positions=[list(range(start, start + len(fed)))],
                logits=logits_of(text) + wrong * np.sin(np.arange(VOCABULARY)) * (k > 0),
            )
        made.generation([prompt], [SAID], range(at, at + len(SAID)))
        at += len(SAID)
    return made


RIGHT = {"offsets": (0, 0, 0), "noise": (0.0, 0.0, 0.0)}


def test_positions_off_by_what_a_row_is_shorter_than_the_longest_count_padding() -> None:
    padded = beside(offsets=(2, 0, 2), noise=(0.5, 0.0, 0.5))
    found = look(pair(beside(**RIGHT), padded)).findings[0]
    assert (found.nature, found.label, found.value) == ("factor", "positions", 2)
    assert "positions count padding in 6 decoding steps" in found.words
    every = beside(offsets=(2, 2, 2), noise=(0.5, 0.5, 0.5))
    assert look(pair(beside(**RIGHT), every)).findings[0].label == "cache-pos"


def test_decoding_that_differs_in_the_shorter_rows_alone_attends_padding() -> None:
    shorter = beside(offsets=(0, 0, 0), noise=(0.5, 0.0, 0.5))
    found = look(pair(beside(**RIGHT), shorter)).findings[0]
    assert (found.nature, found.label) == ("factor", "mask")
    assert "only in 2 rows shorter than the longest" in found.words
    longest = beside(offsets=(0, 0, 0), noise=(0.0, 0.5, 0.0))
    assert look(pair(beside(**RIGHT), longest)).findings[0].label == "cache"


def test_decoding_that_differs_as_its_prompt_does_is_an_effect() -> None:
    other = Side()
    for k in range(len(SAID)):
        text = PROMPT + SAID[:k]
        fed = text if k == 0 else text[-1:]
        other.forward([fed], past=len(text) - len(fed), logits=1.5 * logits_of(text))
    other.generation([PROMPT], [SAID], range(len(SAID)))
    assert labels(look(pair(decoded(), other))) == [("effect", "unknown")]


def test_steps_are_compared_only_while_both_said_the_same() -> None:
    looked = look(pair(decoded(), decoded(said=(9, 4, 4, 4))))
    assert "1 decoding step of" in looked.outcome[0].words


def test_left_padding_is_no_lost_context() -> None:
    made = Side()
    ids = [[0, 0, 5, 6], [5, 6, 7, 8]]
    made.forward(ids, mask=[[0, 0, 1, 1], [1] * 4], positions=[[0, 0, 0, 1], [0, 1, 2, 3]])
    made.forward([[9], [9]], past=4, mask=[[0, 0, 1, 1, 1], [1] * 5], positions=[[2], [4]])
    made.generation([ids[0][2:], ids[1]], [(9, 3), (9, 3)], (0, 1))
    assert check(made.evidence) == ()


def test_a_prompt_that_is_read_in_chunks_is_one_prefill() -> None:
    made = Side().forward([[5, 6, 7]], positions=[[0, 1, 2]])
    made.forward([[8]], past=3, positions=[[3]], phase="decode")
    made.forward([[9]], past=4, positions=[[4]], phase="decode")
    made.generation([PROMPT], [(9, 3)], (0, 1, 2))
    assert check(made.evidence) == ()


def test_without_generations_it_says_so() -> None:
    assert "neither side" in look(pair(Side(), Side())).unseen[0]
