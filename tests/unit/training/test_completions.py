"""Graded completions: what is kept of them, and how far they are from what the base would say."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from weft.core.batch import IGNORE, Example, Goal
from weft.core.keys import Key
from weft.core.table import ScoreTable
from weft.data.split import Item, Split
from weft.data.tasks import TASKS
from weft.engines.local import LocalEngine
from weft.model.adapter import initial_adapter
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites
from weft.training.completions import KL, completions, said_examples, with_kl
from weft.training.evaluate import Evaluation, Said

IDS = {"tuned": ((5, 6, 7), (), (8, 9)), "same": ((5,), (6, 7), (8,))}
"""What members said on three rows; nothing on one."""
PROMPTS = ((1, 2, 3), (4,), (9, 8, 7, 6))


@pytest.fixture
def split():
    items = [
        Item(
            Example(f"v:{n}", ids, ids, goal=Goal(ids, {})), {}, f"prompt {n}", "", len(ids), False
        )
        for n, ids in enumerate(np.array(prompt) for prompt in PROMPTS)
    ]
    return Split("valid", TASKS["instruct"], tuple(items), 64, {})


@pytest.fixture
def found():
    ids = ("v:0", "v:1", "v:2")

    def table(values):
        return ScoreTable(tuple(IDS), ids, values, np.ones((2, 3), dtype=int))

    reward = ScoreTable(tuple(IDS), ids, [[1.0, 0.0, 3.0], [4.0, 5.0, 6.0]], [[1, 0, 1], [1, 1, 1]])
    return Evaluation(
        table(np.zeros((2, 3))),
        reward,
        {"reward": reward.means()},
        "reward",
        SimpleNamespace(hits="reward", name="reward"),
        "valid",
        2,
        64,
        {},
        {"format": table(np.full((2, 3), 0.5))},
        tuple(Said(tuple(map(str, said)), said) for said in IDS.values()),
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_divergence_is_that_of_two_plain_models(
    architecture, make_model, make_base, split, found
):
    """KL(member || base) a token, by the model alone and by a copy whose weights are changed."""
    base, plain = make_base(architecture), make_model(architecture)
    adapter = initial_adapter(choose_sites(base.sites, AdapterConfig(rank=2)), Key.of(0))
    generator = torch.Generator().manual_seed(0)
    adapter.flat.add_(torch.randn(adapter.flat.shape, generator=generator) * 0.1)
    tuned = copy.deepcopy(plain)
    modules = dict(tuned.named_modules())
    for name, (a_rI, b_Or) in adapter.sites.items():
        delta_OI = adapter.layout.by_name[name].scale * b_Or @ a_rI
        weight = modules[name].weight.data
        weight += delta_OI if architecture == "llama" else delta_OI.T  # Conv1D
    after = with_kl(found, LocalEngine(base), {"tuned": adapter, "same": None}, split)
    row = after.parts[KL].row("tuned")
    assert row.counts.tolist() == [3, 0, 2]
    for prompt, ids, total in zip(PROMPTS, IDS["tuned"], row.sums, strict=True):
        with torch.no_grad():
            p_TV, q_TV = (
                model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
                for model in (tuned, plain)
            )
        kl_T = (p_TV.exp() * (p_TV - q_TV)).sum(-1)[len(prompt) - 1 : -1]
        assert total == pytest.approx(float(kl_T.sum()), rel=1e-3, abs=1e-6)
    assert row.mean > 1e-4
    assert after.metrics[KL].tolist() == [row.mean, 0.0]
    assert (
        after.parts.keys() == {"format", KL} and after.metrics["reward"] is found.metrics["reward"]
    )


def test_what_was_said_follows_its_prompt_and_is_what_counts(split, found):
    examples = said_examples(split.items, found.said[0])
    assert [example.id for example in examples] == ["v:0", "v:2"], "nothing was said on v:1"
    assert examples[0].ids_T.tolist() == [1, 2, 3, 5, 6, 7]
    assert examples[0].labels_T.tolist() == [IGNORE] * 3 + [5, 6, 7]


def test_completions_are_kept_with_their_grades(split, found):
    kept = completions(found, split)
    assert kept.keys() == {"tuned", "same"}
    assert kept["tuned"][0] == {
        "id": "v:0",
        "prompt": "prompt 0",
        "completion": "(5, 6, 7)",
        "reward": 1.0,
        "format": 0.5,
    }
    assert kept["tuned"][1]["reward"] is None, "it could not be graded"
    assert [each["reward"] for each in kept["same"]] == [4.0, 5.0, 6.0]
