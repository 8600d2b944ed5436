"""The number of threads of a step: by its shapes, and as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from weft.engines.local import LocalEngine
from weft.model.adapter import Site
from weft.model.bank import Bank
from weft.model.cache import KVCache
from weft.model.decoding import Decoding
from weft.model.threads import FEW_ROWS, SMALL, threads_for

SITES = [Site("wide", "linear", 512, 768, 0), Site("narrow", "linear", 512, 256, 0)]
ROWS = SMALL // (512 * 512)
"""With that many rows the mean product is as large as a small one can be."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (ROWS, 1), (ROWS + 1, 2)])
def test_one_thread_computes_what_is_small(rows: int, threads: int) -> None:
    with threads_for(SITES, rows):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_a_few_rows_are_as_much_work_as_reading_the_weights() -> None:
    large = [Site("large", "linear", SMALL // FEW_ROWS + 1, 1, 0)]
    with threads_for(large, 1):
        assert torch.get_num_threads() == 2


def test_the_number_comes_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), threads_for(SITES, 1):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_decoding_says_the_same_on_one_thread_as_on_two(
    architecture, make_base, monkeypatch
) -> None:
    base = make_base(architecture)
    prompts = [np.array([7, 8, 9]), np.array([11, 12])]
    monkeypatch.setattr("weft.model.threads.SMALL", 0)
    two = threads_at_attention(monkeypatch)
    said = LocalEngine(base).generate(Bank.of({"base": None}), prompts, Decoding(max_tokens=9))
    assert set(two) == {2}
    monkeypatch.setattr("weft.model.threads.SMALL", SMALL)
    one = threads_at_attention(monkeypatch)
    again = LocalEngine(base).generate(Bank.of({"base": None}), prompts, Decoding(max_tokens=9))
    assert set(one) == {1}
    assert said == again


def threads_at_attention(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many there are in each layer of each step from now on, as they come."""
    seen: list[int] = []
    attend = KVCache.attend

    def counted(self, *given):
        seen.append(torch.get_num_threads())
        return attend(self, *given)

    monkeypatch.setattr(KVCache, "attend", counted)
    return seen
