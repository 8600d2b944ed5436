from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from tests.support.watching import watching
from weft.runs.evidence import Happened, Notice, Pass, Settings, TrainStep
from weft.runs.sketch import batch_digest, labels_digest

ROWS = [[5, 17, 30, 44, 12], [9, 8, 61], [33, 2, 71, 71, 6, 40]]
MASKED = 1  # supervised from here on


def batch(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right, with labels for all but the first ids."""
    width = max(map(len, rows))
    padded = [row + [0] * (width - len(row)) for row in rows]
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    ids = torch.tensor(padded)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :MASKED] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def labels_of(rows: list[list[int]]) -> list[list[int]]:
    return [[-100] * MASKED + row[MASKED:] for row in rows]


@pytest.fixture
def model(make_model: Callable[..., Any]) -> Any:
    """LoRA with dropout on a tiny Llama."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"])
    return get_peft_model(make_model("llama"), config).train()


def trained(model: Any) -> list[torch.Tensor]:
    return [each for each in model.parameters() if each.requires_grad]


def given_labels(model: Any, rows: list[list[int]]) -> torch.Tensor:
    return model(**batch(rows)).loss


def by_hand(model: Any, rows: list[list[int]]) -> torch.Tensor:
    made = batch(rows)
    labels = made.pop("labels")
    logits = model(**made).logits
    return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))


def shifted(model: Any, rows: list[list[int]]) -> torch.Tensor:
    made = batch(rows)
    labels = F.pad(made.pop("labels")[:, 1:], (0, 1), value=-100)
    return torch.nn.CrossEntropyLoss()(model(**made).logits.transpose(1, 2), labels)


@pytest.mark.parametrize("loss_of", [given_labels, by_hand, shifted])
def test_a_step_is_what_a_plain_loop_says(
    tmp_path: Path, model: Any, loss_of: Callable[..., torch.Tensor]
) -> None:
    optimiser = torch.optim.AdamW(trained(model), lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1)
    expected: list[dict[str, Any]] = []
    with watching(tmp_path / "recording") as seen:
        for _ in range(3):
            losses = []
            for rows in (ROWS[:2], ROWS[2:]):
                loss = loss_of(model, rows) / 2
                loss.backward()
                losses.append(loss.item())
            grads = torch.cat([each.grad.flatten() for each in trained(model)])
            before = torch.cat([each.detach().flatten().clone() for each in trained(model)])
            optimiser.step()
            after = torch.cat([each.detach().flatten() for each in trained(model)])
            optimiser.zero_grad()
            expected.append(
                {
                    "losses": losses,
                    "grad": float(grads.norm()),
                    "update": float((after - before).norm()),
                    "adapter": float(after.norm()),
                }
            )
    steps = seen.of(TrainStep)
    assert [step.step for step in steps] == [1, 2, 3]
    assert [step.passes for step in steps] == [(0, 1), (2, 3), (4, 5)]
    for step, plain in zip(steps, expected, strict=True):
        assert step.losses == pytest.approx(plain["losses"], rel=1e-6)
        assert step.loss == pytest.approx(sum(plain["losses"]) / 2, rel=1e-6)
        assert step.grad_norm == pytest.approx(plain["grad"], rel=1e-5)
        assert step.update_norm == pytest.approx(plain["update"], rel=1e-5)
        assert step.adapter_norm == pytest.approx(plain["adapter"], rel=1e-5)
        assert step.lr == (1e-2,)
        assert step.batch == batch_digest(ROWS[::-1])
        assert step.labels == labels_digest(ROWS, labels_of(ROWS))
        assert step.supervised == sum(len(row) - 1 for row in ROWS)
        assert step.model == "model-0"
    assert len({step.adapter for step in steps}) == 3
    assert len({step.base for step in steps}) == 1


def test_gradients_are_told_by_factor(tmp_path: Path, model: Any) -> None:
    optimiser = torch.optim.SGD(trained(model), lr=0.1)
    with watching(tmp_path / "recording") as seen:
        given_labels(model, ROWS).backward()
        optimiser.step()
    (step,) = seen.of(TrainStep)
    layer = model.base_model.model.model.layers[1].self_attn.v_proj
    name = "model.layers.1.self_attn.v_proj"
    assert step.grad_norms[f"{name}.B"] == pytest.approx(
        float(layer.lora_B["default"].weight.grad.norm()), rel=1e-5
    )
    assert step.grad_norms[f"{name}.A"] == 0.0  # B is zero at the start
    assert len(step.grad_norms) == 3 * 2 * 2


def test_looking_changes_no_bit_of_training(tmp_path: Path, make_model: Callable[..., Any]) -> None:
    def run() -> list[torch.Tensor]:
        torch.manual_seed(5)
        config = LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(make_model("llama"), config).train()
        optimiser = torch.optim.AdamW(trained(model), lr=1e-2)
        for _ in range(4):
            given_labels(model, ROWS).backward()
            torch.nn.utils.clip_grad_norm_(trained(model), 0.5)
            optimiser.step()
            optimiser.zero_grad()
        return [each.detach().clone() for each in trained(model)]

    plain = run()
    with watching(tmp_path / "recording"):
        looked = run()
    assert all(torch.equal(one, other) for one, other in zip(plain, looked, strict=True))


def test_clipping_is_told_with_the_norm_before(tmp_path: Path, model: Any) -> None:
    optimiser = torch.optim.SGD(trained(model), lr=0.1)
    with watching(tmp_path / "recording") as seen:
        given_labels(model, ROWS).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained(model), 1e-3)
        optimiser.step()
    (step,) = seen.of(TrainStep)
    assert step.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert settings(seen.of(Settings))["optimiser.clip"] == 1e-3
    assert step.update_norm == pytest.approx(0.1 * 1e-3, rel=1e-2)


