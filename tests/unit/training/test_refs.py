"""On which data references are scored, and what is said where two runs disagree."""

from __future__ import annotations

import json
import shutil

import pytest

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.data.dataset import load_splits
from weft.formats.peft import write_adapter
from weft.model.adapter import initial_adapter
from weft.model.base import load_base
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites
from weft.training.refs import (
    Place,
    data_for,
    differences,
    locate,
    open_subject,
    settled_by,
)
from weft.training.resolve import resolve


def place(ref="run", *overrides):
    return Place(ref, None, {}, config=resolve("instruct", overrides).config)


@pytest.fixture
def rows(tmp_path):
    """A function that writes rows."""

    def write(*values, name="mine.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return path

    return write


BOTH = {"text": "the cat", "prompt": "the", "completion": " cat"}


def test_rows_of_a_file_are_read_like_the_runs_where_they_can_be(rows):
    run = place("run", "data.path=train.jsonl", "data.format=text", "data.max_length=64")
    found = data_for([run], path=rows(BOTH))
    assert (found.format, found.max_length) == ("text", 64)
    assert data_for([run], path=rows({"prompt": "a", "completion": "b"})).format == "auto"
    assert data_for([run], task="tables").format == "auto"


def test_questions_are_read_like_the_runs_and_plain_text_is_not(rows):
    run = place("run", "data.path=train.jsonl", "data.format=tables")
    question = {"text": "table: t\ncolumns: a\nQ: what\nA: SELECT a FROM t"}
    assert data_for([run], path=rows(question)).format == "tables"
    assert data_for([run], path=rows({"text": "the cat"})).format == "auto"


def test_a_chat_template_goes_with_messages_only(rows):
    run = place("run", "data.path=train.jsonl", "data.chat_template=mine.jinja")
    turns = [{"role": role, "content": "hello"} for role in ("user", "assistant")]
    assert str(data_for([run], path=rows({"messages": turns})).chat_template) == "mine.jinja"
    assert data_for([run], path=rows(BOTH)).chat_template is None


def test_prompts_are_put_into_a_chat_as_the_runs_were_where_they_can_be(rows):
    template = "data.chat_template=mine.jinja"
    run = place("run", "data.path=train.jsonl", "data.chat=true", template)
    for row in ({"prompt": "a", "completion": "b"}, {"prompt": "a"}):
        found = data_for([run], path=rows(row))
        assert (found.chat, str(found.chat_template)) == (True, "mine.jinja")
    plain = data_for([run], path=rows({"text": "the cat"}))
    assert (plain.chat, plain.chat_template) == (False, None)
    run = place("run", "data.task=countdown", "data.chat=true")
    assert data_for([run], task="countdown").chat
    assert not data_for([run], task="conciseness").chat


def test_a_runs_own_words_go_with_rows_of_its_format_only(rows):
    film = {"sentence": "a film", "label": 1}
    pair = {"premise": "a", "hypothesis": "b", "label": "entailment"}
    path = rows(film, name="train.jsonl")
    words = "data.verbalizers=[bad, good]"
    for known in (f"data.path={path}", "data.task=reviews"):
        run = place("run", known, words)
        assert data_for([run], path=rows(film)).verbalizers == ("bad", "good")
        assert data_for([run], path=rows(pair)).verbalizers is None
        assert data_for([run], task="tables").verbalizers is None
    assert data_for([run], task="reviews").verbalizers == ("bad", "good")
    gone = place("run", "data.path=nowhere.jsonl", words)
    assert data_for([gone], path=rows(film)).verbalizers is None


def test_nothing_is_held_out_of_a_saved_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    values = [{"prompt": f"the {i}", "completion": " cat"} for i in range(20)]
    datasets.Dataset.from_list(values).save_to_disk(str(tmp_path / "saved"))
    config = data_for([place()], path=tmp_path / "saved")
    from weft.data.tokenizer import load_tokenizer

    found = load_splits(config, load_tokenizer("weft/tiny"), ("valid",))["valid"]
    assert len(found.items) == 20


def test_what_two_runs_say_differently_is_named():
    a = place("a", "data.max_length=64")
    b = place("b", "dtype=bfloat16", "data.task=tables")
    found = differences([a, b])
    assert [text.split("`")[1] for text in found] == ["dtype", "data.task", "data.max_length"]
    assert found[2] == ("`data.max_length` differs: 64 in a, 512 in b; both are scored with 64")
    assert differences([a, Place("base", None, {})]) == ()
    left = differences([a, b], settled_by(dtype="float32", task="tables"))
    assert [text.split("`")[1] for text in left] == ["data.max_length"]


def test_a_stored_configuration_that_is_out_of_date_is_no_traceback(tmp_path):
    config = resolve("instruct").config.model_dump(mode="json") | {"gone": 1}
    manifest = {"name": "old", "config": config}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="gone: no such key"):
        locate(str(tmp_path))


@pytest.fixture
def adapter(tmp_path, small_base):
    """An adapter over the small base, in a directory of its own."""
    base = load_base(small_base)
    layout = choose_sites(base.sites, AdapterConfig(rank=2))
    directory = tmp_path / "mine"
    write_adapter(initial_adapter(layout, Key.of(0)), directory, base_ref=small_base)
    return directory


def test_an_adapter_with_the_configuration_of_its_base_is_an_adapter(adapter, small_base):
    shutil.copy(f"{small_base}/config.json", adapter)
    assert locate(str(adapter)).adapters == {str(adapter): adapter}


def test_a_base_with_an_adapter_in_it_is_no_base_to_run(adapter, small_base):
    both = shutil.copytree(small_base, adapter.parent / "both")
    for file in adapter.iterdir():
        shutil.copy(file, both)
    with pytest.raises(InputError, match=r"also holds an adapter's adapter_config\.json"):
        open_subject([str(both)])


@pytest.mark.parametrize("parts", [("adapter", "adapter_model.safetensors"), ("adapter",), ()])
@pytest.mark.parametrize("member", [(), ("members", "seed-1")])
def test_an_adapter_of_a_run_has_the_runs_base_wherever_one_stands(
    adapter, small_base, tmp_path, monkeypatch, parts, member
):
    config = resolve("instruct", [f"base={small_base}"]).config.model_dump(mode="json")
    run = tmp_path / "run"
    place = run.joinpath(*member)
    shutil.copytree(adapter, place / "adapter")
    manifest = {"name": "run", "config": config, "fingerprints": {"base": "0"}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    path = place.joinpath(*parts)
    assert locate(str(path)).origin.sha256 == "0"
    monkeypatch.chdir(path if path.is_dir() else path.parent)
    assert locate("." if path.is_dir() else path.name).origin.sha256 == "0"


def test_what_lies_below_a_directory_is_suggested(adapter):
    with pytest.raises(InputError, match=rf"did you mean {adapter}\?"):
        locate(str(adapter.parent))
