"""Draws against the exact distribution, and the filters against a plain computation.

The peers' own processors are compared in tests/unit/engines/test_mlx.py.
"""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from weft.core.keys import Key, log_exponential
from weft.model.decoding import Decoding
from weft.model.sampling import (
    LARGE,
    LIKELIEST,
    Chooser,
    distribution,
    keep_top_p,
    penalise,
    seen_tokens,
)

DRAWS = 20_000
VOCABULARY = 60
CASES = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 1.6},
    "top-p": {"temperature": 0.5, "top_p": 0.9},
    "top-k": {"temperature": 0.9, "top_k": 7},
    "min-p": {"temperature": 0.5, "min_p": 0.1},
    "all": {"temperature": 0.8, "top_p": 0.95, "top_k": 20, "min_p": 0.02},
}
ORDERS = pytest.mark.parametrize("order", ["hf", "mlx"])


def logits(seed=0):
    return np.random.default_rng(seed).normal(0, 2, VOCABULARY)


def expected(logits_V, order, temperature, top_p=1.0, top_k=0, min_p=0.0):
    """The distribution, token by token, in plain Python and double precision."""

    def share(kept):
        whole = {v: np.exp(x - max(kept.values())) for v, x in kept.items()}
        return {v: x / sum(whole.values()) for v, x in whole.items()}

    def best_first(kept):
        return sorted(kept, key=kept.__getitem__, reverse=True)

    def by_top_k(kept):
        return {v: kept[v] for v in (best_first(kept)[:top_k] if top_k else kept)}

    def by_top_p(kept):
        p, total, chosen = share(kept), 0.0, []
        for v in best_first(kept):
            if total < top_p or not chosen:
                chosen.append(v)
            total += p[v]
        return {v: kept[v] for v in chosen}

    def by_min_p(kept):
        p = share(kept)
        return {v: x for v, x in kept.items() if p[v] >= min_p * max(p.values())}

    heat = temperature if order == "hf" else 1.0
    kept = {v: x / heat for v, x in enumerate(logits_V)}
    steps = (by_top_k, by_top_p, by_min_p) if order == "hf" else (by_top_p, by_min_p, by_top_k)
    for step in steps:
        kept = step(kept)
    rest = temperature / heat
    p = share({v: x / rest for v, x in kept.items()})
    return np.array([p.get(v, 0.0) for v in range(len(logits_V))])


@ORDERS
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_distribution_is_the_one_that_the_order_defines(order, case):
    for seed in range(20):
        logits_V = logits(seed)
        decoding = Decoding(order=order, **case)
        found = distribution(torch.tensor(logits_V, dtype=torch.float32)[None], decoding)
        np.testing.assert_allclose(
            found.softmax(-1)[0].numpy(), expected(logits_V, order, **case), atol=2e-6
        )


@ORDERS
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_frequencies_of_draws_match_the_exact_distribution(order, case):
    logits_V = logits()
    exact = expected(logits_V, order, **case)
    prompt = np.array([5, 7])
    rows = range(DRAWS)
    choose = Chooser(Decoding(order=order, seed=3, **case), [prompt] * DRAWS)
    logits_BV = torch.tensor(logits_V, dtype=torch.float32).expand(DRAWS, -1)
    drawn = choose(logits_BV, rows, [()] * DRAWS).numpy()
    counts = np.bincount(drawn, minlength=VOCABULARY)
    assert counts[exact == 0].sum() == 0
    common = exact * DRAWS >= 5  # the usual condition of the test; the rest is one class
    classes = np.append(counts[common], counts[~common].sum())
    wanted = np.append(exact[common], exact[~common].sum()) * DRAWS
    keep = wanted > 0
    assert chisquare(classes[keep], wanted[keep]).pvalue > 1e-3


def test_the_two_orders_differ_where_the_temperature_is_not_one():
    logits_BV = torch.tensor(logits(), dtype=torch.float32)[None]

    def kept(order, temperature):
        decoding = Decoding(order=order, temperature=temperature, top_p=0.9)
        return int(distribution(logits_BV, decoding).isfinite().sum())

    assert kept("hf", 0.5) < kept("mlx", 0.5)
    assert kept("hf", 1.0) == kept("mlx", 1.0)


def test_positions_and_prompts_have_noise_of_their_own_and_members_share_it():
    decoding = Decoding(temperature=1.0, seed=1)
    flat_BV = torch.zeros(4, VOCABULARY)
    choose = Chooser(decoding, [np.array([1]), np.array([2])])
    steps = [choose(flat_BV, [0, 0, 1, 1], [()] * 4).tolist() for _ in range(30)]
    assert all(a == b and c == d for a, b, c, d in steps)
    assert len({a for a, *_ in steps}) > 5
    assert [a for a, *_ in steps] != [c for _, _, c, _ in steps]