def settings(events: list[Settings]) -> dict[str, Any]:
    return {key: value for event in events for key, value in event.values.items()}


def test_an_optimiser_is_described_when_it_first_steps(tmp_path: Path, model: Any) -> None:
    factors = trained(model)
    groups = [{"params": factors[:4], "weight_decay": 0.0}, {"params": factors[4:]}]
    optimiser = torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (step + 1) / 10)
    with watching(tmp_path / "recording") as seen:
        for _ in range(2):
            given_labels(model, ROWS[:2]).backward()
            given_labels(model, ROWS[2:]).backward()
            optimiser.step()
            schedule.step()
    expected = {
        "optimiser.name": "adamw",
        "optimiser.lr": 3e-3,
        "optimiser.betas": [0.8, 0.9],
        "optimiser.eps": 1e-6,
        "optimiser.weight_decay": [0.0, 0.1],
        "optimiser.groups": 2,
        "optimiser.clip": None,
        "batch_size": 3,
        "micro_batch_size": 2,
    }
    found = settings(seen.of(Settings))
    assert found | expected == found
    assert [step.lr for step in seen.of(TrainStep)] == [
        pytest.approx((3e-4, 3e-4)),
        pytest.approx((6e-4, 6e-4)),
    ]


def test_evaluations_between_steps_are_not_theirs(tmp_path: Path, model: Any) -> None:
    optimiser = torch.optim.SGD(trained(model), lr=0.1)
    with watching(tmp_path / "recording") as seen:
        for _ in range(2):
            given_labels(model, ROWS[:2]).backward()
            optimiser.step()
            with torch.no_grad():
                given_labels(model.eval(), ROWS[2:])
            model.train()
    assert [step.passes for step in seen.of(TrainStep)] == [(0,), (2,)]


def test_steps_without_a_backward_have_the_losses_of_their_passes(
    tmp_path: Path, model: Any
) -> None:
    """As in evolution strategies, where gradients are made by hand."""
    optimiser = torch.optim.SGD(trained(model), lr=0.1)
    with watching(tmp_path / "recording") as seen:
        with torch.no_grad():
            loss = given_labels(model, ROWS)
        for each in trained(model):
            each.grad = torch.ones_like(each)
        optimiser.step()
    (step,) = seen.of(TrainStep)
    assert step.loss == pytest.approx(float(loss))
    assert step.passes == (0,)


def test_rows_have_the_names_of_their_records(tmp_path: Path, small_base: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines = ["the cat sat on a mat", "a small red dog ran", "and the dog sat"]
    (tmp_path / "rows.txt").write_text("\n".join(lines) + "\n")
    model = AutoModelForCausalLM.from_pretrained(small_base)
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(tmp_path / "recording", tmp_path) as seen:
        # as a test, this file is a library's: the script's own code is in `tmp_path`
        seen.recorder.data.read(tmp_path / "rows.txt")
        made = tokenizer([lines[2], lines[0]], padding=True, return_tensors="pt")
        model(**made, labels=made.input_ids).loss.backward()
        optimiser.step()
    (step,) = seen.of(TrainStep)
    assert step.rows == ("rows.txt:3", "rows.txt:1")


def test_an_optimiser_of_something_else_is_left_alone(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 3)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    with watching(tmp_path / "recording") as seen:
        for _ in range(2):
            layer(torch.ones(1, 3)).sum().backward()
            optimiser.step()
    assert seen.of(TrainStep) == []
    assert len(seen.of(Notice)) == 1


def test_steps_that_train_nothing_are_steps(tmp_path: Path, model: Any) -> None:
    """As of an adapter that was loaded to be used: gradients flow, and reach no parameter."""
    for each in model.parameters():
        each.requires_grad_(False)
    model.enable_input_require_grads()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    with watching(tmp_path / "recording") as seen:
        for _ in range(2):
            for rows in (ROWS[:2], ROWS[2:]):
                given_labels(model, rows).backward()
            optimiser.step()
    one, two = seen.of(TrainStep)
    assert (one.passes, two.passes) == ((0, 1), (2, 3))
    assert (one.adapter, one.base) == (two.adapter, two.base)
    assert one.grad_norm == one.update_norm == 0
    assert settings(seen.of(Settings))["optimiser.tensors"] == 0


def test_steps_that_are_taken_by_hand_are_said_not_to_be_seen(tmp_path: Path, model: Any) -> None:
    with watching(tmp_path / "recording") as seen:
        given_labels(model, ROWS).backward()
        with torch.no_grad():
            for each in trained(model):
                each -= 0.1 * each.grad
    assert seen.of(TrainStep) == []
    assert "steps by hand are not seen" in seen.of(Notice)[0].text


def test_nothing_is_left_behind(tmp_path: Path, model: Any) -> None:
    before = torch.autograd.backward, F.cross_entropy, torch.optim.Optimizer.__init__
    with watching(tmp_path / "recording") as seen:
        pass
    assert (torch.autograd.backward, F.cross_entropy, torch.optim.Optimizer.__init__) == before
    optimiser = torch.optim.SGD(trained(model), lr=0.1)
    given_labels(model, ROWS).backward()
    optimiser.step()
    assert seen.of(TrainStep) == []
    assert seen.of(Pass) == []


def test_a_base_that_is_not_frozen_shows_in_its_digest(tmp_path: Path, model: Any) -> None:
    for each in model.parameters():
        each.requires_grad_(True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(tmp_path / "recording") as seen:
        for _ in range(2):
            given_labels(model, ROWS).backward()
            optimiser.step()
            optimiser.zero_grad()
    one, two = seen.of(TrainStep)
    assert one.base != two.base
    assert [event.what for event in seen.of(Happened)] == []
