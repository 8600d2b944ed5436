"""The files of a run's adapters are held against what the run recorded: rank, scale, sites."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import weft
from weft.training.recorded import recorded
from weft.training.train import train

MEZO = ["method.name=mezo", "adapter.dropout=0", "adapter.rank=1", "adapter.alpha=16"]
MEZO = [*MEZO, "optimiser.name=sgd", "optimiser.lr=1e-2", "optimiser.warmup_ratio=0"]


def words(root):
    return {member: its.words for member, its in recorded(root).items()}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ([], "rank 1, scale 16, 21 sites"),
        (["adapter.rank=4"], "rank 4, scale 4, 21 sites"),
        (["boost.steps_per_iteration=3"], "rank 4 = 4 commits of rank 1, scale 16, 21 sites"),
        (
            ["boost.steps_per_iteration=5"],
            "rank 3 = 2 commits of rank 1 and the open round, scale 16, 21 sites",
        ),
        (["boost.steps_per_iteration=20"], "rank 1 (no commit), scale 16, 21 sites"),
        (
            ["boost.steps_per_iteration=11", "boost.layers_per_round=1"],
            "rank 2 = 1 commit of rank 1 and the open round, scale 16, 21 sites",
        ),
    ],
)
def test_a_rank_is_the_sum_of_commits_and_the_open_round(settings, wanted, resolved, tmp_path):
    train(resolved(*MEZO, "keep=last", *settings), tmp_path / "run")
    assert words(tmp_path / "run") == {"adapter": wanted}
    (facts,) = weft.inspect(tmp_path / "run").adapters
    assert facts.recorded == wanted
    assert not [oddity for oddity in facts.oddities if oddity.breaks]


def test_the_kept_step_decides_and_each_member_has_its_own(resolved, tmp_path):
    settings = ["boost={plateau: {patience: 1}}", "eval.every=2", "steps=16", "seeds=[0,1,2]"]
    train(resolved(*MEZO, *settings, "optimiser.lr=5e-2"), tmp_path / "run")
    found = weft.inspect(tmp_path / "run")
    assert not found.broken
    known = words(tmp_path / "run")
    assert {facts.name: facts.recorded for facts in found.adapters} == known
    ranks = {facts.name: {site.rank for site in facts.sites} for facts in found.adapters}
    for name in known:
        (rank,) = ranks[name]
        assert known[name].startswith(f"rank {rank} ")
    assert len(set(known.values())) > 1


def test_a_round_that_never_moved_adds_no_rank(resolved, tmp_path):
    """The first step of a warm-up has rate 0."""
    settings = ["boost.steps_per_iteration=5", "optimiser.schedule=linear", "steps=6"]
    train(resolved(*MEZO, *settings, "keep=last"), tmp_path / "run")
    assert words(tmp_path / "run")["adapter"].startswith("rank 2 = 1 commit of rank 1 and")
    path = tmp_path / "run" / "steps.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[5]["update_norm"] = 0.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert words(tmp_path / "run")["adapter"].startswith("rank 1 = 1 commit of rank 1, ")


@pytest.fixture(scope="module")
def boosted(request, tmp_path_factory):
    from weft.training.resolve import resolve

    root, rows = tmp_path_factory.mktemp("recorded") / "run", request.getfixturevalue("rows_dir")
    settings = [
        *[f"base={request.getfixturevalue('small_base')}", f"data.path={rows}/train.jsonl"],
        *[f"data.valid_path={rows}/valid.jsonl", "data.max_length=128", "batch_size=4"],
        *[*MEZO, "steps=6", "eval.every=3", "boost.steps_per_iteration=2", "keep=last"],
    ]
    train(resolve("instruct", settings), root)
    return root


@pytest.fixture
def change(boosted, tmp_path):
    """A function that changes a copy's tensors and configuration, and says what is found then."""

    def found(tensors, **config):
        root = shutil.copytree(boosted, tmp_path / "copy")
        file = root / "adapter" / "adapter_model.safetensors"
        save_file(tensors(load_file(file)), file, metadata={"format": "pt"})
        path = root / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        inspected = weft.inspect(root)
        (facts,) = inspected.adapters
        assert inspected.broken and facts.recorded is None
        return [oddity.what for oddity in facts.oddities if oddity.breaks]

    return found


def test_a_commit_that_is_missing_in_the_files(change):
    def without_last(tensors):
        rows = {"A": lambda t: t[:2].clone(), "B": lambda t: t[:, :2].clone()}
        return {name: rows[name.rsplit(".", 2)[1][-1]](t) for name, t in tensors.items()}

    (what,) = change(without_last, r=2, lora_alpha=32.0)
    assert what.startswith("the run recorded rank 3 = 3 commits of rank 1; 21 sites (")
    assert what.endswith("has rank 2")


def test_another_scale_than_the_blocks(change):
    found = change(lambda tensors: tensors, lora_alpha=16.0)
    assert "its run was trained at scale 16, and the files give alpha / rank = 5.33333" in found[0]
    assert found[-1] == "the scale is another one at 18 more sites"


def test_a_site_that_the_run_did_not_have(change):
    def moved(tensors):
        old, new = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.extra"
        return {name.replace(old, new): t for name, t in tensors.items()}

    found = change(moved, target_modules=r".*(_proj|extra)")
    assert (
        "model.layers.0.self_attn.q_proj had an adapter in the run, and the files have" in found[0]
    )
    assert "model.layers.0.self_attn.extra had no adapter in the run" in found[1]


def test_a_run_of_another_rank_and_scale_is_checked_as_well(resolved, tmp_path):
    train(resolved("steps=2", "eval.every=1"), tmp_path / "run")
    (facts,) = weft.inspect(tmp_path / "run").adapters
    assert facts.recorded == "rank 2, scale 8, 21 sites"


def test_the_replay_belongs_to_the_inspection(boosted, tmp_path):
    found = weft.inspect(boosted, replay=True)
    assert [verdict.difference for verdict in found.replayed] == [None]
    assert json.dumps(found.record())
    root = shutil.copytree(boosted, tmp_path / "copy")
    file = root / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name] = torch.nextafter(tensors[name], torch.tensor(torch.inf))
    save_file(tensors, file, metadata={"format": "pt"})
    assert not weft.inspect(root).broken
    found = weft.inspect(root, replay=True)
    assert found.broken and found.replayed[0].difference.startswith("1 of 21 sites, by up to ")
