from __future__ import annotations

import time

import pytest

from weft.data.slots import Slots, fields_of


def slots_of(records: dict[str, object], text: str) -> list[tuple[str, str, str]]:
    slots = Slots()
    slots.add(records.items())
    return [(text[s.start : s.stop], s.record, s.field) for s in slots.find(text)]


def test_a_field_is_found_where_it_stands() -> None:
    record = {"question": "How many heads?", "table": "head_of_department"}
    text = "Q: How many heads?\nT: head_of_department\nA:"
    assert slots_of({"rows.jsonl:17": record}, text) == [
        ("How many heads?", "rows.jsonl:17", "question"),
        ("head_of_department", "rows.jsonl:17", "table"),
    ]


def test_values_of_fewer_than_four_characters_are_left_out() -> None:
    assert slots_of({"r:1": {"a": "cat"}, "r:2": {"a": "cats"}}, "cat and cats") == [
        ("cats", "r:2", "a")
    ]


def test_a_value_inside_a_word_is_none() -> None:
    assert slots_of({"r:1": {"a": "head"}}, "ahead, heads, head!") == [("head", "r:1", "a")]


def test_letters_of_other_scripts_need_no_edge() -> None:
    assert slots_of({"r:1": {"a": "東京タワー"}}, "これは東京タワーです") == [
        ("東京タワー", "r:1", "a")
    ]


def test_of_values_that_overlap_the_longest_is_taken() -> None:
    records = {"r:1": {"a": "city name"}, "r:2": {"a": "name of the river"}, "r:3": {"a": "city"}}
    assert slots_of(records, "the city name of the river") == [
        ("city", "r:3", "a"),
        ("name of the river", "r:2", "a"),
    ]


def test_a_shorter_value_is_found_where_a_longer_one_only_begins() -> None:
    records = {"r:1": {"a": "what is the name of it"}, "r:2": {"a": "what is"}}
    assert slots_of(records, "what is the nature of it") == [("what is", "r:2", "a")]


def test_a_value_of_several_records_belongs_to_the_one_that_explains_the_rest() -> None:
    records = {
        "r:1": {"table": "same table", "question": "first question"},
        "r:2": {"table": "same table", "question": "second question"},
    }
    assert slots_of(records, "same table: second question") == [
        ("same table", "r:2", "table"),
        ("second question", "r:2", "question"),
    ]


def test_where_nothing_tells_records_apart_all_are_named() -> None:
    same = {f"r:{i}": {"answer": "maybe"} for i in range(1, 6)}
    assert slots_of(same, "maybe") == [("maybe", "r:1 or r:2 or r:3 or 2 more", "answer")]


def test_values_are_compared_without_space_around_them() -> None:
    assert slots_of({"r:1": "  a line of text\n"}, "> a line of text") == [
        ("a line of text", "r:1", "text")
    ]


def test_fields_of_nested_records_have_dotted_names() -> None:
    record = {"messages": [{"role": "user", "content": "hello"}], "n": 3, "none": None}
    assert dict(fields_of(record)) == {"messages.1.role": "user", "messages.1.content": "hello"}


def by_brute_force(values: list[str], text: str) -> set[tuple[int, int]]:
    """Every place where a value stands between two edges of words."""
    found = set()
    for value in values:
        for start in range(len(text)):
            stop = start + len(value)
            inner = [
                0 < place < len(text) and text[place - 1].isalnum() and text[place].isalnum()
                for place in (start, stop)
            ]
            if text[start:stop] == value and not any(inner):
                found.add((start, stop))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_matches_are_those_of_brute_force(seed: int) -> None:
    import numpy as np

    rng = np.random.default_rng(seed)
    words = ["aa", "aab", "ab", "b", "bba", "a"]

    def phrase(count: int) -> str:
        return " ".join(rng.choice(words, count))

    values = sorted({v for _ in range(60) if len(v := phrase(int(rng.integers(1, 5)))) >= 4})
    text = phrase(60)
    slots = Slots()
    slots.add((f"r:{i}", value) for i, value in enumerate(values))
    assert set(slots._matches(text)) == by_brute_force(values, text)


def test_many_values_with_one_beginning_are_searched_quickly() -> None:
    slots = Slots()
    slots.add((f"r:{i}", f"what is the number of item {i:06d}") for i in range(50_000))
    slots.find("warm")
    began = time.perf_counter()
    text = "what is the number of item 031337 " * 20
    assert len(slots.find(text)) == 20
    assert time.perf_counter() - began < 1
