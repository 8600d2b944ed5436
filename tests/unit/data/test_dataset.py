"""From a configuration to splits: what is kept, what is dropped, and what is said about it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from weft.core.batch import IGNORE
from weft.core.errors import InputError
from weft.core.keys import Key
from weft.data.config import DataConfig
from weft.data.dataset import available_splits, held_out, load_splits
from weft.data.split import Split
from weft.data.tasks import TASKS

Write = Callable[..., Path]
Tokenizer = PreTrainedTokenizerFast


def pairs(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Q {i}:", "completion": f" answer {i}"} for i in range(1, n + 1)]


def train(path: Path, tokenizer: Tokenizer, context: int | None = None, **config: Any) -> Split:
    given = {"valid_fraction": 0} | config
    return load_splits(DataConfig(path=path, **given), tokenizer, ("train",), context)["train"]


def test_examples_rows_and_texts_are_aligned(write_rows: Write, gpt2: Tokenizer) -> None:
    split = train(write_rows(*pairs(3)), gpt2)
    assert [e.id for e in split.examples] == ["train:1", "train:2", "train:3"]
    assert split.rows == tuple(pairs(3))
    assert split.prompts == ("Q 1:", "Q 2:", "Q 3:")
    assert split.references == (" answer 1", " answer 2", " answer 3")
    for item in split.items:
        assert gpt2.decode(item.prompt_ids) == item.prompt
        supervised = item.example.labels_T[item.example.labels_T != IGNORE]
        assert gpt2.decode(supervised) == item.reference + "</s>"


def test_counts_add_up(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows(*pairs(2), "", "{", {"prompt": "Q", "completion": ""}, *pairs(1))
    counts = train(path, gpt2, on_bad_row="skip").counts
    assert counts["read"] == counts["bad"] + counts["dropped_truncated"] + counts["kept"] == 5
    assert (counts["blank"], counts["bad"], counts["kept"]) == (1, 2, 3)


def test_tokens_are_counted(write_rows: Write, gpt2: Tokenizer) -> None:
    split = train(write_rows(*pairs(4)), gpt2)
    lengths = [len(e.ids_T) for e in split.examples]
    assert split.counts["tokens"] == sum(lengths)
    assert split.counts["longest"] == max(lengths)
    assert split.counts["supervised_tokens"] == sum(e.supervised for e in split.examples)


# Formats


def test_the_format_is_found_and_said(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows(*pairs(2))
    split = train(path, gpt2)
    assert split.task.name == "prompt_completion"
    assert split.notices == (f"format prompt_completion, by the fields of {path}:1",)


def test_a_given_format_is_not_guessed(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows({"text": "a film", "sentence": "a film", "label": 1})
    assert train(path, gpt2).task.metric == "choice"
    split = train(path, gpt2, format="text")
    assert (split.task.name, split.prompts, split.notices) == ("text", ("",), ())


def question(table: str = "1-1", column: str = "Name") -> dict[str, str]:
    head = "table: 1-1\ncolumns: Name, Age\nQ: Who is 3?\nA: "
    return {"text": f"{head}SELECT {column} FROM {table} WHERE Age = 3"}


def test_texts_that_ask_about_a_table_are_known_by_their_lines(
    write_rows: Write, gpt2: Tokenizer
) -> None:
    path = write_rows(question(), question(column="Age"))
    split = train(path, gpt2)
    assert split.notices == (f"format tables, by the text of {path}:1",)
    assert split.task.name == "tables"
    assert split.prompts[0].endswith("\nA: ")
    assert split.references[0] == "SELECT Name FROM 1-1 WHERE Age = 3"
    assert train(path, gpt2, format="text").prompts == ("", "")
    plain = write_rows({"text": "table: we sat at it"}, {"text": "columns: of marble"})
    assert train(plain, gpt2).task.name == "text"


def test_a_question_on_another_table_is_a_bad_row(write_rows: Write, gpt2: Tokenizer) -> None:
    """One broken or plain row does not turn the others into plain text."""
    rows = [{"text": "plain"}, question(), question(table="1-2"), question(column="Size")]
    path = write_rows(*rows)
    with pytest.raises(InputError) as caught:
        train(path, gpt2)
    assert caught.value.problem.splitlines()[1:] == [
        f"  {path}:1: line 1 of `text` must be `table: ...`, is `plain`",
        f"  {path}:3: the query reads FROM `1-2`, and the row's table is 1-1",
        f"  {path}:4: the query selects `Size`, and the row's columns are Name, Age",
    ]
    assert caught.value.hint is not None
    guess = f"this is format tables, by the text of {path}:2, and `data.format` can say otherwise"
    assert caught.value.hint.endswith(guess)
    split = train(path, gpt2, on_bad_row="skip")
    assert (split.counts["bad"], [e.id for e in split.examples]) == (3, ["train:2"])
    with pytest.raises(InputError, match="is `plain`"):
        train(write_rows({"text": "plain"}), gpt2, format="tables")


def test_settings_that_a_format_has_no_use_for_are_not_ignored_in_silence(
    write_rows: Write, gpt2: Tokenizer, tmp_path: Path
) -> None:
    path = write_rows({"input_ids": [70, 71]})
    said = train(path, gpt2, train_on_prompt=True).notices
    assert "`data.train_on_prompt` has no effect: `labels` are used as they are" in said
    with pytest.raises(InputError, match=r"`data\.chat_template` applies to `messages`"):
        train(path, gpt2, chat_template=tmp_path / "chat.jinja")


# Candidates


def film(label: object = 1, sentence: str = "a film") -> dict[str, Any]:
    return {"sentence": sentence, "label": label}


@pytest.mark.parametrize("kind", ["gpt2", "both"])
def test_a_row_with_candidates_has_its_choice_beside_what_it_always_had(
    kind: str, write_rows: Write, tokenizer_of: Callable[..., Tokenizer]
) -> None:
    tokenizer = tokenizer_of(kind)
    split = train(write_rows(film(0), film(1, "a film of two")), tokenizer)
    assert [c.text for c in split.candidates] == [" terrible", " great"]
    for right, item in enumerate(split.items):
        choice = item.example.choice
        assert choice is not None
        assert choice.right == right
        assert choice.prompt_T.tolist() == item.prompt_ids.tolist()
        assert tokenizer.decode(choice.prompt_T, skip_special_tokens=True) == item.prompt
        for candidate, ids in zip(split.candidates, choice.candidates, strict=True):
            assert candidate.ids == ids
            assert tokenizer.decode(ids) == candidate.text
        answer = [*choice.candidates[right], tokenizer.eos_token_id]
        assert item.example.ids_T[item.prompt_length :].tolist() == answer
        assert item.reference == split.candidates[right].text


def test_rows_without_candidates_have_no_choice(write_rows: Write, gpt2: Tokenizer) -> None:
    split = train(write_rows(*pairs(2)), gpt2)
    assert split.candidates == ()
    assert [e.choice for e in split.examples] == [None, None]


def test_a_supervised_prompt_and_a_padding_target_change_no_choice(
    write_rows: Write, gpt2: Tokenizer
) -> None:
    path = write_rows(film())
    plain, other = (
        train(path, gpt2, **settings).examples[0]
        for settings in ({}, {"train_on_prompt": True, "pad_target": True})
    )
    assert plain.choice is not None and other.choice is not None
    assert other.tokens == plain.tokens + 1
    assert other.choice.prompt_T.tolist() == plain.choice.prompt_T.tolist()
    assert other.choice.candidates == plain.choice.candidates


def test_no_row_stays_of_which_a_candidate_would_be_cut(write_rows: Write, gpt2: Tokenizer) -> None:
    """The prompt of the first row fits and that of the second does not; one token is too few."""
    path = write_rows(film(), film(sentence="a film " * 20))
    short = train(write_rows(film(), name="short.jsonl"), gpt2)
    prompt = short.items[0].prompt_length
    longest = max(len(c.ids) for c in short.candidates)
    split = train(path, gpt2, max_length=prompt + longest)
    assert [e.id for e in split.examples] == ["train:1"]
    assert split.counts["dropped_truncated"] == 1
    assert (
        f"train: rows dropped, with no room for every candidate within {prompt + longest} tokens: 1"
        in split.notices
    )
    words = ("great", "terrible" * 5)
    with pytest.raises(InputError, match="1 without room for every candidate within"):
        train(write_rows(film(0), name="one.jsonl"), gpt2, max_length=prompt + 2, verbalizers=words)


def test_other_words_are_chosen_between_and_supervised(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows(film(0), film(1))
    split = train(path, gpt2, verbalizers=("bad", "good"))
    assert split.references == (" bad", " good")
    assert split.task.candidates == (" bad", " good")
    assert [gpt2.decode(c.ids) for c in split.candidates] == [" bad", " good"]
    task = load_splits(DataConfig(task="reviews", verbalizers=("bad", "good")), gpt2, ("test",))
    assert set(task["test"].references) == {" bad", " good"}
    assert TASKS["reviews"].candidates == (" terrible", " great")


def test_words_that_cannot_be_chosen_between_are_refused(
    write_rows: Write, gpt2: Tokenizer, metaspace: Tokenizer
) -> None:
    path = write_rows(film())
    with pytest.raises(InputError, match=r"sst2 has 2 labels, and .* 3: a, b, c"):
        train(path, gpt2, verbalizers=("a", "b", "c"))
    with pytest.raises(InputError, match="format prompt_completion has no candidates"):
        train(write_rows(*pairs(1), name="pairs.jsonl"), gpt2, verbalizers=("a", "b"))
    with pytest.raises(InputError, match=r"' ü' and ' ö' are the same tokens: .*<unk>") as caught:
        train(path, metaspace, verbalizers=("ü", "ö"))
    assert "data.verbalizers" in (caught.value.hint or "")


def test_the_largest_id_is_of_candidates_too(write_rows: Write, gpt2: Tokenizer) -> None:
    split = train(write_rows(film(0)), gpt2)
    others = max(i for c in split.candidates for i in c.ids)
    assert split.largest_id == max(others, *(e.ids_T.max() for e in split.examples))
    assert (
        dataclasses.replace(
            split, candidates=(dataclasses.replace(split.candidates[1], ids=(10_000,)),)
        ).largest_id
        == 10_000
    )


GLUE = {
    "sst2": 'sentence\tlabel\na warm film \t1\nno "good\t0\n',
    "rte": "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tentailment\n1\tA.\tC.\tnot_entailment\n",
}


@pytest.mark.parametrize(
    ("name", "references"), [("sst2", (" great", " terrible")), ("rte", ("Yes", "No"))]
)
def test_files_of_glue_are_read_as_they_are(
    name: str, references: tuple[str, ...], gpt2: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "train.tsv").write_text(GLUE[name])
    (tmp_path / "dev.tsv").write_text(GLUE[name])
    splits = load_splits(DataConfig(path=tmp_path), gpt2, ("train", "valid"))
    assert splits["train"].task.name == name
    assert [split.references for split in splits.values()] == [references] * 2


def test_rows_of_glue_without_labels_are_said_to_be_that(
    write_rows: Write, gpt2: Tokenizer
) -> None:
    with pytest.raises(
        InputError, match=r"rows\.jsonl:2: field `label` is -1: the row has no label"
    ):
        train(write_rows(film(), film(-1)), gpt2)


def test_a_row_of_another_format_is_a_bad_row(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows({"text": "a film"}, *pairs(1))
    with pytest.raises(InputError) as caught:
        train(path, gpt2)
    assert f"{path}:2: field `text` is missing (found: prompt, completion)" in str(caught.value)


def test_a_saved_dataset_that_is_tokenised(tmp_path: Path, gpt2: Tokenizer) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"input_ids": [70, 71, 72], "labels": [-100, 71, 72], "attention_mask": [1, 1, 1]},
        {"input_ids": [73, 74], "labels": [-100, 74], "attention_mask": [1, 1]},
    ]
    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows), "validation": datasets.Dataset.from_list(rows)}
    )
    saved.save_to_disk(tmp_path / "saved")
    splits = load_splits(DataConfig(path=tmp_path / "saved"), gpt2)
    for name, split in splits.items():
        assert split.task.name == "tokenized"
        assert [e.id for e in split.examples] == [f"{name}:1", f"{name}:2"]
        assert split.examples[0].labels_T.tolist() == [-100, 71, 72]


# Bad rows


def test_a_run_stops_at_bad_rows_with_the_first_five_and_the_total(
    write_rows: Write, gpt2: Tokenizer
) -> None:
    path = write_rows(*pairs(1), *['{"prompt": "Q"}'] * 7, "{", {"prompt": 1, "completion": "x"})
    with pytest.raises(InputError) as caught:
        train(path, gpt2)
    missing = "field `completion` is missing (found: prompt)"
    assert caught.value.problem.splitlines() == [
        "9 rows cannot be used:",
        *[f"  {path}:{line}: {missing}" for line in range(2, 7)],
        "  and 4 more",
    ]
    assert "`data.on_bad_row=skip`" in (caught.value.hint or "")


def test_problems_of_all_kinds_and_splits_come_together_in_order(
    write_rows: Write, chat: Tokenizer
) -> None:
    good = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    for name in ("train", "valid"):
        write_rows({"messages": good}, {"messages": good[:1]}, "{", name=f"d/{name}.jsonl")
    folder = write_rows(name="d/test.jsonl").parent
    with pytest.raises(InputError) as caught:
        load_splits(DataConfig(path=folder), chat)
    places = [line.split(": ")[0].strip() for line in caught.value.problem.splitlines()[1:]]
    assert places == [f"{folder}/{name}.jsonl:{n}" for name in ("train", "valid") for n in (2, 3)]


def test_skipped_rows_are_counted_and_said(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows(*pairs(1), "{", '{"prompt": "Q"}', *pairs(1))
    split = train(path, gpt2, on_bad_row="skip")
    assert [e.id for e in split.examples] == ["train:1", "train:4"]
    (said,) = (notice for notice in split.notices if notice.startswith("train:"))
    assert said.startswith(f"train: bad rows skipped: 2, the first: {path}:2: broken JSON")


def test_a_row_with_nothing_to_supervise_is_bad(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows({"input_ids": [70, 71], "labels": [-100, -100]})
    with pytest.raises(InputError, match=":1: no token is supervised"):
        train(path, gpt2)


def test_a_file_of_bad_rows_only_cannot_be_skipped_away(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows("{", "{")
    with pytest.raises(InputError, match="2 rows cannot be used"):
        train(path, gpt2, on_bad_row="skip")
    path = write_rows({"text": ""})
    with pytest.raises(InputError, match="no train rows are left: 1 read, 1 bad"):
        train(path, gpt2, on_bad_row="skip")


def test_an_empty_file_has_no_rows(write_rows: Write, gpt2: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl has no rows"):
        train(write_rows(), gpt2)


# Length


def test_a_response_is_cut_but_never_lost_in_silence(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows(
        {"prompt": "short", "completion": " x"},
        {"prompt": "short", "completion": " a very long answer" * 10},
        {"prompt": "a very long question" * 10, "completion": " x"},
    )
    split = train(path, gpt2, max_length=24)
    assert [e.id for e in split.examples] == ["train:1", "train:2"]
    assert [item.truncated for item in split.items] == [False, True]
    assert split.examples[1].tokens == split.counts["longest"] == 24
    assert split.references[1] == " a very long answer" * 10  # the reference stays whole
    assert (split.counts["dropped_truncated"], split.counts["truncated"]) == (1, 1)
    assert split.notices[1:] == (
        "train: rows dropped, with no response within 24 tokens: 1",
        "train: rows cut to 24 tokens: 1",
    )


@pytest.mark.parametrize("train_on_prompt", [False, True])
@pytest.mark.parametrize("spare", [0, 1])
def test_one_token_of_the_response_is_enough_to_keep_a_row(
    write_rows: Write, gpt2: Tokenizer, spare: int, train_on_prompt: bool
) -> None:
    """A prompt alone is not, even where it is supervised."""
    path = write_rows({"prompt": "a question", "completion": " and its answer"}, *pairs(1))
    whole = train(path, gpt2).items[0]
    max_length = whole.prompt_length + spare
    cut = train(path, gpt2, max_length=max_length, train_on_prompt=train_on_prompt)
    assert ("train:1" in [e.id for e in cut.examples]) == bool(spare)
    assert cut.counts["dropped_truncated"] == 1 - spare


def test_no_example_exceeds_the_models_context(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows({"text": "It was great. " * 50})
    split = train(path, gpt2, context=16, max_length=100)
    assert split.max_length == split.examples[0].tokens == 16
    assert (
        "`data.max_length` is 100 and the model's context is 16 tokens: 16 is used" in split.notices
    )
    assert train(path, gpt2, context=16, max_length=8).max_length == 8


def test_when_no_row_fits_the_hint_is_the_length(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows({"prompt": "a long question", "completion": " x"})
    with pytest.raises(InputError) as caught:
        train(path, gpt2, max_length=2)
    assert "1 without response within 2 tokens" in caught.value.problem
    assert caught.value.hint == "raise `data.max_length`"


# Splits


def test_a_single_file_holds_out_validation_rows(write_rows: Write, gpt2: Tokenizer) -> None:
    config = DataConfig(path=write_rows(*pairs(50)))
    splits = load_splits(config, gpt2)
    ids = {name: [e.id for e in split.examples] for name, split in splits.items()}
    assert (len(ids["train"]), len(ids["valid"])) == (45, 5)
    assert {*ids["train"], *ids["valid"]} == {f"train:{i}" for i in range(1, 51)}
    assert "5 of 50 training rows are held out" in " ".join(splits["train"].notices)


def test_a_split_does_not_depend_on_which_others_are_asked(
    write_rows: Write, gpt2: Tokenizer
) -> None:
    config = DataConfig(path=write_rows(*pairs(20)))
    both = load_splits(config, gpt2)
    for name in both:
        alone = load_splits(config, gpt2, (name,))[name]
        assert alone.fingerprint == both[name].fingerprint


def test_held_out_rows_are_a_pure_function_of_key_and_number() -> None:
    key = Key.of(0)
    assert held_out(key, 100, 0.1) == held_out(key, 100, 0.1) != held_out(Key.of(1), 100, 0.1)
    assert [len(held_out(key, n, 0.1)) for n in (1, 2, 3, 10, 25)] == [0, 1, 1, 1, 2]
    assert len(held_out(key, 3, 0.99)) == 2  # never all


def test_rows_limits_training_and_leaves_validation_as_it_is(
    write_rows: Write, gpt2: Tokenizer
) -> None:
    path = write_rows(*pairs(50))
    whole, limited = (load_splits(DataConfig(path=path, rows=rows), gpt2) for rows in (None, 10))
    assert limited["train"].rows == whole["train"].rows[:10]
    assert limited["train"].counts["read"] == 10
    assert limited["valid"].fingerprint == whole["valid"].fingerprint


def test_a_folder_of_files(write_rows: Write, gpt2: Tokenizer) -> None:
    write_rows(*pairs(3), name="d/train.jsonl")
    write_rows(*pairs(2), name="d/validation.jsonl")
    config = DataConfig(path=write_rows(*pairs(1), name="d/test.jsonl").parent)
    splits = load_splits(config, gpt2, ("train", "valid", "test"))
    assert [len(split.examples) for split in splits.values()] == [3, 2, 1]
    assert splits["valid"].examples[0].id == "valid:1"
    assert available_splits(config) == ("train", "valid", "test")


def test_files_may_be_named_one_by_one(write_rows: Write, gpt2: Tokenizer) -> None:
    config = DataConfig(
        path=write_rows(*pairs(3)),
        valid_path=write_rows(*pairs(2), name="v.jsonl"),
        test_path=write_rows(*pairs(1), name="t.jsonl"),
    )
    splits = load_splits(config, gpt2, ("train", "valid", "test"))
    assert [len(split.examples) for split in splits.values()] == [3, 2, 1]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["train.jsonl", "train.json"], "has several train files: train.jsonl, train.json"),
        (["rows.jsonl"], r"holds no train, valid or test rows \(found: rows.jsonl\)"),
    ],
)
def test_folders_that_do_not_say_what_to_read(
    write_rows: Write, gpt2: Tokenizer, names: list[str], problem: str
) -> None:
    paths = [write_rows(*pairs(2), name=f"d/{name}") for name in names]
    with pytest.raises(InputError, match=problem):
        load_splits(DataConfig(path=paths[0].parent), gpt2)


def test_a_split_given_twice_is_a_contradiction(write_rows: Write, gpt2: Tokenizer) -> None:
    write_rows(*pairs(2), name="d/train.jsonl")
    valid = write_rows(*pairs(2), name="d/valid.jsonl")
    with pytest.raises(InputError, match=r"`data\.valid_path` is .* already holds"):
        load_splits(DataConfig(path=valid.parent, valid_path=valid), gpt2)


def test_a_split_that_is_not_there_is_named(write_rows: Write, gpt2: Tokenizer) -> None:
    config = DataConfig(path=write_rows(*pairs(3)))
    with pytest.raises(InputError) as caught:
        load_splits(config, gpt2, ("test",))
    assert caught.value.problem == "there are no test rows: the data has train, valid"
    assert caught.value.hint == "give them as `data.test_path`"
    none = DataConfig(path=config.path, valid_fraction=0)
    assert available_splits(none) == ("train",)


def test_a_path_that_does_not_exist_is_named_with_its_key(tmp_path: Path, gpt2: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"`data\.path`: there is no file or folder .*gone"):
        load_splits(DataConfig(path=tmp_path / "gone.jsonl"), gpt2)


def test_one_row_cannot_be_held_out(write_rows: Write, gpt2: Tokenizer) -> None:
    with pytest.raises(InputError, match="no valid rows are left: 0 read"):
        load_splits(DataConfig(path=write_rows(*pairs(1))), gpt2)


def test_a_bundled_task_is_read_from_its_directory(
    write_rows: Write, gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"text": "table: t\ncolumns: Name\nQ: Who?\nA: SELECT Name FROM t"}
    for name in ("train", "valid", "test"):
        folder = write_rows(row, name=f"tables/{name}.jsonl").parent
    task = dataclasses.replace(TASKS["tables"], directory=folder)
    monkeypatch.setitem(TASKS, "tables", task)
    splits = load_splits(DataConfig(task="tables"), gpt2, ("train", "test"))
    assert splits["test"].references == ("SELECT Name FROM t",)
    assert splits["train"].task is task
    assert splits["train"].notices == ()


# Fingerprints


def test_the_fingerprint_is_of_tokens_and_labels(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows(*pairs(3))
    first = train(path, gpt2)
    assert train(path, gpt2).fingerprint == first.fingerprint
    assert train(path, gpt2, train_on_prompt=True).fingerprint != first.fingerprint
    assert train(path, gpt2, append_eos=False).fingerprint != first.fingerprint


def test_the_largest_id_is_of_tokens_and_labels(write_rows: Write, gpt2: Tokenizer) -> None:
    rows = [{"input_ids": [9, 5], "labels": [9, 5]}, {"input_ids": [8, 7], "labels": [-100, 7]}]
    assert train(write_rows(*rows), gpt2).largest_id == 9
    labelled = {"input_ids": [2, 3], "labels": [-100, 11]}
    assert train(write_rows(*rows, labelled), gpt2).largest_id == 11


def test_the_fingerprint_is_that_of_the_rows_one_by_one(
    write_rows: Write, gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Length, ids and labels of each, in its order, however many are hashed together."""
    split = train(write_rows(*pairs(5)), gpt2)
    digest = hashlib.sha256()
    for example in split.examples:
        for numbers in ([example.tokens], example.ids_T, example.labels_T):
            digest.update(np.array(numbers).astype("<i8").tobytes())
    assert split.fingerprint == digest.hexdigest()
    largest = max(int(max(e.ids_T.max(), e.labels_T.max())) for e in split.examples)
    monkeypatch.setattr("weft.data.split.TOGETHER", 2)
    in_pairs = dataclasses.replace(split)
    assert (in_pairs.fingerprint, in_pairs.largest_id) == (digest.hexdigest(), largest)


