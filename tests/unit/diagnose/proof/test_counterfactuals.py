"""What a side may have done that its recording does not say, each done by a plain loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unit.diagnose.proof.conftest import updates
from weft.diagnose.proof.counterfactuals import explain, guesses
from weft.diagnose.proof.forward import Engine, woven
from weft.diagnose.proof.measures import Measure, mean_kl, predicted
from weft.diagnose.proof.replica import Context, Replica, Row

PROMPTS = ((5, 17, 80, 3, 41), (5, 9, 61))
TOKENS = (7, 33, 12)
ROWS = tuple(Row(prompt, tokens=TOKENS) for prompt in PROMPTS)
ENOUGH = 1e-7


@pytest.fixture
def base(base_on_disk):
    """A base whose layers do much: in a new one positions and rounding hardly matter."""
    plain = base_on_disk()
    model = AutoModelForCausalLM.from_pretrained(plain.load)
    layers = {
        name: 8 * each.detach().numpy()
        for name, each in model.named_parameters()
        if (each.ndim == 2 and ".layers." in name) or name == "model.norm.weight"
    }
    return replace(plain, changed=layers)


def adapter_of(base, names="q_proj down_proj", scale=2.0, seed=0):
    return updates(AutoModelForCausalLM.from_pretrained(base.load), names, scale, seed=seed)


@torch.no_grad()
def spoken(base, adapter, *, feed=None, pad=0, attended=False, index=False, prompt=tuple, times=1,
           dtype=torch.float32):  # fmt: skip
    """Log-probabilities of each row by a loop with a cache; options are what may go wrong."""
    model = AutoModelForCausalLM.from_pretrained(base.load, dtype=dtype).eval()
    for name, value in base.changed.items():
        model.get_parameter(name).copy_(torch.from_numpy(value))
    found = []
    with woven(model, adapter), woven(model, adapter if times == 2 else {}):
        for row in PROMPTS:
            ids = prompt(row)
            mask = torch.ones(1, pad + len(ids), dtype=torch.long)
            mask[:, :pad] = int(attended)
            at = torch.arange(pad + len(ids))[None] - (0 if index else pad)
            out = model(
                torch.tensor([(0,) * pad + ids]), attention_mask=mask,
                position_ids=at.clamp(min=0), use_cache=True,
            )  # fmt: skip
            made, cache = [out.logits[0, -1]], out.past_key_values
            for step, token in enumerate(TOKENS, start=1):
                if feed is not None:
                    out = feed(model, token, step, int(at[0, -1]), cache)
                else:
                    mask = torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], 1)
                    out = model(
                        torch.tensor([[token]]), attention_mask=mask,
                        position_ids=at[:, -1:] + step, past_key_values=cache, use_cache=True,
                    )  # fmt: skip
                cache = out.past_key_values
                made.append(out.logits[0, -1])
            found.append(torch.stack(made).float().double().log_softmax(-1))
    return found


def alone(model, token, step, end, cache):
    return model(torch.tensor([[token]]), use_cache=True)


def anew(model, token, step, end, cache):
    """The prompt's cache is dropped at the first token; from then on one grows."""
    past = None if step == 1 else cache
    return model(torch.tensor([[token]]), past_key_values=past, use_cache=True)


def off(by):
    def feed(model, token, step, end, cache):
        at = torch.tensor([[end + step + by]])
        return model(
            torch.tensor([[token]]), position_ids=at, past_key_values=cache, use_cache=True
        )

    return feed


def explained(replica, other, truth, left=1e-3):
    """The guess that explains a truth but for a share of what it was off."""
    engine = Engine()
    measure = Measure((1,) * len(PROMPTS), (TOKENS,) * len(PROMPTS))

    def apart(mended):
        return mean_kl(truth, predicted(engine, mended, measure))

    before = apart(replica)
    assert before > 100 * ENOUGH, "what was done makes no difference, so nothing could be told"
    guess = explain(replica, other, apart, ENOUGH)
    assert guess is not None
    assert apart(guess.mended) < max(ENOUGH, left * before)
    return guess


@pytest.mark.parametrize(
    ("feed", "label", "words"),
    [
        (alone, "cache", "last token alone"),
        (anew, "cache", "loses the prompt's cache"),
        (off(1), "cache-pos", "off by 1"),
        (off(-1), "cache-pos", "off by -1"),
    ],
    ids=["last token", "cache dropped", "one late", "one early"],
)
def test_what_decoding_saw_is_told(feed, label, words, base):
    adapter = adapter_of(base)
    said = Replica("B", base, adapter, ROWS)
    guess = explained(said, said.with_(name="A"), spoken(base, adapter, feed=feed))
    assert (guess.label, guess.factor) == (label, "context")
    assert words in guess.words


