"""Which objective a configuration means for the rows at hand, and what is refused."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

import weft
from tests.conftest import WORDS
from weft.core.errors import InputError
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.tokenizer import load_tokenizer
from weft.model.config import ChoiceConfig, NllConfig, ObjectiveConfig
from weft.model.objectives import MEANS, ONE_TOKEN, OPTION, TOKENS
from weft.runs.reader import RunReader
from weft.training.objective import objective_for
from weft.training.train import train

CHOICE = ChoiceConfig()


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
    assert objective_for(NllConfig(), reviews) == (TOKENS, ())


def test_a_choice_is_at_one_position_where_every_candidate_is_one_token(reviews):
    assert objective_for(CHOICE, reviews) == (ONE_TOKEN, ())
    assert objective_for(ChoiceConfig(tokens="one"), reviews) == (ONE_TOKEN, ())
    assert objective_for(ChoiceConfig(tokens="mean"), reviews) == (MEANS, ())
    assert objective_for(ChoiceConfig(loss="option"), reviews) == (OPTION, ())


def test_a_choice_that_must_compare_means_says_why(long_reviews):
    objective, (notice,) = objective_for(CHOICE, long_reviews)
    long = next(c for c in long_reviews["valid"].candidates if len(c.ids) > 1)
    assert objective is MEANS
    assert f"because {long.text!r} is {len(long.ids)} tokens: " in notice
    for piece, id in zip(long.pieces, long.ids, strict=True):
        assert f"{piece} ({id})" in notice
    silent = ChoiceConfig(tokens="mean")
    assert objective_for(silent, long_reviews) == (MEANS, ())


def test_one_position_for_several_tokens_is_refused_by_word_token_and_id(long_reviews):
    with pytest.raises(InputError) as caught:
        objective_for(ChoiceConfig(tokens="one"), long_reviews)
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


def test_a_run_is_scored_by_its_own_objective_later_too(resolved, rows_dir, tmp_path):
    rows = [{"sentence": f"the {w} sat", "label": i % 2} for i, w in enumerate(WORDS * 2)]
    path = tmp_path / "films.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = (f"data.path={path}", f"data.valid_path={path}", "data.verbalizers=[cat, mat]")
    train(resolved(*data, "objective.name=choice", "eval.every=6"), tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    kept = reader.results("eval")
    assert (kept["objective"], kept["metrics"]) == ("choice", ["choice"])
    (later,) = weft.evaluate(tmp_path / "run").values()
    assert later["eval_loss"] == pytest.approx(kept["eval_loss"], rel=1e-6)
    assert later["choice"] == kept["choice"]
    assert max(step["loss"] for step in reader.steps()) < 3, "of two candidates, not of all tokens"
    said = []
    (other,) = weft.evaluate(tmp_path / "run", data=rows_dir, notice=said.append).values()
    assert (other["objective"], other["metrics"]) == ("nll", ["token_accuracy"])
    assert any("these rows have no candidates: the loss is that of tokens" in s for s in said)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"loss": "option"}, "discriminator"),
        ({"name": "nll", "tokens": "one"}, "nll.tokens\n"),
        ({"name": "reward", "decoding": {"seed": 3}}, "the run's own `seed` draws"),
        ({"name": "choice", "loss": "option", "tokens": "one"}, "compares no candidates"),
        ({"name": "accuracy"}, "nll"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(given, problem):
    with pytest.raises(ValidationError, match=problem):
        TypeAdapter(ObjectiveConfig).validate_python(given)
