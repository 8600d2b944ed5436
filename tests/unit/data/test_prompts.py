"""Prompts as the model sees them, and what is wrong with the others."""

from __future__ import annotations

import json

import pytest

from weft.core.errors import InputError
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.prompts import Ask, Style, asked, conversations, encode_asks, read_asks
from weft.data.tokenizer import load_tokenizer

TALK = ({"role": "user", "content": "Hi!"},)


@pytest.fixture(scope="module")
def tiny():
    return load_tokenizer("weft/tiny")


@pytest.fixture(scope="module")
def with_bos():
    """The same tokenizer, with a beginning of sequence put before every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer("weft/tiny")
    tokenizer.bos_token = "<|pad|>"
    number = tokenizer.convert_tokens_to_ids("<|pad|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", number)]
    )
    return tokenizer


def one(tokenizer, said, **style):
    (prompt,) = encode_asks(tokenizer, [Ask("a", said)], Style(**style))
    return prompt


def test_a_text_is_what_the_tokenizer_makes_of_it(with_bos):
    prompt = one(with_bos, "Once upon")
    assert prompt.ids_T.tolist() == with_bos("Once upon")["input_ids"]
    assert (prompt.text, prompt.mode) == ("<|pad|>Once upon", "raw")


def test_special_tokens_can_be_left_out_or_be_ordinary_text(with_bos):
    bare = one(with_bos, "Once", options={"add_special_tokens": False})
    assert bare.ids_T.tolist() == with_bos("Once", add_special_tokens=False)["input_ids"]
    assert bare.text == "Once"
    spelled = "a<|endoftext|>b"
    assert with_bos.eos_token_id in one(with_bos, spelled).ids_T
    split = one(with_bos, spelled, options={"split_special_tokens": True})
    assert with_bos.eos_token_id not in split.ids_T
    assert with_bos.decode(split.ids_T[1:]) == spelled


def test_a_conversation_goes_through_the_chat_template(tiny):
    prompt = one(tiny, TALK)
    whole = tiny.apply_chat_template(list(TALK), add_generation_prompt=True, return_dict=False)
    assert prompt.ids_T.tolist() == whole
    assert (prompt.text, prompt.mode) == ("User: Hi!\nAssistant:", "chat")
    assert one(tiny, "Hi!", chat=True).text == prompt.text
    assert one(tiny, TALK, system="Be brief.").text == "System: Be brief.\n" + prompt.text


def test_a_template_of_ones_own_has_variables(tiny, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text("{{ mood }}{% if loud %}!{% endif %} {{ messages[0]['content'] }} ->")
    options = {"mood": "sad", "loud": True}
    assert one(tiny, TALK, chat_template=path, options=options).text == "sad! Hi! ->"


@pytest.mark.parametrize(
    ("said", "style", "problem"),
    [
        (TALK, {"chat": False}, "is a conversation"),
        ("Hi!", {"system": "Be brief."}, "--system is for conversations"),
        ("Hi!", {"options": {"enable_thinking": False}}, "no tokenizer option `enable_thinking`"),
        (TALK, {"options": {"eos_tokn": "x"}}, "did you mean `eos_token`"),
        ("Hi!", {"options": {"add_special_tokens": "no"}}, "true or false, is 'no'"),
        (({"role": "system", "content": "x"}, *TALK), {"system": "y"}, "a system message of its"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny, said, style, problem):
    with pytest.raises(InputError) as error:
        one(tiny, said, **style)
    assert problem in str(error.value)


def test_a_template_that_is_missing_or_refuses_is_named(tiny, small_base, tmp_path):
    with pytest.raises(InputError, match="the tokenizer has none"):
        one(load_tokenizer(small_base), TALK)
    path = tmp_path / "own.jinja"
    path.write_text("{{ raise_exception('no users here') }}")
    with pytest.raises(InputError, match=r"a: the chat template refuses.*no users here"):
        one(tiny, TALK, chat_template=path)
    with pytest.raises(InputError, match="--chat-template"):
        one(tiny, TALK, chat_template=tmp_path / "none.jinja")


def test_a_row_of_training_data_and_its_prompt_have_the_same_ids(tiny, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "Once upon", "completion": " a time"}
    answer = {"role": "assistant", "content": "Hello."}
    for value, said in ((row, "Once upon"), ({"messages": [*TALK, answer]}, TALK)):
        path.write_text(json.dumps(value))
        split = load_splits(DataConfig(path=path, valid_fraction=0), tiny, ("train",))["train"]
        assert split.items[0].prompt_ids.tolist() == one(tiny, said).ids_T.tolist()


def test_a_file_of_json_rows(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a\nb", "completion": "left alone"}, {"id": "mine", "messages": [*TALK]}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    asks, notices = read_asks(path)
    assert asks == [Ask("prompt:1", "a\nb"), Ask("mine", TALK)]
    assert notices == (f"{path}: blank lines that are no prompts: 1",)


def test_a_file_of_plain_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffüber \n\n two\r\n".encode())
    asks, notices = read_asks(path)
    assert asks == [Ask("prompt:1", "über "), Ask("prompt:3", " two")]
    assert "blank lines that are no prompts: 1" in notices[0]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.jsonl", b'{"prompt": "x"}\nnot json\n{"text": "y"}\n', "2 prompts cannot be used"),
        ("p.jsonl", b'{"text": "y"}', "p.jsonl:1: neither `prompt` nor `messages` (found: text)"),
        ("p.jsonl", b'{"prompt": 5}', "field `prompt` must be text, is a number"),
        ("p.jsonl", b'{"messages": []}', "`messages` must be a list of {role, content}"),
        ("p.jsonl", b'{"messages": [{"role": "user"}]}', "`messages[0].content` is missing"),
        ("p.jsonl", b"", "has no prompts"),
        ("p.txt", b"fine\n\xff\n", "p.txt:2: not UTF-8: byte 0xff at column 1"),
        ("p.txt", b"\n \n", "has no prompts"),
    ],
)
def test_what_cannot_be_used_in_a_file_is_named(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_asks(path)
    assert problem in str(error.value)
    assert path.name in str(error.value)


def test_a_conversation_must_wait_for_an_answer():
    assert conversations([TALK]) == [Ask("messages:1", TALK)]
    with pytest.raises(InputError, match=r"conversation 2: the last .* is the assistant's"):
        conversations([TALK, [*TALK, {"role": "assistant", "content": "Hello."}]])


def test_texts_are_numbered():
    assert asked(["a", "b"]) == [Ask("prompt:1", "a"), Ask("prompt:2", "b")]


@pytest.mark.parametrize("content", ["{{ messages[0]['content'] + 1 }}", "{{ 1 // 0 }}"])
def test_a_template_that_fails_as_a_program_is_said_to(tiny, tmp_path, content):
    (tmp_path / "own.jinja").write_text(content)
    with pytest.raises(InputError, match=r"refuses the messages: (TypeError|ZeroDivisionError): "):
        one(tiny, TALK, chat_template=tmp_path / "own.jinja")


def test_text_that_has_no_utf_8_form_is_refused(tiny):
    with pytest.raises(InputError, match="prompt:1 is not text: character 2 is half"):
        encode_asks(tiny, asked(["a\udcff"]))
