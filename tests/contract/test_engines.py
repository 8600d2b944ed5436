"""What every entry of `ENGINES` promises. A new engine is tested by being in the dict."""

import numpy as np
import pytest
import torch

from tests.support.servers import Contract
from weft.core.batch import IGNORE, Batch, Choice, Example
from weft.core.errors import InputError
from weft.engines.local import LocalEngine
from weft.engines.registry import ENGINES, engine_config, open_engine
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.base import load_base
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.objectives import MEANS, ONE_TOKEN, OPTION, TOKENS
from weft.model.sites import choose_sites

NEEDS = {"mlx": "mlx_lm"}
MEMBERS = ("all sites", "last layer", "nothing")
SAMPLED = Decoding(temperature=0.8, top_p=0.95, max_tokens=10, seed=3)


scoring = pytest.mark.parametrize(
    "engine", sorted(name for name, kind in ENGINES.items() if kind.scores), indirect=True
)
"""For what engines of losses promise; the others say that they compute none."""


@pytest.fixture(scope="module", params=sorted(ENGINES))
def engine(request, small_base):
    """Servers are ours: they keep the contract of the real ones, and compute in this process."""
    name = request.param
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason="its extra is not installed")
    if ENGINES[name].here:
        yield open_engine(name, small_base)
        return
    with Contract(LocalEngine(load_base(small_base)), name) as server:
        opened = open_engine(engine_config(name, url=server.url), small_base)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def adapters(engine):
    """Members of different sites and ranks, and one that is the base."""
    everywhere = adapter(engine, 1, rank=3, alpha=6)
    last = adapter(engine, 2, rank=2, scale=5, targets=("q_proj", "v_proj"), layers="last 1")
    return dict(zip(MEMBERS, (everywhere, last, None), strict=True))


