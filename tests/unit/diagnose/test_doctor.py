"""One side alone: what is odd is told with its value and what to do, what is normal is said too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.evidence import Side
from weft.diagnose import doctor as doctoring
from weft.diagnose.doctor import LOOKS, doctor
from weft.runs.evidence import (
    AdapterModule,
    Check,
    Draw,
    Happened,
    Seeded,
    Snapshot,
    TokenizerSeen,
    TrainStep,
    Weights,
)

IDS = [[5, 6, 7, 8]]


def module(b=1.0, rank=2, **fields):
    """A 4 x 4 module whose factors are of full rank, and its arrays."""
    a_RI = np.eye(rank, 4, dtype=np.float32)
    b_OR = b * np.eye(4, rank, dtype=np.float32)
    scale = fields.get("seen_scale", fields.get("scale", 2.0))
    given = {
        "rank": rank,
        "shape": (4, 4),
        "alpha": 4.0,
        "scale": 2.0,
        "norm_a": float(np.linalg.norm(a_RI)),
        "norm_b": float(np.linalg.norm(b_OR)),
        "norm_update": abs(scale or 0.0) * float(np.linalg.norm(b_OR @ a_RI)),
        "digest_a": "a",
        "digest_b": f"b{b}",
    }
    return AdapterModule(**given | fields), a_RI, b_OR


def with_adapter(count=3, declared=None, trainable=None, **fields):
    side = Side()
    modules, arrays = {}, {}
    for number in range(count):
        name = f"model.layers.{number}.self_attn.q_proj"
        made, a_RI, b_OR = module(**fields)
        arrays[f"{number}/a"], arrays[f"{number}/b"] = a_RI, b_OR
        modules[name] = made.model_copy(update={"a": f"{number}/a", "b": f"{number}/b"})
    side.arrays |= arrays
    return side.add(
        Snapshot(
            model="model-0",
            when="use",
            style="peft",
            modules=modules,
            declared=declared or {"r": 2, "lora_alpha": 4},
            trainable={"adapter": 48, "base": 0, "total": 1000} if trainable is None else trainable,
            where="script.py:9",
        )
    )


def lints(side):
    """The lints of a side, by name; the gravest of each."""
    found = {}
    for look in LOOKS:
        for lint in look(side.evidence):
            if lint.name not in found or lint.state != "ok":
                found[lint.name] = lint
    return found


def problems(side):
    return {name for name, lint in lints(side).items() if lint.state == "problem"}


def step(number, **fields):
    return TrainStep(step=number, **{"loss": 1.0, "adapter": f"d{number}"} | fields)


def test_a_sound_adapter_has_no_problem():
    side = with_adapter().forward(IDS)
    found = lints(side)
    assert problems(side) == set()
    assert "attached at 3 modules" in found["attached"].words
    assert found["rank"].words == "rank 2"
    assert found["scale"].words == "scale 2 (alpha 4)"


def test_nothing_trainable_in_evaluation_is_explained_as_normal():
    frozen = {"adapter": 0, "base": 0, "total": 1000}
    side = with_adapter(trainable=frozen)
    side.events = [frozen_modules(event) for event in side.events]
    found = lints(side.forward(IDS))
    assert found["trainable"].state == "ok"
    assert "normal" in found["trainable"].words and "attached" in found["trainable"].words


def frozen_modules(event):
    if not isinstance(event, Snapshot):
        return event
    modules = {n: m.model_copy(update={"trainable": False}) for n, m in event.modules.items()}
    return event.model_copy(update={"modules": modules})


def test_nothing_trainable_while_training_is_a_problem():
    side = with_adapter(trainable={"adapter": 0, "base": 0, "total": 1000}).add(step(1))
    side.events = [frozen_modules(event) for event in side.events]
    found = lints(side)
    assert found["trainable"].state == "problem"
    assert "is_trainable" in found["trainable"].fix


def test_a_scale_that_is_not_the_declared_one_is_named_with_its_rule():
    lint = lints(with_adapter(seen_scale=4.0))["scale"]
    assert lint.state == "problem"
    assert lint.value == 4.0
    assert "scaled by 4, and declare 2" in lint.words
    assert "alpha = 4, not divided by the rank" in lint.words


def test_an_adapter_that_is_scaled_by_nothing_is_attached_in_name_only():
    lint = lints(with_adapter(seen_scale=0.0, norm_update=1.0))["attached"]
    assert lint.state == "problem"
    assert "adds nothing at all 3 adapted modules" in lint.words


def test_an_inactive_adapter_is_a_problem_and_a_merged_one_is_not():
    assert "attached" in problems(with_adapter(active=False))
    assert "attached" not in problems(with_adapter(merged=True))


def test_weights_that_were_never_read_leave_b_as_it_was_made():
    lint = lints(with_adapter(b=0.0).forward(IDS))["attached"]
    assert lint.state == "warning"
    assert "B is zero" in lint.words
    assert lints(with_adapter(b=0.0).add(step(1)).add(step(2)))["attached"].state == "ok"


def test_an_adapter_that_was_loaded_and_never_used():
    event = Happened(what="load", facts={"modules": 12, "path": "adapters/x"}, where="s.py:3")
    lint = lints(Side().add(event).forward(IDS))["attached"]
    assert (lint.state, lint.where) == ("problem", "s.py:3")
    assert "12 modules" in lint.words and "adapters/x" in lint.words


def test_an_adapter_that_went_into_the_base_acts_there():
    load = Happened(what="load", facts={"modules": 12, "by": "peft"})
    merge = Happened(what="merge", step=0, facts={"modules": 12})
    lint = lints(Side().add(load).add(merge).forward(IDS))["attached"]
    assert lint.state == "ok"
    assert lint.words == "merged into the base at 12 modules: the base carries it"


def test_the_rank_that_was_asked_for_and_the_one_that_is():
    lint = lints(with_adapter(rank=1, declared={"r": 8}))["rank"]
    assert lint.state == "problem"
    assert lint.words == "rank 8 was asked for, and the factors have 1"


def test_a_product_of_lower_rank_than_its_factors():
    side = with_adapter()
    side.arrays["0/b"][:, 1] = 0
    lint = lints(side)["rank"]
    assert (lint.state, lint.value) == ("warning", 1)


def test_factors_that_are_not_finite():
    assert "finite factors" in problems(with_adapter(norm_b=float("nan")))


@pytest.mark.parametrize(("scale", "state"), [(2.0, "ok"), (512.0, "warning"), (1e-6, "warning")])
def test_scales_outside_of_what_is_usual(scale, state):
    assert lints(with_adapter(scale=scale, alpha=None))["scale"].state == state


def test_a_module_that_adds_something_else_than_its_factors_say():
    assert "scale" in problems(with_adapter(seen_scale=2.0, unexplained=0.7))


def test_dropout_without_gradients():
    side = with_adapter().forward(IDS, training=True, dropouts=12, where="s.py:7")
    lint = lints(side)["mode"]
    assert (lint.state, lint.value, lint.where) == ("problem", 12, "s.py:7")
    assert lints(Side().forward(IDS, training=True))["mode"].state == "ok"
    trained = Side().forward(IDS, phase="train", grad=True, training=True, dropouts=12)
    assert "mode" not in lints(trained)


def padded(mask, positions=None):
    pads = TokenizerSeen(name="t", size=9, vocabulary="v", template=None, special={"pad": 0})
    arrays = {} if positions is None else {"positions": positions}
    return Side().add(pads).forward([[0, 0, 5, 6], [3, 4, 5, 6]], mask=mask, **arrays)


def test_padding_that_is_attended_to():
    assert problems(padded([[1, 1, 1, 1], [1, 1, 1, 1]])) == {"padding"}
    assert problems(padded([[0, 0, 1, 1], [1, 1, 1, 1]])) == set()


def test_positions_that_count_the_padding():
    mask = [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert lints(padded(mask, [[0, 1, 2, 3]]))["positions"].state == "warning"
    assert "positions" not in lints(padded(mask, [[1, 1, 0, 1], [0, 1, 2, 3]]))


def labelled(labels):
    pads = TokenizerSeen(name="t", size=9, vocabulary="v", template=None, special={"pad": 0})
    ids = [[5, 6, 7, 0]]
    return Side().add(pads).forward(ids, phase="train", grad=True, labels=[labels])


@pytest.mark.parametrize(
    ("labels", "state", "words"),
    [
        ([-100, -100, 7, -100], "ok", "1 supervised token in 1 row"),
        ([5, 6, 7, -100], "ok", "also of prompts"),
        ([-100, -100, -100, -100], "problem", "all labels are -100"),
        ([-100, 6, 7, 0], "problem", "padding is supervised"),
    ],
)
def test_labels(labels, state, words):
    lint = lints(labelled(labels))["labels"]
    assert lint.state == state
    assert words in lint.words


def test_the_first_module_that_is_not_finite_is_named_with_what_stood_before_it():
    name = "model.layers.3.mlp.act_fn"
    largest = {"model.layers.3.mlp.up_proj": 60000.0, "model.layers.2": 12.0}
    side = Side().forward(IDS, dtype="float16", nonfinite=name, largest=largest)
    lint = lints(side)["finite"]
    assert (lint.state, lint.place) == ("problem", name)
    assert "60,000 at model.layers.3.mlp.up_proj, of at most 65,504 in float16" in lint.words


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    lint = lints(Side().add(step(1)).add(step(2, loss=float("nan"))))["finite"]
    assert (lint.state, lint.place) == ("problem", "step 2")


@pytest.mark.parametrize("name", ["repeat", "row", "cache", "split"])
def test_a_side_that_does_not_agree_with_itself(name):
    fine = Side().forward(IDS).add(Check(name=name, unit="nats", values=(0.0, 1e-9)))
    assert problems(fine) == set()
    bad = Side().forward(IDS).add(Check(name=name, unit="nats", values=(0.0, 0.3)))
    assert problems(bad) == {f"self-check: {name}"}


def decoded(cached, **fields):
    """Three tokens by hand: the prompt, then one token at a time."""
    side = Side().forward([[5, 6, 7]])
    for number, token in enumerate((8, 9)):
        side.forward([[token]], phase="decode", past=3 + number if cached else 0, where="s.py:4")
    return side.generation([(5, 6, 7)], [(8, 9, 4)], passes=(0, 1, 2), **fields)


def test_lost_context_is_found_in_one_side_alone():
    lint = lints(decoded(cached=False))["context"]
    assert (lint.state, lint.where) == ("problem", "s.py:4")
    assert "one token and no cache" in lint.words
    assert lints(decoded(cached=True))["context"].state == "ok"


def test_drawing_without_a_seed():
    draws = tuple(Draw(row=0, step=n, token=4, how="draw", temperature=0.7) for n in (1, 2, 3))
    settings = {"greedy": False, "temperature": 0.7}
    unseeded = decoded(cached=True, draws=draws, settings=settings)
    assert lints(unseeded)["seed"].state == "warning"
    unseeded.events.insert(0, Seeded(library="torch", seed=3))
    assert lints(unseeded)["seed"].state == "ok"


def test_texts_that_all_end_at_their_longest_length():
    assert lints(decoded(cached=True, ended=("length",)))["ending"].state == "warning"
    assert "ending" not in lints(decoded(cached=True, ended=("eos",)))


def trained(steps, *events, **settings):
    side = Side().settings(**settings)
    for number in range(1, steps + 1):
        side.add(step(number, base="w"))
    for event in events:
        side.add(event)
    return side


def test_merges_are_held_against_the_declared_schedule():
    declared = {"boost__merge_every": 6}
    merges = [Happened(what="merge", step=n, where="s.py:5") for n in (4, 8, 12)]
    lint = lints(trained(12, *merges, **declared))["merges"]
    assert (lint.state, lint.value, lint.where) == ("problem", 4, "s.py:5")
    assert "after step 4, 8, 12 (every 4), and boost.merge_every is 6" in lint.words
    right = [Happened(what="merge", step=n) for n in (6, 12)]
    assert lints(trained(12, *right, **declared))["merges"].state == "ok"
    assert lints(trained(12, **declared))["merges"].state == "problem"


def test_a_base_that_moves_without_a_merge():
    moving = Side().add(step(1, base="w")).add(step(2, base="v"))
    lint = lints(moving)["base unchanged"]
    assert (lint.state, lint.value) == ("problem", 2)
    assert lints(trained(3))["base unchanged"].state == "ok"
    moving.add(Happened(what="merge", step=1))
    assert lints(moving)["base unchanged"].state == "ok"


def test_an_adapter_that_does_not_move():
    side = Side().add(step(1, adapter="d")).add(step(2, adapter="d"))
    assert lints(side)["learning"].state == "problem"


def test_an_update_too_small_for_the_weights_that_it_was_merged_into():
    def merged(size):
        side = with_adapter(count=1, b=size, seen_scale=None, merged=True)
        name = "model.layers.0.self_attn.q_proj"
        weights = Weights(model="model-0", name="w", dtype="bfloat16", sketches={name: "w"})
        side.arrays["w"] = np.ones((4, 4), np.float32)
        side.events.insert(0, weights)
        return lints(side.add(Happened(what="merge", where="s.py:8")))

    assert merged(1e-6)["merge precision"].state == "problem"
    assert "merge precision" not in merged(1.0)


@pytest.mark.parametrize(("status", "grave"), [("running", False), ("finished", True)])
def test_nothing_computed_is_a_problem_once_it_has_ended(status, grave):
    side = replace(Side(kind="run").evidence, about={"status": status})
    found = [each for look in LOOKS for each in look(side)]
    assert any(each.state == "problem" for each in found) is grave


def test_problems_stand_first_and_decide(tmp_path, monkeypatch):
    side = with_adapter(seen_scale=1.0).forward(IDS)
    monkeypatch.setattr(doctoring, "open_evidence", lambda *_: side.evidence)
    found = doctor("x")
    assert not found.healthy
    assert found.lints[0].name == "scale"
    assert found.words.startswith("1 problem, ")
    assert found.record()["healthy"] is False