@pytest.mark.parametrize("attended", [False, True])
@pytest.mark.parametrize("index", [False, True])
def test_how_padding_was_taken_is_told(attended, index, base):
    """Recorded are the other mask, and then the other rule of positions."""
    true = {"attended": attended, "rule": "index" if index else "counted"}
    truth = spoken(base, {}, pad=3, attended=attended, index=index)
    for label, wrong in (
        ("mask", {"attended": not attended}),
        ("positions", {"rule": "counted" if index else "index"}),
    ):
        rows = tuple(replace(row, left=3, **true | wrong) for row in ROWS)
        said = Replica("B", base, {}, rows, Context())
        if label == "positions" and not attended:
            continue  # rotary positions are relative: where padding is hidden, no rule matters
        guess = explained(said, said.with_(name="A"), truth)
        assert (guess.label, guess.factor) == (label, label)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [(lambda ids: ids[1:], "leaves out"), (lambda ids: ids[:1] + ids, "twice")],
    ids=["without", "twice"],
)
def test_a_first_token_too_few_or_too_many_is_told(prompt, words, base):
    said = Replica("B", base, {}, ROWS)
    guess = explained(said, said.with_(name="A"), spoken(base, {}, prompt=prompt))
    assert (guess.label, guess.factor) == ("tokens", "ids")
    assert words in guess.words


def test_an_adapter_that_is_not_attached_is_told(base):
    said = Replica("B", base, adapter_of(base), ROWS)
    guess = explained(said, said.with_(name="A"), spoken(base, {}))
    assert (guess.label, guess.words) == ("attach", "computes without its adapter")


def test_an_adapter_that_is_added_twice_is_told(base):
    adapter = adapter_of(base)
    said = Replica("B", base, adapter, ROWS)
    guess = explained(said, said.with_(name="A"), spoken(base, adapter, times=2))
    assert guess.label == "double-apply"


def test_the_other_sides_adapter_is_told_as_another_checkpoint(base):
    """At the same modules; nothing was trained, so it is no other start."""
    mine, its = adapter_of(base), adapter_of(base, seed=1)
    said, other = Replica("B", base, mine, ROWS), Replica("A", base, its, ROWS)
    guess = explained(said, other, spoken(base, its))
    assert (guess.label, guess.factor) == ("checkpoint", "adapter")


def test_the_other_sides_modules_are_told_as_what_is_attached(base):
    mine, its = adapter_of(base), adapter_of(base, "q_proj")
    said, other = Replica("B", base, mine, ROWS), Replica("A", base, its, ROWS)
    guess = explained(said, other, spoken(base, its))
    assert (guess.label, guess.factor) == ("attach", "attach")


def test_the_other_sides_base_is_told(base):
    name = "model.layers.1.mlp.down_proj.weight"
    changed = replace(base, changed={**base.changed, name: -base.changed[name]})
    adapter = adapter_of(base)
    said, other = Replica("B", base, adapter, ROWS), Replica("A", changed, adapter, ROWS)
    guess = explained(said, other, spoken(changed, adapter))
    assert (guess.label, guess.factor) == ("base", "base")


def test_the_other_sides_dtype_is_told(base):
    adapter = adapter_of(base)
    said = Replica("B", base, adapter, ROWS)
    other = said.with_(name="A", base=replace(base, dtype="bfloat16"))
    guess = explained(said, other, spoken(base, adapter, dtype=torch.bfloat16), left=0.05)
    assert (guess.label, guess.factor) == ("precision", "dtype")


def test_what_nothing_explains_is_not_explained(base):
    adapter = adapter_of(base)
    said = Replica("B", base, adapter, ROWS)
    drawn = np.random.default_rng(0)
    noise = [
        torch.from_numpy(drawn.standard_normal(each.shape) * 3).log_softmax(-1)
        for each in spoken(base, adapter)
    ]
    engine, measure = Engine(), Measure((1,) * 2, (TOKENS,) * 2)

    def apart(mended):
        return mean_kl(noise, predicted(engine, mended, measure))

    assert explain(said, said.with_(name="A"), apart, ENOUGH) is None


def test_no_guess_is_made_of_what_is_not_there(base):
    """Without padding, completions, adapter, or a common first token nothing is to be mended."""
    rows = (Row((5, 6)), Row((7, 8)))
    said = Replica("B", base, {}, rows)
    assert list(guesses(said, said.with_(name="A"))) == []
