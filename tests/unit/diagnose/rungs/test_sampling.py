"""Rung 9: samplers, stop rules, random numbers, and the first token that differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.evidence import Side, pair
from weft.diagnose.finding import Finding, Looked
from weft.diagnose.rungs.sampling import look
from weft.diagnose.sides.samplers import kept
from weft.runs.evidence import AdapterModule, Draw, Generation, Seeded, Snapshot

PROMPTS = ((5, 6, 7), (5, 8, 9))
SAID = ((3, 4, 3, 4), (9, 9, 8, 1))
DRAWN = {"greedy": False, "temperature": 0.7, "top_p": 0.95, "max_tokens": 4}
GREEDY = {"greedy": True, "max_tokens": 4}


def side(settings: Any = DRAWN, said: Any = SAID, *, seed: int | None = 0, **fields: Any) -> Side:
    made = Side()
    if seed is not None:
        made.add(Seeded(library="torch", seed=seed))
    fields = {"ended": ("length",) * 2, "random": f"state {seed}"} | fields
    return made.generation(PROMPTS, said, settings=dict(settings), **fields)


def factors(looked: Looked) -> dict[str, Finding]:
    return {each.label: each for each in looked.findings if each.nature == "factor"}


def test_equal_samplers_stops_and_states_are_told() -> None:
    looked = look(pair(side(), side()))
    assert not looked.findings
    told = " ".join(looked.equal)
    assert "sampler equal: draws with temperature 0.7, top_p 0.95" in told
    assert "stop rules equal" in told and "generator's state is equal" in told
    assert looked.outcome[0].apart == "same"


def test_temperature_and_filter_are_one_cause_with_both_values() -> None:
    b = side({**DRAWN, "temperature": 0.8, "top_p": 1.0}, ((3, 4, 1, 1), SAID[1]))
    (found,) = factors(look(pair(side(), b))).values()
    assert found.label == "sampler"
    assert (found.value, found.other, found.unit) == (0.7, 0.8, "temperature")
    assert "draws with temperature 0.8" in found.words and "top_p 0.95" in found.words
    assert found.swap is not None and found.swap.places == ("temperature", "top_p")


def test_greedy_against_drawn_is_the_sampler() -> None:
    (found,) = factors(look(pair(side(GREEDY), side(said=((1,) * 4,) * 2)))).values()
    assert found.label == "sampler"
    assert "A takes the most likely token; B draws" in found.words


def test_neutral_values_are_no_difference() -> None:
    a = side({**DRAWN, "top_k": 0, "repetition_penalty": 1.0, "min_p": None})
    assert not look(pair(a, side())).findings


def test_what_greedy_does_not_read_is_harmless() -> None:
    a, b = side({**GREEDY, "temperature": 0.7}), side({**GREEDY, "temperature": 1.5}, seed=None)
    assert {each.nature for each in look(pair(a, b)).findings} == {"harmless"}


def test_a_temperature_that_was_seen_counts_more_than_one_that_was_set() -> None:
    def draws(temperature: float) -> tuple[Draw, ...]:
        return tuple(
            Draw(row=r, step=k, token=SAID[r][k], how="draw", temperature=temperature)
            for r in range(2)
            for k in range(4)
        )

    hidden = look(pair(side(draws=draws(0.7)), side(draws=draws(1.4))))
    assert factors(hidden)["sampler"].other == pytest.approx(1.4)
    assert not look(pair(side(draws=draws(0.7)), side(draws=draws(0.705)))).findings


def replayed(tokens: Any, kept_tokens: Any, settings: Any = DRAWN, how: Any = "draw") -> Side:
    """One text whose logits are 10, 9, 8, ... at each step."""
    made = Side().add(Seeded(library="torch", seed=0))
    logits = np.float32([[10, 9, 8, 7, 6, 5, 4, 3]])
    for k in range(len(tokens)):
        made.forward([[1, 2] if k == 0 else [tokens[k - 1]]], past=k and k + 1, logits=logits)
    draws = tuple(
        Draw(row=0, step=k, token=token, how=how, kept=n)
        for k, (token, n) in enumerate(zip(tokens, kept_tokens, strict=True))
    )
    return made.generation([(1, 2)], [tokens], range(len(tokens)), settings=settings,
                           draws=draws, random="s")  # fmt: skip


def test_filters_before_and_after_the_temperature_are_told_apart_by_replay() -> None:
    logits = np.array([10.0, 9, 8, 7, 6, 5, 4, 3])
    settings = {"greedy": False, "temperature": 2.0, "top_p": 0.9}
    before, after = (kept(logits, settings, t) for t in (1.0, 2.0))
    assert before != after
    a, b = (replayed((0, 1), (n, n), settings) for n in (before, after))
    found = factors(look(pair(a, b)))["sampler"]
    assert found.words == "filters come before the temperature in A only"


def nucleus(top_p: float, counts: tuple[int, ...]) -> Side:
    """A loop by hand whose draws left so many tokens, and the top-p that was read off them."""
    settings = {"greedy": False, "temperature": 1.0, "top_p": top_p}
    made = replayed((0,) * len(counts), counts, settings)
    said = made.events[-1]
    assert isinstance(said, Generation)
    fitted = tuple(each.model_copy(update={"temperature": 1.0}) for each in said.draws)
    made.events[-1] = said.model_copy(update={"draws": fitted})
    return made


def test_two_numbers_that_stand_for_one_filter_are_no_difference() -> None:
    """Of logits 10, 9, 8, ... both leave three tokens, whatever is drawn."""
    looked = look(pair(nucleus(0.9499, (3, 3)), nucleus(0.95, (3, 3))))
    assert "sampler" not in factors(looked)
    assert any(words.startswith("sampler equal") for words in looked.equal)


def test_two_filters_that_leave_other_tokens_are_a_sampler() -> None:
    """0.6 leaves one token, 0.95 three."""
    found = factors(look(pair(nucleus(0.6, (1, 1)), nucleus(0.95, (3, 3)))))["sampler"]
    assert (found.value, found.other, found.unit) == (0.6, 0.95, "top_p")


def test_a_filter_that_no_setting_shows_is_seen() -> None:
    settings = {"greedy": False, "temperature": 1.0}
    found = factors(
        look(pair(replayed((0, 1), (8, 8), settings), replayed((0, 1), (3, 2), settings)))
    )
    assert "tokens that could be drawn: all in A, 3 in B" in found["sampler"].words


def test_greedy_choices_that_are_not_the_most_likely_name_altered_logits() -> None:
    a, b = (replayed(t, (None,) * 2, GREEDY, "argmax") for t in ((0, 0), (0, 1)))
    found = factors(look(pair(a, b)))["sampler"]
    assert "0 in A, 1 in B" in found.words


def test_what_is_kept_is_what_a_sampler_keeps() -> None:
    logits = np.log([0.5, 0.25, 0.15, 0.1])
    assert kept(logits, {"top_k": 2}, 1.0) == 2
    assert kept(logits, {"top_p": 0.7}, 1.0) == 2
    assert kept(logits, {"top_p": 0.75}, 1.0) == 2
    assert kept(logits, {"min_p": 0.25}, 1.0) == 3
    assert kept(logits, {}, 1.0) == 4


def test_texts_cut_at_another_length_name_the_limit_with_both_values() -> None:
    longer = tuple((*said, 2, 2) for said in SAID)
    looked = look(pair(side(), side({**DRAWN, "max_tokens": 6}, longer)))
    (found,) = factors(looked).values()
    assert (found.label, found.place, found.value, found.other) == ("stop", "max_tokens", 4.0, 6.0)
    assert "2 and 2 texts ended by it" in found.words
    assert looked.outcome[0].value == 1


def test_a_limit_that_no_text_reached_is_harmless() -> None:
    a, b = (side({**DRAWN, "max_tokens": n}, ended=("eos",) * 2) for n in (20, 50))
    assert {each.nature for each in look(pair(a, b)).findings} == {"harmless"}


def test_a_limit_that_no_setting_shows_is_seen_by_the_lengths() -> None:
    longer = tuple((*said, 2, 2) for said in SAID)
    none = {"greedy": False}
    a, b = (side(none, said, ended=("unknown",) * 2) for said in (SAID, longer))
    found = factors(look(pair(a, b)))["stop"]
    assert "4 tokens in A, 6 in B" in found.words


def test_a_text_that_goes_on_past_the_others_end_names_the_stop_rule() -> None:
    said, why = ((3, 4), SAID[1]), ("stop", "length")
    set_ = {"driver": "generate"}
    a = side({**GREEDY, "stop": ["\n"], "max_tokens": 9}, said, ended=why, **set_)
    found = factors(look(pair(a, side({**GREEDY, "max_tokens": 9}, **set_))))["stop"]
    assert found.place == "stop" and "['\\n'] in A, none in B" in found.words


def test_a_limit_that_a_loop_was_seen_to_have_may_be_that_of_the_other_loop() -> None:
    a = side({"greedy": False, "max_tokens": 4})
    short = ((3, 9, 3), (9, 9, 8, 1))
    open_ = side({"greedy": False}, short, ended=("eos", "unknown"))
    assert "stop" not in factors(look(pair(a, open_)))
    longer = side({"greedy": False}, ((3, 4, 3), (9, 9, 8, 1, 1)), ended=("eos", "eos"))
    assert "4 in A, none in B" in factors(look(pair(a, longer)))["stop"].words


def test_what_one_text_of_a_loop_does_not_show_another_may() -> None:
    flat = tuple(Draw(row=0, step=k, token=3, how="draw", kept=1) for k in range(2))
    drawn = tuple(
        Draw(row=0, step=k, token=3, how="draw", kept=4, temperature=0.7) for k in range(2)
    )
    settings = {"greedy": False, "temperature": 0.7}
    known = Side().generation([(1,)], [(3, 3)], settings=settings, draws=drawn, random="s")
    late = Side().generation([(1,)], [(3, 3)], settings={"greedy": False}, draws=flat, random="s")
    assert not factors(look(pair(known, late)))
    late.generation([(2,)], [(3, 3)], settings={"greedy": False, "temperature": 1.2},
                    draws=tuple(d.model_copy(update={"temperature": 1.2}) for d in drawn),
                    random="t")  # fmt: skip
    assert factors(look(pair(known, late)))["sampler"].other == 1.2


def test_one_seed_and_another_adapter_make_other_numbers_an_effect() -> None:
    module = AdapterModule(rank=2, shape=(4, 4), norm_a=1.0, norm_b=0.0, norm_update=0.0,
                           digest_a="", digest_b="")  # fmt: skip
    shot = Snapshot(model="model-0", when="use", style="peft", modules={"q": module})
    looked = look(pair(side(random="other").add(shot), side()))
    assert not factors(looked) and "seed" in {each.label for each in looked.findings}


def test_no_seed_on_one_side_is_named_where_tokens_are_drawn() -> None:
    found = factors(look(pair(side(), side(seed=None, said=((1,) * 4,) * 2))))["seed"]
    assert "torch seed 0 in A, no seed in B" in found.words
    assert found.fix == "set a seed in B"


def test_two_seeds_are_told_with_their_values() -> None:
    found = factors(look(pair(side(), side(seed=7))))["seed"]
    assert (found.value, found.other) == (0, 7)


def test_one_seed_and_another_state_means_that_numbers_were_drawn_before() -> None:
    found = factors(look(pair(side(), side(random="other"))))["seed"]
    assert "used differently before" in found.words


def with_logits(top: tuple[float, float], said: Any, gap: float = 0.0) -> Side:
    made = Side().forward([[1, 2]], logits=np.float32([[*top, 0, 0]]) + np.float32([0, gap, 0, 0]))
    return made.generation([(1, 2)], [said], (0,), settings=GREEDY)


def test_the_first_differing_token_has_its_margin() -> None:
    looked = look(pair(with_logits((5, 4), (0,)), with_logits((4, 5), (1,))))
    assert "prompt 1, token 1 (0 and 1, margin 1 nats)" in looked.outcome[0].words
    assert [each.nature for each in looked.findings] == ["effect"]


def test_a_flip_that_noise_explains_is_no_difference() -> None:
    looked = look(pair(with_logits((5, 4.99999), (0,)), with_logits((5, 4.99999), (1,), 2e-5)))
    assert looked.outcome[0].apart == "same"
    assert "part at a margin that noise closes" in looked.outcome[0].words


def test_without_texts_it_says_so() -> None:
    assert "no text was generated in B" in look(pair(side(), Side())).unseen[0]
