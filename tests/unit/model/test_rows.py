"""What a forward reads of its examples: no more than what counts depends on."""

import numpy as np
import pytest
import torch

from weft.core.batch import IGNORE, Batch, Example
from weft.core.keys import Key
from weft.engines.local import LocalEngine
from weft.engines.scorer import LocalScorer
from weft.model.bank import Bank
from weft.model.config import AdapterConfig
from weft.model.forward import make_rows
from weft.model.rows import Block
from weft.model.sites import choose_sites
from weft.model.weaving import Dropout

ARCHITECTURES = pytest.mark.parametrize("architecture", ["llama", "mistral", "opt-350m", "bloom"])


def example(number: int, tokens: int, first: int, last: int) -> Example:
    """Random tokens, of which those from `first` to `last` are supervised."""
    ids_T = np.random.default_rng(number).integers(2, 97, tokens)
    place_T = np.arange(tokens)
    labels_T = np.where((place_T >= first) & (place_T <= last), ids_T, IGNORE)
    return Example(f"row:{number}", ids_T, labels_T)


def cut(one: Example, tokens: int) -> Example:
    return Example(one.id, one.ids_T[:tokens], one.labels_T[:tokens])


LONG = Batch((example(0, 9, 3, 5), example(1, 6, 2, 2), example(2, 7, 6, 6), example(3, 9, 1, 4)))
SHORT = Batch(tuple(cut(one, one.read + 1) for one in LONG.examples))


@ARCHITECTURES
def test_positions_from_which_nothing_is_predicted_are_left_out(architecture, make_base):
    base = make_base(architecture)
    rows = make_rows(base, [Block(0, 2, LONG)])
    read = [one.read for one in LONG.examples]
    assert read == [5, 2, 6, 4]
    assert rows.ids.numel() == 2 * (sum(read) if base.packs else 4 * max(read))
    assert len(rows.targets.index_S) == 2 * LONG.supervised


@ARCHITECTURES
def test_scores_and_gradients_are_those_of_the_whole_text(architecture, make_base, make_model):
    base, model = make_base(architecture), make_model(architecture)
    layout = choose_sites(base.sites, AdapterConfig(rank=3))
    flat = torch.randn(2, layout.size, generator=torch.Generator().manual_seed(1)) * 0.1
    null = LocalEngine(base).score(Bank.of({"null": None}), LONG).loss_NE[0]
    for found, one in zip(null, LONG.examples, strict=True):
        ids, labels = torch.tensor(one.ids_T)[None], torch.tensor(one.labels_T)[None]
        with torch.no_grad():
            mean = model(input_ids=ids, labels=labels).loss.item()
        assert found == pytest.approx(mean * one.supervised, rel=2e-6)
    scorer = LocalScorer(base, layout, dropout=0.3)
    keys = [Key.of(4), Key.of(5)]
    long, short = (scorer.gradient(flat, [b, b], keys) for b in (LONG, SHORT))
    torch.testing.assert_close(long.gradient_LP, short.gradient_LP, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_dropout_s_noise_at_a_position_does_not_depend_on_what_follows(architecture, make_base):
    base = make_base(architecture)
    dropout = Dropout(0.5, (Key.of(3),))

    def kept(one: Example) -> torch.Tensor:
        rows = make_rows(base, [Block(0, 1, Batch((one,)))])
        return torch.cat([m for (m,) in dropout.keep(rows, {"a": 5, "b": 3}).values()], dim=1)

    whole = example(0, 9, 3, 8)
    early = Example(whole.id, whole.ids_T, np.where(np.arange(9) < 6, whole.labels_T, IGNORE))
    assert (whole.read, early.read) == (8, 5)
    assert torch.equal(kept(whole)[:5], kept(early))
