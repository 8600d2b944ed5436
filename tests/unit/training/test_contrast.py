"""The divergences of two members, a chunk of the output head at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weft.core.batch import IGNORE, batches_of
from weft.core.errors import NumericError
from weft.core.keys import Key
from weft.data.split import Item, Split
from weft.data.tasks import TASKS
from weft.engines.local import LocalEngine
from weft.model import losses
from weft.model.adapter import initial_adapter
from weft.model.bank import Bank
from weft.model.config import AdapterConfig
from weft.model.divergence import divergence
from weft.model.forward import make_rows, target_logits
from weft.model.rows import Block
from weft.model.sites import choose_sites
from weft.model.weaving import Weft
from weft.training.contrast import QUANTITIES, contrast


@pytest.fixture
def split(batch):
    items = tuple(Item(e, {}, "", "", 1, False) for e in batch.examples)
    return Split("valid", TASKS["instruct"], items, 64, {})


def pair(base):
    adapter = initial_adapter(choose_sites(base.sites, AdapterConfig(rank=2)), Key.of(0))
    generator = torch.Generator().manual_seed(0)
    adapter.flat.add_(torch.randn(adapter.flat.shape, generator=generator) * 0.1)
    return Bank.of({"base": None, "adapter": adapter})


@pytest.mark.parametrize("architecture", ["gpt2", "gptj"])  # packed, and padded
def test_chunks_change_nothing(make_base, split, monkeypatch, architecture):
    base = make_base(architecture)
    bank = pair(base)
    expected = []
    for part in batches_of(split.examples, 1):
        logits_SV = target_logits(base, Weft(bank), make_rows(base, [Block(0, 2, part)]))
        found = divergence(logits_SV[0::2], logits_SV[1::2])
        expected.append([getattr(found, name).double().sum().item() for name in QUANTITIES])
    for numbers in (1, 3 * 2 * base.head[0].shape[0], 10**9):
        monkeypatch.setattr(losses, "CHUNK_NUMBERS", numbers)
        found = contrast(LocalEngine(base), bank, split.examples, batch_size=3)
        np.testing.assert_allclose(found.table.sums.T, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("numbers", [1, 10**9])
def test_a_logit_that_is_not_finite_is_placed_in_its_example(
    make_base, split, monkeypatch, numbers
):
    base = make_base("llama")
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", numbers)
    monkeypatch.setattr("weft.training.contrast.packed_hidden", poisoned(base, split))
    supervised = np.nonzero(split.examples[2].labels_T[1:] != IGNORE)[0] + 1
    with pytest.raises(NumericError) as caught:
        contrast(LocalEngine(base), pair(base), split.examples, batch_size=8)
    wanted = f"adapter: a logit is nan on row:2, where its token {supervised[3]} is predicted"
    assert wanted in caught.value.problem


def poisoned(base, split):
    """The hidden states, of which that of the second member before one token is NaN."""
    from weft.model.forward import packed_hidden

    def hidden(base, weft, made):
        found = packed_hidden(base, weft, made).clone()
        example = len(split.examples) + 2  # the cell of (member 1, example 2)
        at = made.targets.index_S[made.targets.cell_S == example][3]
        found[at] = torch.nan
        return found

    return hidden