def test_noise_at_a_position_does_not_depend_on_what_was_drawn_before():
    key = Key.of(0)
    later = log_exponential(9, key, 5)
    log_exponential(9, key, 4)
    np.testing.assert_array_equal(log_exponential(9, key, 5), later)
    np.testing.assert_array_equal(log_exponential(5, key, 5), later[:5])


def test_the_penalty_makes_seen_tokens_less_likely_whatever_their_sign():
    given_BV = torch.tensor([[3.0, -2.0, 1.0], [3.0, -2.0, 1.0]])
    seen_BS = seen_tokens([[0, 1, 0, 0], [2]], None)  # once, however often it was said
    assert penalise(given_BV, seen_BS, 2.0).tolist() == [[1.5, -4.0, 1.0], [3.0, -2.0, 0.5]]
    assert given_BV[0].tolist() == [3.0, -2.0, 1.0]


@pytest.mark.parametrize("window", [1, 3, 50, None])
def test_the_penalty_is_that_of_transformers(window):
    from transformers import RepetitionPenaltyLogitsProcessor

    generator = np.random.default_rng(0)
    histories = [generator.integers(0, VOCABULARY, n).tolist() for n in (1, 4, 30)]
    given_BV = torch.tensor(np.stack([logits(seed) for seed in range(3)]))
    found_BV = penalise(given_BV, seen_tokens(histories, window), 1.3)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)
    for given_V, found_V, history in zip(given_BV, found_BV, histories, strict=True):
        last = torch.tensor([history[-(window or len(history)) :]])
        assert torch.equal(theirs(last, given_V[None])[0], found_V)


@pytest.mark.parametrize(("order", "window"), [("hf", None), ("mlx", 20), ("hf", 3)])
def test_the_penalty_sees_the_last_tokens_of_prompt_and_completion(order, window):
    given = None if order == "mlx" else window
    decoding = Decoding(repetition_penalty=100.0, repetition_window=given, order=order)
    history = list(range(30))
    logits_BV = torch.ones(1, VOCABULARY) + torch.arange(VOCABULARY) * -1e-3
    token = int(Chooser(decoding, [np.array([0])])(logits_BV, [0], [history]))
    assert token == (30 if window is None else 0)  # the best token that is not seen


def test_greedy_takes_the_first_of_equal_logits():
    logits_BV = torch.tensor([[1.0, 5.0, 5.0]])
    assert Chooser(Decoding(), [np.array([0])])(logits_BV, [0], [()]).tolist() == [1]


@ORDERS
@pytest.mark.parametrize("temperature", [1e-30, 1e-6])
def test_next_to_no_temperature_takes_the_most_likely_token(order, temperature):
    logits_BV = torch.tensor(np.stack([logits(0), logits(1) + 500, logits(2) - 500])).float()
    filters = {"top_k": 50, "top_p": 0.9, "min_p": 0.01}
    for given in ({}, filters):
        decoding = Decoding(temperature=temperature, order=order, **given)
        choose = Chooser(decoding, [np.array([n]) for n in range(3)])
        assert choose(logits_BV, range(3), [()] * 3).tolist() == logits_BV.argmax(-1).tolist()


@ORDERS
def test_a_huge_temperature_is_an_even_draw_from_what_the_filters_leave(order):
    decoding = Decoding(temperature=1e30, order=order, top_k=7)
    found = distribution(torch.tensor(logits())[None].float(), decoding).softmax(-1)
    assert found.unique().tolist() == [0.0, pytest.approx(1 / 7)]


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.99])
def test_top_p_of_a_large_vocabulary_keeps_what_sorting_it_keeps(top_p):
    """Rows that are peaked and rows so flat that more tokens belong than are looked at first."""
    noise_BV = np.random.default_rng(0).normal(0, 1, (3, LARGE + 5)).astype(np.float32)
    logits_BV = torch.from_numpy(noise_BV * np.array([[4.0], [0.1], [1.0]], np.float32))
    kept_BV = keep_top_p(logits_BV, top_p)
    for logits_V, kept_V in zip(logits_BV.double(), kept_BV, strict=True):
        falling_V, token_V = logits_V.sort(descending=True)
        share_V = falling_V.softmax(-1)
        above_V = share_V.cumsum(-1) - share_V
        kept = set(kept_V.isfinite().nonzero()[:, 0].tolist())
        assert kept >= set(token_V[above_V < top_p - 1e-5].tolist())
        assert kept <= set(token_V[above_V < top_p + 1e-5].tolist())
        at = sorted(kept)
        assert torch.equal(kept_V[at].double(), logits_V[at])
    counts = kept_BV.isfinite().sum(-1).tolist()
    assert counts[0] < LIKELIEST
    assert top_p < 0.9 or counts[1] > LIKELIEST
    alone = [keep_top_p(logits_1V[None], top_p) for logits_1V in logits_BV]
    assert torch.equal(torch.cat(alone), kept_BV)
