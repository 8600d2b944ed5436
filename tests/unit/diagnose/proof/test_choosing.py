"""What exchanging samplers and stop rules shows, beside plain loops over logits and tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.unit.diagnose.proof.conftest import updates
from weft.diagnose.proof.choosing import JS, choose, ends
from weft.diagnose.proof.forward import Engine, woven
from weft.diagnose.proof.replica import Replica, Row, Sampler, Stop

ROWS = (
    Row((5, 17, 80, 3), tokens=(7, 33, 12, 64)),
    Row((44, 9, 9, 61, 7), tokens=(8, 8)),
)
DRAWN = Sampler(greedy=False, temperature=0.7)


def sides(base, mine, its, adapter=None):
    a = Replica("A", base, rows=ROWS, sampler=mine)
    return a, replace(a, name="B", sampler=its, adapter=adapter or {})


@torch.no_grad()
def told_by_transformers(base, sampler, adapter=None):
    """What each token of A's completions is drawn from, by transformers' own processors."""
    model = AutoModelForCausalLM.from_pretrained(base.load).eval()
    found = []
    for row in ROWS:
        for n in range(len(row.tokens) + 1):
            ids = torch.tensor([row.prompt + row.tokens[:n]])
            with woven(model, adapter or {}):
                scores = model(ids).logits[:, -1].double().log_softmax(-1)
            if sampler.penalty != 1:
                scores = RepetitionPenaltyLogitsProcessor(sampler.penalty)(ids, scores)
            if sampler.greedy:
                found.append(torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1])[0])
                continue
            scores = TemperatureLogitsWarper(sampler.temperature)(ids, scores)
            for made in (
                TopKLogitsWarper(sampler.top_k) if sampler.top_k else None,
                TopPLogitsWarper(sampler.top_p) if sampler.top_p else None,
                MinPLogitsWarper(sampler.min_p) if sampler.min_p else None,
            ):
                scores = made(ids, scores) if made else scores
            found.append(scores.softmax(-1)[0])
    return found


def mean_js(p, q):
    apart = [jensenshannon(x.numpy(), y.numpy()) ** 2 for x, y in zip(p, q, strict=True)]
    return sum(apart) / len(apart)


@pytest.mark.parametrize(
    "other",
    [
        replace(DRAWN, temperature=1.1),
        replace(DRAWN, top_k=5),
        replace(DRAWN, top_p=0.6),
        replace(DRAWN, min_p=0.7),
        replace(DRAWN, penalty=1.4),
        Sampler(),
    ],
    ids=["temperature", "top-k", "top-p", "min-p", "penalty", "greedy"],
)
def test_sampler_closes_and_opens_what_it_made(other, base_on_disk):
    base = base_on_disk()
    made = choose(Engine(), *sides(base, DRAWN, other))
    expected = mean_js(told_by_transformers(base, DRAWN), told_by_transformers(base, other))
    assert expected > 100 * JS
    assert made.gap == pytest.approx(expected, rel=1e-3)
    assert made.closes == 0
    assert made.opens == made.gap


def test_sampler_does_not_close_what_logits_opened(base_on_disk):
    """B draws hotter and from other logits: A's temperature leaves what the logits make."""
    base = base_on_disk()
    adapter = updates(AutoModelForCausalLM.from_pretrained(base.load), "q_proj down_proj", 6.0)
    hot = replace(DRAWN, temperature=1.1)
    made = choose(Engine(), *sides(base, DRAWN, hot, adapter))
    own = told_by_transformers(base, DRAWN)
    left = mean_js(own, told_by_transformers(base, DRAWN, adapter))
    assert made.closes == pytest.approx(left, rel=1e-3)
    assert made.closes > 0.05 * made.gap
    assert made.opens == pytest.approx(mean_js(own, told_by_transformers(base, hot)), rel=1e-3)


def test_equal_samplers_open_nothing_whatever_the_logits(base_on_disk):
    base = base_on_disk()
    adapter = updates(AutoModelForCausalLM.from_pretrained(base.load), "q_proj down_proj", 6.0)
    made = choose(Engine(), *sides(base, DRAWN, DRAWN, adapter))
    assert made.gap > 100 * JS
    assert made.opens == 0


def test_sampler_that_nobody_knows_is_not_exchanged(base_on_disk):
    base = base_on_disk()
    assert choose(Engine(), *sides(base, None, DRAWN)) is None
    assert choose(Engine(), *sides(base, DRAWN, None)) is None


def stopping(tokens, mine, its, ended=("length", "length"), spell=None):
    a, b = (
        Replica(
            name,
            None,  # type: ignore[arg-type]
            rows=tuple(Row((1,), tokens=said, ended=why) for said in each),
            stop=rule,
        )
        for name, each, rule, why in zip("AB", tokens, (mine, its), ended, strict=True)
    )
    return ends(a, b, spell)


def test_shorter_limit_ends_the_longer_completions():
    a = [(3, 4, 5, 6), (3, 2)]
    b = [(3, 4), (3, 2)]
    made, of = stopping((a, b), Stop(4, (2,)), Stop(2, (2,)), ("length", "length"))
    assert of == 4
    assert made.gap == made.opens == pytest.approx(_elsewhere(a, b, 4, 2))
    assert made.closes == 0


def _elsewhere(a, b, mine, its):
    """By hand: of completions that their own rule ends, the share that the other ends elsewhere."""

    def end(tokens, limit):
        for n, token in enumerate(tokens, start=1):
            if token == 2 or n == limit:
                return n
        return None

    told = [t for t in a if end(t, mine) == len(t)] + [t for t in b if end(t, its) == len(t)]
    return sum(end(t, mine) != end(t, its) for t in told) / len(told)


def test_stop_text_ends_where_it_is_spelled():
    words = {3: "a", 4: " WH", 5: "ERE", 6: "b"}

    def spell(tokens):
        return "".join(words[token] for token in tokens)

    a = [(3, 4, 5), (6, 4, 5)]
    b = [(3, 4, 5, 6, 3), (6, 4, 5, 3, 3)]
    made, of = stopping((a, b), Stop(5, strings=("WHERE",)), Stop(5), ("stop", "length"), spell)
    assert of == 4
    # within A's own three tokens a limit of 5 ends nothing; B's texts end at 3 by A's rule
    assert made.gap == 1.0


def test_equal_rules_end_at_the_same_token():
    made, of = stopping(([(3, 4)], [(5, 6)]), Stop(2), Stop(2))
    assert (made.gap, made.opens, of) == (0.0, 0.0, 2)


@pytest.mark.parametrize("unknown", [0, 1])
def test_rule_that_is_unknown_is_not_exchanged(unknown):
    rules = [Stop(2), Stop(3)]
    rules[unknown] = None
    assert stopping(([(3, 4)], [(5, 6, 7)]), *rules) is None


def test_rules_that_do_not_explain_their_own_side_prove_nothing():
    a = [(3, 4, 5), (3, 4, 6)]  # three tokens, with a limit of 2
    b = [(5, 6, 7), (5, 6, 8)]
    assert stopping((a, b), Stop(2), Stop(4)) is None
