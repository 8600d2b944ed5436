"""Which objective a configuration means for the rows at hand, and what is refused."""

import json

import pytest
from pydantic import ValidationError

from weft.core.errors import InputError
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.tokenizer import load_tokenizer
from weft.model.config import ObjectiveConfig
from weft.model.objectives import MEANS, ONE_TOKEN, OPTION, TOKENS
from weft.training.objective import objective_for

CHOICE = ObjectiveConfig(name="choice")


def splits_of(tokenizer, **config):
    return load_splits(DataConfig(**config), tokenizer, ("train", "valid"))


@pytest.fixture(scope="module")
def reviews():
    return splits_of(load_tokenizer("weft/tiny"), task="reviews")


@pytest.fixture(scope="module")
def long_reviews(small_base):
    """For this tokenizer the words of `reviews` are one token and two."""
    return splits_of(load_tokenizer(small_base), task="reviews", verbalizers=("terrible", "awful"))


def test_without_a_word_it_is_the_loss_of_tokens(reviews):
    assert objective_for(ObjectiveConfig(), reviews) == (TOKENS, ())


def test_a_choice_is_at_one_position_where_every_candidate_is_one_token(reviews):
    assert objective_for(CHOICE, reviews) == (ONE_TOKEN, ())
    assert objective_for(ObjectiveConfig(name="choice", tokens="one"), reviews) == (ONE_TOKEN, ())
    assert objective_for(ObjectiveConfig(name="choice", tokens="mean"), reviews) == (MEANS, ())
    assert objective_for(ObjectiveConfig(name="choice", loss="option"), reviews) == (OPTION, ())


def test_a_choice_that_must_compare_means_says_why(long_reviews):
    objective, (notice,) = objective_for(CHOICE, long_reviews)
    long = next(c for c in long_reviews["valid"].candidates if len(c.ids) > 1)
    assert objective is MEANS
    assert f"because {long.text!r} is {len(long.ids)} tokens: " in notice
    for piece, id in zip(long.pieces, long.ids, strict=True):
        assert f"{piece} ({id})" in notice
    silent = ObjectiveConfig(name="choice", tokens="mean")
    assert objective_for(silent, long_reviews) == (MEANS, ())


def test_one_position_for_several_tokens_is_refused_by_word_token_and_id(long_reviews):
    with pytest.raises(InputError) as caught:
        objective_for(ObjectiveConfig(name="choice", tokens="one"), long_reviews)
    long = next(c for c in long_reviews["valid"].candidates if len(c.ids) > 1)
    assert caught.value.problem == (
        f"`objective.tokens` is `one`, and for this base the candidate {long.text!r} is "
        f"{len(long.ids)} tokens: {long.shown}"
    )
    assert caught.value.hint == (
        "use `objective.tokens=mean`, or words of one token as `data.verbalizers`"
    )


def test_a_choice_without_candidates_is_refused(small_base, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "the cat"}) + "\n" for _ in range(4)))
    splits = splits_of(load_tokenizer(small_base), path=path)
    with pytest.raises(InputError, match="the rows of task text have no candidates") as caught:
        objective_for(CHOICE, splits)
    assert caught.value.hint == (
        "use `objective.name=nll`; formats with candidates: sst2, boolq, cb, rte"
    )


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"loss": "option"}, "nll does not use `loss`"),
        ({"tokens": "one"}, "nll does not use `tokens`"),
        ({"loss": "option", "tokens": "mean"}, "nll does not use `loss` and `tokens`"),
        ({"name": "choice", "loss": "option", "tokens": "one"}, "compares no candidates"),
        ({"name": "accuracy"}, "nll"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(given, problem):
    with pytest.raises(ValidationError, match=problem):
        ObjectiveConfig(**given)
