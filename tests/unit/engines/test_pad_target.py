"""`data.pad_target` and `data.train_on_prompt`: the loss that mlx-lm reports on the same rows."""

import json

import pytest

from weft.core.batch import Batch
from weft.core.keys import Key
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.engines.registry import open_engine
from weft.engines.scorer import LocalScorer
from weft.model.adapter import initial_adapter
from weft.model.bank import Bank
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites

pytest.importorskip("mlx_lm", reason="the extra weft[mlx] is not installed")
from mlx_lm.tuner.trainer import default_loss, iterate_batches
from mlx_lm.tuner.trainer import evaluate as mlx_lm_evaluate

SHORT = 16
"""Some rows are shorter, some are cut to it, and one has just this length."""
WHOLE = 200


@pytest.fixture(scope="module")
def engines(small_base):
    return {name: open_engine(name, small_base) for name in ("local", "mlx")}


@pytest.fixture(scope="module")
def split(tmp_path_factory, engines):
    path = tmp_path_factory.mktemp("rows") / "valid.jsonl"
    rows = [{"prompt": "the cat", "completion": " sat" * (2 * n + 1)} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def load(**settings):
        config = DataConfig(path=path, valid_path=path, **settings)
        found = load_splits(config, engines["local"].tokenizer, ("valid",))["valid"]
        assert found.counts["dropped_truncated"] == 0
        return found

    return load


def as_mlx_lm_has_them(split, train_on_prompt):
    """Rows as `mlx_lm.lora` hands them to its loss: all ids, and where the answer begins."""
    return [
        (item.example.ids_T.tolist(), 0 if train_on_prompt else item.prompt_length)
        for item in split.items
    ]


def loss(engine, split):
    scores = engine.score(Bank(("base",), {}), Batch(split.examples))
    return scores.loss_NE.sum() / scores.count_E.sum()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("train_on_prompt", [False, True])
@pytest.mark.parametrize("max_length", [SHORT, WHOLE])
def test_the_loss_is_mlx_lms(max_length, train_on_prompt, batch_size, split, engines):
    settings = {"train_on_prompt": train_on_prompt, "max_length": max_length}
    rows = as_mlx_lm_has_them(split(max_length=WHOLE), train_on_prompt)
    lengths = [len(ids) for ids, _ in rows]
    assert min(lengths) < SHORT and SHORT in lengths and SHORT < max(lengths) < WHOLE
    model = engines["mlx"].model
    theirs = mlx_lm_evaluate(model, rows, batch_size, num_batches=-1, max_seq_length=max_length)
    padded, plain = (split(pad_target=padded, **settings) for padded in (True, False))
    for engine in engines.values():
        assert loss(engine, padded) == pytest.approx(theirs, rel=1e-5)
        assert loss(engine, plain) != pytest.approx(theirs, rel=1e-4)


def test_the_tokens_that_count_are_mlx_lms(split, engines):
    rows = as_mlx_lm_has_them(split(max_length=WHOLE), False)
    batches = iterate_batches(rows, 1, SHORT)
    counted = sorted(int(default_loss(engines["mlx"].model, *batch)[1]) for batch in batches)
    padded = split(max_length=SHORT, pad_target=True)
    assert sorted(example.supervised for example in padded.examples) == counted


def test_a_training_step_has_mlx_lms_loss(split, engines):
    base = engines["local"].base
    layout = choose_sites(base.sites, AdapterConfig(rank=2))
    engine = LocalScorer(base, layout)
    fresh = initial_adapter(layout, Key.of(0))  # B is zero: the base's own loss
    rows = split(max_length=SHORT, pad_target=True)
    (step,) = engine.gradient(fresh.flat[None], [Batch(rows.examples)], [Key.of(0)]).loss_L
    ids = as_mlx_lm_has_them(split(max_length=WHOLE), False)
    theirs = mlx_lm_evaluate(engines["mlx"].model, ids, 4, num_batches=-1, max_seq_length=SHORT)
    assert step == pytest.approx(theirs, rel=1e-5)


def test_the_target_is_token_0_after_every_row_that_is_not_full(split):
    padded, plain = (split(max_length=SHORT, pad_target=padded) for padded in (True, False))
    added = []
    for long, short in zip(padded.items, plain.items, strict=True):
        more = long.example.tokens - short.example.tokens
        added.append(more)
        assert more == (short.example.tokens < SHORT)
        assert long.example.ids_T[short.example.tokens :].tolist() == [0] * more
        assert long.example.labels_T[short.example.tokens :].tolist() == [0] * more
        assert long.example.ids_T[: short.example.tokens].tolist() == short.example.ids_T.tolist()
        assert (long.reference, long.truncated) == (short.reference, short.truncated)
        assert long.prompt_ids.tolist() == short.prompt_ids.tolist()
    assert set(added) == {0, 1}
    assert padded.counts["supervised_tokens"] == plain.counts["supervised_tokens"] + sum(added)
