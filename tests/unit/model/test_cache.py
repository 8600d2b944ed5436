"""Attention to the cache, against attention in float64 over what each row has seen."""

from __future__ import annotations

import pytest
import torch

from weft.core.keys import Key
from weft.model.cache import MANY_HEADS, KVCache
from weft.model.noise import generator

CAPACITY, SIZE, KV_HEADS, QUERIES = 12, 8, 2, 3
FEW, MANY = 3, MANY_HEADS // KV_HEADS


def draw(name: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(Key.of(0).fold(name)))


def alone(
    q_HD: torch.Tensor, k_nGD: torch.Tensor, v_nGD: torch.Tensor, window: int | None
) -> torch.Tensor:
    """One row's attention to all that it has seen, in float64."""
    first = 0 if window is None else max(0, len(k_nGD) - window)
    k_nHD, v_nHD = (x[first:].double().repeat_interleave(QUERIES, dim=1) for x in (k_nGD, v_nGD))
    share_Hn = (torch.einsum("hd,nhd->hn", q_HD.double(), k_nHD) / SIZE**0.5).softmax(-1)
    return torch.einsum("hn,nhd->hd", share_Hn, v_nHD)


@pytest.mark.parametrize("rows", [FEW, MANY, MANY + 5])
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_each_row_attends_to_its_own_history_however_many_there_are(
    rows: int, uneven: bool, window: int | None
) -> None:
    lengths = [3 + (row % 5 if uneven else 0) for row in range(rows)]
    seen = [
        [draw(f"{what} of {row}", length, KV_HEADS, SIZE) for what in ("k", "v")]
        for row, length in enumerate(lengths)
    ]
    cache = KVCache(lengths, CAPACITY, torch.device("cpu"))
    for row, (k_nGD, v_nGD) in enumerate(seen):
        cache.put(0, torch.tensor([row]), k_nGD.transpose(0, 1), v_nGD.transpose(0, 1))
    cache.filled = True
    for step in range(3):
        q_BHD = draw(f"q {step}", rows, KV_HEADS * QUERIES, SIZE)
        k_BGD, v_BGD = (draw(f"{what} {step}", rows, KV_HEADS, SIZE) for what in ("k", "v"))
        seen = [
            [torch.cat([k_nGD, k_BGD[row : row + 1]]), torch.cat([v_nGD, v_BGD[row : row + 1]])]
            for row, (k_nGD, v_nGD) in enumerate(seen)
        ]
        out_BHD = cache.attend(0, q_BHD, k_BGD, v_BGD, None, window)
        expected = [alone(q, *of_row, window) for q, of_row in zip(q_BHD, seen, strict=True)]
        torch.testing.assert_close(out_BHD.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)
        cache.advance([True] * rows)


def test_rows_that_go_on_keep_their_history() -> None:
    k_BGlD, v_BGlD = (draw(what, MANY + 5, KV_HEADS, 3, SIZE) for what in ("k", "v"))
    q_BHD = draw("q", MANY + 5, KV_HEADS * QUERIES, SIZE)
    new_BGD = draw("new", MANY + 5, KV_HEADS, SIZE)
    rows = list(range(MANY + 4, 0, -1))  # as many as are looked up, in another order

    def cache_of(which: list[int]) -> KVCache:
        cache = KVCache([3] * len(which), CAPACITY, torch.device("cpu"))
        cache.put(0, torch.arange(len(which)), k_BGlD[which], v_BGlD[which])
        return cache

    kept = cache_of(list(range(MANY + 5)))
    kept.attend(0, q_BHD, new_BGD, new_BGD, None, None)  # looked up once before
    kept.keep(rows)
    given = q_BHD[rows], new_BGD[rows], new_BGD[rows], None, None
    assert torch.equal(kept.attend(0, *given), cache_of(rows).attend(0, *given))
