"""Ids and labels: what is supervised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from weft.core.batch import IGNORE
from weft.core.errors import InputError
from weft.data.config import DataConfig
from weft.data.rows import RowProblem
from weft.data.templates import Chat, Rendered, Tokens
from weft.data.tokens import Encoded, Encoder, encode_completions, encode_texts

BOS, EOS = 0, 1
PAIR = Rendered("The movie", " was great.")


def encoded(tokenizer: PreTrainedTokenizerFast, row: Any, **config: Any) -> Encoded:
    (result,) = Encoder.of(tokenizer, DataConfig(path=Path("r"), **config)).encode([row])
    assert isinstance(result, Encoded), result
    return result


def refusal(tokenizer: PreTrainedTokenizerFast, row: Any) -> str:
    (result,) = Encoder.of(tokenizer, DataConfig(path=Path("r"))).encode([row])
    assert isinstance(result, RowProblem)
    return str(result)


def bare(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("kind", "head"), [("gpt2", []), ("bos", [BOS]), ("eos", []), ("both", [BOS])]
)
def test_only_the_response_and_its_eos_are_supervised(
    tokenizer_of: Callable[..., PreTrainedTokenizerFast], kind: str, head: list[int]
) -> None:
    """Whatever the tokenizer puts around a text, a row has one BOS at most and one EOS."""
    tokenizer = tokenizer_of(kind)
    row = encoded(tokenizer, PAIR)
    prompt = head + bare(tokenizer, PAIR.prompt)
    answer = [*bare(tokenizer, PAIR.completion), EOS]
    assert row.ids_T.tolist() == prompt + answer
    assert row.labels_T.tolist() == [IGNORE] * len(prompt) + answer
    assert row.ids_T.dtype == row.labels_T.dtype == np.int64
    assert row.has_response
    assert row.prompt_length == len(prompt)


def test_a_tokenizer_without_pad_token_works(gpt2: PreTrainedTokenizerFast) -> None:
    assert gpt2.pad_token is None
    rows = [PAIR, Rendered("It", " was terrible. A warm and funny film.")]
    lengths = [len(r.ids_T) for r in Encoder.of(gpt2, DataConfig(path=Path("r"))).encode(rows)]
    assert lengths[0] != lengths[1]  # nothing is padded here


def test_an_eos_that_the_text_has_already_is_not_doubled(gpt2: PreTrainedTokenizerFast) -> None:
    row = encoded(gpt2, Rendered("The movie", " was great.</s>"))
    assert row.ids_T.tolist() == encoded(gpt2, PAIR).ids_T.tolist()


def test_append_eos_false_leaves_it_out(gpt2: PreTrainedTokenizerFast) -> None:
    row = encoded(gpt2, PAIR, append_eos=False)
    assert row.ids_T.tolist() == bare(gpt2, PAIR.prompt) + bare(gpt2, PAIR.completion)


def test_a_tokenizer_without_eos_is_told_how_to_go_on(
    tokenizer_of: Callable[..., PreTrainedTokenizerFast],
) -> None:
    tokenizer = tokenizer_of(eos_token=None)
    with pytest.raises(InputError) as caught:
        encoded(tokenizer, PAIR)
    assert caught.value.hint == "set `data.append_eos=false`"
    assert encoded(tokenizer, PAIR, append_eos=False).has_response


def test_train_on_prompt_supervises_all_and_still_knows_the_prompt(
    gpt2: PreTrainedTokenizerFast,
) -> None:
    row = encoded(gpt2, PAIR, train_on_prompt=True)
    np.testing.assert_array_equal(row.labels_T, row.ids_T)
    assert row.prompt_length == len(bare(gpt2, PAIR.prompt))


def test_text_is_supervised_from_its_first_token_on(
    tokenizer_of: Callable[..., PreTrainedTokenizerFast],
) -> None:
    row = encoded(tokenizer_of("bos"), Rendered("", "It was great."))
    assert row.labels_T[0] == IGNORE  # BOS
    np.testing.assert_array_equal(row.labels_T[1:], row.ids_T[1:])
    assert row.ids_T[-1] == EOS


def test_many_rows_are_the_rows_one_by_one(gpt2: PreTrainedTokenizerFast) -> None:
    rows = [PAIR, Rendered("", "x"), Rendered("A warm and funny", " film. It was")]
    together = Encoder.of(gpt2, DataConfig(path=Path("r"))).encode(rows)
    for row, each in zip(rows, together, strict=True):
        np.testing.assert_array_equal(each.ids_T, encoded(gpt2, row).ids_T)


def test_candidates_get_nothing_put_around_them(
    tokenizer_of: Callable[..., PreTrainedTokenizerFast],
) -> None:
    both = tokenizer_of("both")
    assert encode_completions(both, (" terrible", " great")) == [
        bare(both, " terrible"),
        bare(both, " great"),
    ]
    assert encode_completions(both, ()) == []


@pytest.mark.parametrize(
    "text",
    ["was great", " was", "  was", "\n", "\n\n\nwas", ".", "...", "'s", "1", "\u00e9", "</s>"],
)
def test_a_byte_level_tokenizer_needs_no_sentinel(gpt2: PreTrainedTokenizerFast, text: str) -> None:
    assert encode_completions(gpt2, [text]) == [bare(gpt2, text)]


@pytest.mark.parametrize(
    ("completion", "pieces"),
    [
        ("yes", ["y", "e", "s"]),  # and not the word that begins with a space
        (" yes", ["▁yes"]),
        ("\nyes", ["▁", "\n", "y", "e", "s"]),  # merges with the sentinel: tokenised alone
    ],
)
def test_no_space_comes_between_prompt_and_response(
    metaspace: PreTrainedTokenizerFast, completion: str, pieces: list[str]
) -> None:
    row = encoded(metaspace, Rendered("Answer:", completion))
    prompt, answer = row.ids_T[: row.prompt_length], row.ids_T[row.prompt_length : -1]
    assert metaspace.convert_ids_to_tokens(prompt) == ["▁Answer", ":"]
    assert metaspace.convert_ids_to_tokens(answer) == pieces


def test_a_text_without_prompt_begins_as_texts_do(metaspace: PreTrainedTokenizerFast) -> None:
    rows = [Rendered("", "yes"), Rendered("Answer:", "yes"), Rendered("", "yes")]
    first, second, third = Encoder.of(metaspace, DataConfig(path=Path("r"))).encode(rows)
    assert metaspace.convert_ids_to_tokens(first.ids_T) == ["▁yes", "</s>"]
    np.testing.assert_array_equal(first.ids_T, third.ids_T)
    assert second.response == "yes"


CHAT = Chat(
    (
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "And a film?"},
        {"role": "assistant", "content": "A warm one"},
    )
)


def test_only_the_last_answer_of_a_chat_is_supervised(chat: PreTrainedTokenizerFast) -> None:
    row = encoded(chat, CHAT)
    prompt = "<|user|>Name a colour.</s><|assistant|>blue</s><|user|>And a film?</s><|assistant|>"
    assert row.prompt == prompt
    assert row.response == "A warm one"
    answer = [*bare(chat, "A warm one"), EOS]
    assert row.ids_T.tolist() == bare(chat, prompt) + answer  # no BOS but the template's own
    assert row.labels_T.tolist() == [IGNORE] * row.prompt_length + answer


def test_a_template_without_eos_gets_one(
    tokenizer_of: Callable[..., PreTrainedTokenizerFast],
) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}" + (
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    row = encoded(tokenizer_of(chat_template=template), CHAT)
    assert row.ids_T.tolist().count(EOS) == 1
    assert row.ids_T[-1] == row.labels_T[-1] == EOS


def test_messages_without_a_chat_template_say_what_to_do(gpt2: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError) as caught:
        encoded(gpt2, CHAT)
    assert "`data.chat_template`" in (caught.value.hint or "")


def test_a_template_file_takes_the_place_of_the_tokenizers_own(
    chat: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{% for m in messages %}{{ m.content }};{% endfor %}")
    row = encoded(chat, CHAT, chat_template=path)
    assert row.prompt == "Name a colour.;blue;And a film?;"
    with pytest.raises(InputError, match=r"cannot read `data\.chat_template`"):
        encoded(chat, CHAT, chat_template=tmp_path / "gone.jinja")


def test_a_template_that_rewrites_the_prompt_is_refused(
    tokenizer_of: Callable[..., PreTrainedTokenizerFast],
) -> None:
    """As templates do that strip the reasoning of earlier turns."""
    tokenizer = tokenizer_of(chat_template="{{ messages | length }}: {{ messages[-1].content }}")
    assert "does not fit training" in refusal(tokenizer, CHAT)


def test_a_row_that_the_template_refuses_does_not_disturb_its_neighbours(
    tokenizer_of: Callable[..., PreTrainedTokenizerFast],
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}{{ m.content }}</s>{% endfor %}"
    )
    tokenizer = tokenizer_of(chat_template=template)
    tool = Chat(({"role": "tool", "content": "x"}, CHAT.messages[-1]))
    encoder = Encoder.of(tokenizer, DataConfig(path=Path("r")))
    first, second, third = encoder.encode([CHAT, tool, CHAT])
    assert str(second) == "the chat template refuses the messages: no tools"
    np.testing.assert_array_equal(first.ids_T, third.ids_T)


def tokens(ids: list[int], labels: list[int]) -> Tokens:
    return Tokens(np.array(ids, dtype=np.int64), np.array(labels, dtype=np.int64))


def test_tokenized_rows_are_used_as_they_are(gpt2: PreTrainedTokenizerFast) -> None:
    ids = bare(gpt2, "The movie was great.")
    labels = [IGNORE, IGNORE, *ids[2:]]
    row = encoded(gpt2, tokens(ids, labels))
    assert (row.ids_T.tolist(), row.labels_T.tolist()) == (ids, labels)
    assert row.prompt + row.response == "The movie was great."
    assert row.prompt_length == 2


def test_tokens_outside_the_vocabulary_are_bad(gpt2: PreTrainedTokenizerFast) -> None:
    size = len(gpt2)
    assert refusal(gpt2, tokens([5, size], [5, 5])) == (
        f"`input_ids` has {size}: the tokenizer's ids are 0 to {size - 1}"
    )
    assert refusal(gpt2, tokens([5, 5], [5, -1])).startswith("`labels` has -1: ")


TEXTS = ("The movie was great.", "", "</s>", "a <s>b", "It was\n\nterrible")


@pytest.mark.parametrize("kind", ["gpt2", "bos", "eos", "both"])
def test_ids_of_many_texts_are_those_of_a_call(
    tokenizer_of: Callable[..., PreTrainedTokenizerFast], kind: str
) -> None:
    """Whatever the tokenizer was set to before: truncation, padding, special tokens."""
    set_up = tokenizer_of(kind, pad_token="<pad>")
    set_up(list(TEXTS), max_length=3, truncation=True, padding="max_length")
    set_up("a <s>b", split_special_tokens=True)
    assert encode_texts(set_up, TEXTS) == [bare(tokenizer_of(kind), text) for text in TEXTS]
    set_up.split_special_tokens = True
    spelled = tokenizer_of(kind, split_special_tokens=True)
    assert encode_texts(set_up, TEXTS) == [bare(spelled, text) for text in TEXTS]


def test_a_tokenizer_with_a_way_of_its_own_is_called(gpt2: PreTrainedTokenizerFast) -> None:
    class Shouting(PreTrainedTokenizerFast):
        def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
            return super()._encode_plus([each.upper() for each in text], *args, **kwargs)

    shouting = Shouting(tokenizer_object=gpt2.backend_tokenizer)
    assert encode_texts(shouting, ["it was"]) == [bare(gpt2, "IT WAS")]
