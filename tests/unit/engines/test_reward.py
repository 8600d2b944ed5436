"""Completions of members and what they are worth; members without numbers; losses as rewards."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from weft.core.batch import Batch, Example, Goal
from weft.core.keys import Key
from weft.data.rewards.grade import Grade
from weft.engines.local import LocalEngine
from weft.engines.reward import CUT, LENGTH, Reward, graded
from weft.model.bank import Bank
from weft.model.base import load_base
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.objectives import TOKENS
from weft.model.sites import choose_sites
from weft.training.evaluate import evaluate

PROMPTS = ("the cat", "a small red house", "the dog ran")


class Letters:
    """Rewards that only the text decides, and what it was asked to grade."""

    name = "letters"

    def __init__(self):
        self.asked = []

    def __call__(self, rows, texts):
        self.asked += zip((row["prompt"] for row in rows), texts, strict=True)
        return [Grade(float(sum(map(ord, text)) % 97), {"number": 1.0}) for text in texts]


@pytest.fixture(scope="module")
def engine(small_base):
    return LocalEngine(load_base(small_base, "float32", "cpu"))


@pytest.fixture
def batch(engine):
    examples = []
    for prompt in PROMPTS:
        ids_T = np.array(engine.tokenizer(prompt)["input_ids"])
        examples.append(Example(prompt, ids_T, ids_T, goal=Goal(ids_T, {"prompt": prompt})))
    return Batch(tuple(examples))


def bank_of(engine, *broken, members=4, size=0.3):
    """Members of which some are no numbers."""
    layout = choose_sites(engine.sites, AdapterConfig(rank=2, scale=2.0))
    flat_NP = torch.randn(members, layout.size, generator=torch.Generator().manual_seed(2)) * size
    flat_NP[list(broken)] = torch.nan
    return Bank.from_flat(tuple(map(str, range(members))), layout, flat_NP)


def test_the_completion_is_graded_and_not_the_prompt(engine, batch):
    reward = Reward(Letters(), Decoding(max_tokens=5))
    found = reward.grade(engine, bank_of(engine), batch)
    said = [text for texts in found.texts for text in texts]
    assert reward.grader.asked == list(zip(PROMPTS * 4, said, strict=True))
    for text, ids in zip(said, (ids for row in found.ids for ids in row), strict=True):
        assert engine.tokenizer.decode(ids) == text
    assert found.parts[LENGTH].tolist() == [[len(ids) for ids in row] for row in found.ids]
    assert set(np.unique(found.parts[CUT])) <= {0.0, 1.0}


@pytest.mark.parametrize("broken", [(1,), (0, 3), (0, 1, 2, 3)])
def test_a_member_without_numbers_fails_alone(broken, engine, batch):
    reward = Reward(Letters(), Decoding(max_tokens=5))
    whole = reward.grade(engine, bank_of(engine), batch)
    found = reward.grade(engine, bank_of(engine, *broken), batch)
    sound = [member for member in range(4) if member not in broken]
    assert np.isnan(found.reward_NE[list(broken)]).all()
    assert found.failures == {"logits that are not finite": 3 * len(broken)}
    assert np.array_equal(found.reward_NE[sound], whole.reward_NE[sound])


def test_members_share_their_draws_and_another_key_draws_others(engine, batch):
    reward = Reward(Letters(), Decoding(max_tokens=5, temperature=1.0))
    alike = bank_of(engine, size=0.0)
    found = [reward.grade(engine, alike, batch, key).texts for key in (Key.of(1), Key.of(2))]
    assert all(len(set(texts)) == 1 for texts in found)
    assert found[0] != found[1]
    assert reward.grade(engine, alike, batch).texts == reward.grade(engine, alike, batch).texts


def test_an_evaluation_that_draws_does_not_depend_on_its_batches(engine, batch):
    """Also where a prompt is there twice: each copy has noise of its own."""
    first = batch.examples[0]
    twice = (*batch.examples, Example("again", first.ids_T, first.labels_T, goal=first.goal))
    data = SimpleNamespace(examples=twice, name="valid", max_length=64)
    reward = Reward(Letters(), Decoding(max_tokens=5, temperature=1.0))
    texts = [
        evaluate(engine, bank_of(engine), data, batch_size=size, objective=reward).said[0].texts
        for size in (1, 3, 4)
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0][0] != texts[0][3]


def test_a_loss_is_a_reward_whose_mean_is_minus_the_mean_loss(engine, make_batch):
    batch, bank = make_batch(0), bank_of(engine)
    scores = engine.score(bank, batch, TOKENS)
    found = graded(engine, bank, batch, TOKENS)
    wanted_N = -scores.loss_NE.sum(axis=1) / scores.count_E.sum()
    assert found.reward_NE.mean(axis=1) == pytest.approx(wanted_N)
    assert not found.failures


def test_a_loss_that_is_not_finite_is_a_failure(engine, make_batch):
    found = graded(engine, bank_of(engine, 2), make_batch(0), TOKENS)
    assert np.isnan(found.reward_NE).all(axis=1).tolist() == [False, False, True, False]
    assert found.failures == {"loss that is not finite": 4}
