"""Rung 6: where hidden states part, and what the pattern of their growth says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.evidence import Side, pair
from weft.diagnose.rungs.hidden import growth, look
from weft.runs.evidence import TensorSeen, Weights

LAYERS, SIZE, LENGTH = 4, 16, 5
IDS = [[5, 6, 7, 8, 9], [5, 7, 9, 11, 13]]


def states(errors: Any = 0.0, seed: int = 0) -> np.ndarray:
    """[L + 1, B, D], off by a relative error a layer."""
    clean = np.random.default_rng(seed).standard_normal((LAYERS + 1, len(IDS), SIZE))
    off = np.random.default_rng(seed + 1).standard_normal(clean.shape)
    off *= np.linalg.norm(clean, axis=-1, keepdims=True) / np.linalg.norm(
        off, axis=-1, keepdims=True
    )
    return clean + np.reshape(np.broadcast_to(errors, LAYERS + 1), (-1, 1, 1)) * off


def one(errors: Any = 0.0, **fields: Any) -> Side:
    names = {f"model.layers.{n}.mlp.up_proj.weight": TensorSeen(shape=(1, 1), dtype="float32",
             digest="0", norm=1.0) for n in range(LAYERS)}  # fmt: skip
    return (
        Side()
        .add(Weights(model="model-0", name="tiny", tensors=names))
        .forward(IDS, hidden=states(errors), **fields)
    )


def test_equal_states_are_told_with_how_many_and_within_what() -> None:
    looked = look(pair(one(), one(1e-7)))
    assert not looked.findings
    assert "2 prompts, 5 layers" in looked.equal[0] and "floor" in looked.equal[0]


@pytest.mark.parametrize(
    ("errors", "place", "label"),
    [
        ([0.1, 0.1, 0.1, 0.1, 0.1], "embeddings", "base"),
        ([0, 0, 0, 0, 0.1], "model.layers.3", "implementation"),
        ([0, 0, 0.1, 0.1, 0.1], "model.layers.1", "implementation"),
        ([0, 0.1, 0.2, 0.3, 0.4], "model.layers.0", "unknown"),
        ([3e-6, 6e-6, 1.2e-5, 4e-5, 8e-5], "model.layers.2", "precision"),
    ],
)
def test_the_pattern_says_where_and_what_kind(errors: list[float], place: str, label: str) -> None:
    (found,) = look(pair(one(), one(errors))).findings
    assert (found.place, found.label, found.nature) == (place, label, "effect")
    assert found.value is not None and found.floor == 1e-5


def test_growth_within_the_floor_is_none() -> None:
    assert growth(np.full(5, 1e-6), 1e-5) is None


def test_positions_are_told_where_absolute_ones_differ() -> None:
    a = one(positions=[[0, 1, 2, 3, 4]] * 2)
    b = one(0.1, positions=[[1, 2, 3, 4, 5]] * 2)
    (found,) = look(pair(a, b)).findings
    assert found.label == "positions"


def test_sketches_say_from_which_position_on() -> None:
    sketch = np.random.default_rng(3).standard_normal((LAYERS + 1, 2, LENGTH, 8))
    other = sketch.copy()
    other[:, :, 3:] *= 1.5
    looked = look(pair(one(sketch=sketch), one(0.1, sketch=other)))
    assert "from position 3 of 5 on" in looked.findings[0].words
    curve = looked.curves["hidden by position"]
    assert curve["relative"] == pytest.approx([0, 0, 0, 0.5, 0.5])
    assert looked.curves["layers"]["names"][:2] == ["embeddings", "model.layers.0"]


def test_rows_are_matched_by_ids_whatever_the_batch() -> None:
    whole = states(1e-8)
    turned = (
        Side()
        .forward([IDS[1]], hidden=whole[:, 1:])
        .forward([[0, 0, *IDS[0]]], hidden=whole[:, :1], mask=[[0, 0, 1, 1, 1, 1, 1]])
    )
    looked = look(pair(one(), turned))
    assert not looked.findings and "2 prompts" in looked.equal[0]


def test_the_first_module_that_is_not_finite_is_named_with_what_came_before() -> None:
    bad = states()
    bad[3:] = np.nan
    b = (
        Side()
        .forward(
            IDS,
            hidden=bad,
            nonfinite="model.layers.2.mlp.down_proj",
            largest={"model.layers.1": 64000.0},
        )
    )  # fmt: skip
    looked = look(pair(one(), b))
    (found,) = looked.findings
    assert (found.label, found.place) == ("overflow", "model.layers.2.mlp.down_proj")
    assert "64,000" in found.words and "in B" in found.words
    assert looked.unseen


def test_without_states_of_the_same_ids_it_says_so() -> None:
    looked = look(pair(one(), Side().forward([[1, 2]], hidden=states()[:, :1])))
    assert not looked.findings and "no prompt with the same ids" in looked.unseen[0]