def adapter(engine, seed, **settings):
    layout = choose_sites(dict(engine.sites), AdapterConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    return Adapter(layout, torch.randn(layout.size, generator=generator) * 0.2)


def prompts(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(2, 320, length) for length in lengths or (7, 3, 5, 3)]


def batch_of(*prompts):
    """All but the first two tokens of each are supervised."""
    labels = [np.where(np.arange(len(p)) < 2, IGNORE, p) for p in prompts]
    return Batch(tuple(Example(str(i), p, y) for i, (p, y) in enumerate(zip(prompts, labels))))  # noqa: B905


def said(engine, adapters, prompts, decoding, **settings):
    texts = engine.generate(Bank.of(adapters), prompts, decoding, **settings)
    return dict(zip(adapters, texts, strict=True))


def test_it_says_what_it_is(engine):
    record = engine.record()
    assert record["name"] == engine.name and engine.name in ENGINES
    assert {"device", "dtype"} < record.keys() and all(record.values())


@scoring
def test_members_score_as_they_do_alone_and_one_that_changes_nothing_as_the_base(engine, adapters):
    batch = batch_of(*prompts())
    together = engine.score(Bank.of(adapters), batch)
    for row, (name, own) in enumerate(adapters.items()):
        alone = engine.score(Bank.of({name: own}), batch)
        np.testing.assert_allclose(together.loss_NE[row], alone.loss_NE[0], rtol=1e-5)
        np.testing.assert_array_equal(together.correct_NE[row], alone.correct_NE[0])
    base = engine.score(Bank(("base",), {}), batch)
    np.testing.assert_allclose(together.loss_NE[-1], base.loss_NE[0], rtol=1e-5)
    assert (np.abs(together.loss_NE[:2] / base.loss_NE - 1) > 1e-3).all(), "adapters do something"


@scoring
def test_a_member_whose_b_is_zero_is_the_base(engine, adapters):
    batch, started = batch_of(*prompts()), adapters["all sites"]
    started = Adapter(started.layout, started.flat.clone())
    for _, b_Or in started.sites.values():
        b_Or.zero_()
    found = engine.score(Bank.of({"started": started, "base": None}), batch)
    np.testing.assert_array_equal(found.loss_NE[0], found.loss_NE[1])


@scoring
def test_a_row_scores_as_it_does_alone_and_counts_what_is_supervised(engine, adapters):
    rows, bank = prompts(9, 1, 4, 30), Bank.of(adapters)  # of one token nothing is predicted
    together = engine.score(bank, batch_of(*rows))
    assert together.count_E.tolist() == [7, 0, 2, 28]
    assert together.loss_NE[:, 1].tolist() == [0, 0, 0]
    for column in (0, 2, 3):
        alone = engine.score(bank, batch_of(rows[column]))
        np.testing.assert_allclose(together.loss_NE[:, column], alone.loss_NE[:, 0], rtol=1e-5)


SINGLE, SEVERAL = ((5,), (9,)), ((5, 11), (9,), (5, 12, 40))
OBJECTIVES = [(TOKENS, SEVERAL), (OPTION, SEVERAL), (MEANS, SEVERAL), (ONE_TOKEN, SINGLE)]


def choices_of(candidates, *prompts):
    """Rows whose answer is one of the candidates, followed by a token that ends them."""
    rows = []
    for i, prompt in enumerate(prompts):
        choice = Choice(prompt, candidates, i % len(candidates))
        ids = np.concatenate([prompt, candidates[choice.right], [1]])
        labels = np.where(np.arange(len(ids)) < len(prompt), IGNORE, ids)
        rows.append(Example(str(i), ids, labels, choice))
    return Batch(tuple(rows))


@scoring
@pytest.mark.parametrize(
    ("objective", "candidates"), OBJECTIVES, ids=lambda x: getattr(x, "name", "")
)
def test_every_objective_is_what_its_definition_says(objective, candidates, engine, adapters):
    """From the loss of each candidate's tokens, scored one sequence at a time."""
    bank, batch = Bank.of(adapters), choices_of(candidates, *prompts())
    found = engine.score(bank, batch, objective)
    for column, example in enumerate(batch.examples):
        choice = example.choice
        lengths = np.array([len(ids) for ids in candidates])
        each = [Batch((choice.row("x", k),)) for k in range(len(candidates))]
        sums_NK = np.stack([engine.score(bank, one).loss_NE[:, 0] for one in each], axis=1)
        means_NK = sums_NK / lengths
        if objective is TOKENS:
            expected = engine.score(bank, Batch((example,))).loss_NE[:, 0]
            count = lengths[choice.right] + 1
        elif objective is OPTION:
            expected, count = sums_NK[:, choice.right], lengths[choice.right]
        else:
            expected = np.log(np.exp(-means_NK).sum(axis=1)) + means_NK[:, choice.right]
            count = 1
            hits = means_NK.argmin(axis=1) == choice.right
            np.testing.assert_array_equal(found.correct_NE[:, column], hits)
        np.testing.assert_allclose(found.loss_NE[:, column], expected, rtol=1e-4, atol=1e-5)
        assert found.count_E[column] == count


@pytest.mark.parametrize("decoding", [Decoding(max_tokens=10), SAMPLED], ids=["greedy", "sampled"])
def test_a_text_does_not_depend_on_its_batch_mates(decoding, engine, adapters):
    together = said(engine, adapters, prompts(), decoding)
    for name, own in adapters.items():
        for number, prompt in enumerate(prompts()):
            (alone,) = said(engine, {name: own}, [prompt], decoding)[name]
            assert alone == together[name][number]


def test_the_same_seed_gives_the_same_text_and_another_seed_another(engine, adapters):
    first = said(engine, adapters, prompts(), SAMPLED)
    assert said(engine, adapters, prompts(), SAMPLED) == first
    assert said(engine, adapters, prompts(), SAMPLED.model_copy(update={"seed": 4})) != first


def test_a_prompt_that_is_given_again_has_noise_of_its_own(engine):
    (prompt,) = prompts(5)
    first, second = said(engine, {"base": None}, [prompt, prompt], SAMPLED)["base"]
    assert first != second
    assert said(engine, {"base": None}, [prompt], SAMPLED, copies=[1])["base"] == [second]


def test_a_text_ends_before_a_stop_token_and_the_others_go_on(engine, adapters):
    free = said(engine, adapters, prompts(), Decoding(max_tokens=10))
    stop = free["last layer"][2].ids[4]
    stopped = said(engine, adapters, prompts(), Decoding(max_tokens=10, stop_ids=(stop,)))
    ends = set()
    for name, texts in stopped.items():
        for text, whole in zip(texts, free[name], strict=True):
            cut = whole.ids.index(stop) if stop in whole.ids else len(whole.ids)
            assert text.ids == whole.ids[:cut]
            ends.add(text.finish)
            assert text.stopped_by == (stop if text.finish == "stop token" else None)
    assert ends == {"stop token", "max_tokens"}


def test_the_bases_own_stop_tokens_end_a_text_unless_they_are_ignored(engine):
    often = Decoding(temperature=1.5, max_tokens=30, ignore_eos=True, seed=1)
    free = said(engine, {"base": None}, prompts(*[4] * 30), often)["base"]
    heeding = often.model_copy(update={"ignore_eos": False})
    heeded = said(engine, {"base": None}, prompts(*[4] * 30), heeding)["base"]
    assert {text.finish for text in heeded} == {"stop token", "max_tokens"}
    for text, whole in zip(heeded, free, strict=True):
        cut = next((i for i, token in enumerate(whole.ids) if token in engine.stop_ids), 30)
        assert text.ids == whole.ids[:cut]


def test_a_text_ends_after_a_stop_text(engine, adapters):
    free = said(engine, adapters, prompts(), Decoding(max_tokens=10))["all sites"][0]
    piece = engine.tokenizer.decode(free.ids[3:5])
    texts = said(engine, adapters, prompts(), Decoding(max_tokens=10, stop=(piece,)))
    stopped = texts["all sites"][0]
    assert (stopped.finish, stopped.stopped_by) == ("stop text", piece)
    assert stopped.ids == free.ids[: len(stopped.ids)] and len(stopped.ids) <= 5


def test_a_text_ends_where_the_context_is_full(engine, adapters):
    room = 6
    decoding = Decoding(max_tokens=20, ignore_eos=True)
    texts = said(engine, adapters, prompts(engine.context - room), decoding)
    assert {(len(t.ids), t.finish) for (t,) in texts.values()} == {(room, "context")}


@pytest.mark.parametrize(("length", "problem"), [(0, "is empty"), (256, "leaves no room")])
def test_a_prompt_that_cannot_be_continued_is_an_error(length, problem, engine):
    with pytest.raises(InputError, match=f"prompt 2 .*{problem}|prompt 2 {problem}"):
        said(engine, {"base": None}, prompts(3, length), Decoding())


def test_every_token_of_a_text_is_told_as_it_comes(engine, adapters):
    told = {}
    decoding = Decoding(max_tokens=10, stop_ids=(5, 9), temperature=1.0)
    texts = engine.generate(
        Bank.of(adapters),
        prompts(),
        decoding,
        on_token=lambda member, prompt, token: told.setdefault((member, prompt), []).append(token),
    )
    whole = {(m, p): list(t.ids) for m, row in enumerate(texts) for p, t in enumerate(row) if t.ids}
    assert told == whole


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_a_base_that_cannot_be_loaded_is_an_error(name, tmp_path, small_base):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason="its extra is not installed")
    with pytest.raises(InputError, match="no bundled base"):
        open_engine(name, "weft/huge")
    with pytest.raises(InputError, match="no such directory"):
        open_engine(name, str(tmp_path / "nowhere"))
    if not ENGINES[name].here:
        return  # the weights are the server's
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((type(tmp_path)(small_base) / file).read_bytes())
    with pytest.raises(InputError, match="cannot load"):
        open_engine(name, str(tmp_path))


def test_an_unknown_engine_is_an_error_that_names_the_near_one():
    with pytest.raises(InputError, match="no engine 'locl'") as caught:
        open_engine("locl", "weft/tiny")
    assert "`local`" in caught.value.hint