def test_the_rows_fingerprint_is_of_the_rows_only(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows(*pairs(3))
    first = train(path, gpt2)
    assert train(path, gpt2, append_eos=False).rows_fingerprint == first.rows_fingerprint
    again = [dict(reversed(row.items())) for row in pairs(3)]  # the order of fields is no content
    assert train(write_rows(*again), gpt2).rows_fingerprint == first.rows_fingerprint
    changed = write_rows(*pairs(2), pairs(3)[2] | {"note": "x"})
    assert train(changed, gpt2).rows_fingerprint != first.rows_fingerprint
    assert train(changed, gpt2).fingerprint == first.fingerprint


def test_moving_a_token_between_rows_changes_the_fingerprint(
    write_rows: Write, gpt2: Tokenizer
) -> None:
    one = write_rows({"input_ids": [70, 71, 72]}, {"input_ids": [73, 74]}, name="1.jsonl")
    two = write_rows({"input_ids": [70, 71]}, {"input_ids": [72, 73, 74]}, name="2.jsonl")
    assert train(one, gpt2).fingerprint != train(two, gpt2).fingerprint


def test_every_kind_of_file_gives_the_same_examples(
    write_rows: Write, tmp_path: Path, gpt2: Tokenizer
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = pairs(4)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    paths = (write_rows(*rows), tmp_path / "rows.json", tmp_path / "rows.parquet")
    splits = [train(path, gpt2) for path in paths]
    assert len({split.fingerprint for split in splits}) == 1
    assert len({split.rows_fingerprint for split in splits}) == 1
    np.testing.assert_array_equal(splits[0].examples[3].ids_T, splits[2].examples[3].ids_T)
