"""What every entry of `TASKS` promises. A new task is tested by being in the dict."""

import pytest

from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.tasks import TASKS
from weft.data.tokenizer import load_tokenizer

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module", params=sorted(TASKS))
def splits(request):
    return load_splits(DataConfig(task=request.param), load_tokenizer("weft/tiny"), SPLITS)


def test_every_row_is_used(splits):
    for split in splits.values():
        assert split.counts["kept"] == split.counts["read"] > 0
        assert split.counts["truncated"] == 0


def test_no_prompt_with_its_answer_is_in_two_splits(splits):
    seen = [{(item.prompt, item.reference) for item in splits[name].items} for name in SPLITS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_only_the_response_is_supervised_and_it_ends(splits):
    tokenizer = load_tokenizer("weft/tiny")
    for split in splits.values():
        for item in split.items[:50]:
            ids, labels = item.example.ids_T, item.example.labels_T
            assert (labels[: item.prompt_length] == -100).all()
            assert (labels[item.prompt_length :] == ids[item.prompt_length :]).all()
            assert ids[-1] == tokenizer.eos_token_id
            said = tokenizer.decode(ids[item.prompt_length :], skip_special_tokens=True)
            assert said == item.reference


def test_the_metrics_can_be_measured(splits):
    task = splits["valid"].task
    assert task.metric in {"token_accuracy", "choice", "reward", *task.judges}
    for split in splits.values():
        for item in split.items:
            choice = item.example.choice
            assert (choice is not None) == bool(task.candidates)
            if choice is not None:
                assert task.candidates[choice.right] == item.reference
            for accepts in task.judges.values():
                assert accepts(item.prompt, item.reference, f" {item.reference}\n")
                assert not accepts(item.prompt, item.reference, item.reference[:-3])
                assert not accepts(item.prompt, item.reference, "")


def test_the_same_rows_have_the_same_fingerprint(splits):
    split = splits["valid"]
    again = load_splits(DataConfig(task=split.task.name), load_tokenizer("weft/tiny"), ("valid",))
    assert again["valid"].fingerprint == split.fingerprint
    assert again["valid"].fingerprint != splits["test"].fingerprint
