from __future__ import annotations

import pytest
import torch
from torch import nn

from weft.diagnose.record.nulls import _nudged
from weft.runs.evidence import Check, Notice

LEFT = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
COUNTED = MASK.cumsum(-1).sub(1).clamp(min=0)


def score(model, **inputs):
    with torch.no_grad():
        return model(LEFT, **inputs)


def nats(left, name):
    (check,) = (c for c in left.of(Check) if c.name == name and c.unit == "nats")
    return check


def test_a_sound_script_differs_from_itself_by_rounding_only(make_model, record):
    model = make_model("llama")
    left = record(lambda: score(model, attention_mask=MASK, position_ids=COUNTED))
    assert nats(left, "repeat").values == (0.0,)
    for name in ("row", "cache", "ulp"):
        assert 0 <= max(nats(left, name).values) < 1e-9
    assert {check.model for check in left.of(Check)} == {"model-0"}
    assert max(nats(left, "ulp").values) > 0


@pytest.mark.parametrize(
    "inputs",
    [{}, {"attention_mask": MASK}],
    ids=["pads are attended", "positions count the pads"],
)
def test_a_padded_batch_that_is_wrong_differs_from_its_rows(make_model, record, inputs):
    model = make_model("gpt2")
    short, long = nats(record(lambda: score(model, **inputs)), "row").values
    if inputs:
        assert short > 1e-6 > long
    else:  # without a mask the padding cannot be known: both are taken as they are
        assert max(short, long) < 1e-9


def test_dropout_that_is_on_makes_a_repeat_differ(make_model, record):
    model = make_model("llama", attention_dropout=0.3).train()

    def run():
        with torch.no_grad():
            model(LEFT)
        model.eval()

    left = record(run)
    assert max(nats(left, "repeat").values) > 1e-6
    assert not model.training


def test_a_model_of_16_bits_is_also_run_in_float32(make_model, record):
    model = make_model("llama").to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    left = record(lambda: score(model, attention_mask=MASK, position_ids=COUNTED))
    ulp = nats(left, "ulp")
    assert 0 < ulp.in_float32 < max(ulp.values)
    assert 0 < max(nats(left, "float32").values) < 0.1
    assert all(
        tensor.dtype == torch.bfloat16 and torch.equal(before[name], tensor)
        for name, tensor in model.state_dict().items()
    )


def test_checks_leave_generators_and_modes_as_they_were(make_model, record):
    model = make_model("llama", attention_dropout=0.3).train()
    states = []

    def run():
        with torch.no_grad():
            model(LEFT)
        states.append(torch.get_rng_state())

    record(run)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert all(part.training for part in model.modules())


def test_a_batch_with_labels_in_two_forwards_has_the_same_loss(make_model, record):
    model = make_model("llama").train()
    left = record(lambda: model(LEFT, labels=LEFT.masked_fill(MASK == 0, -100)).loss)
    (check,) = (check for check in left.of(Check) if check.name == "split")
    assert check.unit == "relative" and max(check.values) < 1e-5


def test_a_model_that_is_gone_is_said_to_be(make_model, record, monkeypatch):
    monkeypatch.setattr("weft.diagnose.record.models.HELD_BYTES", 0)
    left = record(lambda: score(make_model("gpt2")) and None)
    assert left.of(Check) == []
    assert any("gone" in each.text for each in left.of(Notice))


def test_a_hand_written_model_without_a_cache_is_checked_as_far_as_it_can_be(record):
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

        def forward(self, tokens):
            return self.head(self.embed(tokens).cumsum(1))

    model = Small()
    names = {check.name for check in record(lambda: score(model)).of(Check)}
    assert names == {"repeat", "row", "ulp"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_nudged_number_is_the_next_one(dtype):
    table = torch.randn(64, 16).to(dtype)
    moved = _nudged(table, 0)
    up = torch.nextafter(table.double(), torch.tensor(torch.inf, dtype=torch.float64))
    assert up.shape == moved.shape
    step = (moved.double() - table.double()).abs() / table.double().abs()
    epsilon = torch.finfo(dtype).eps
    assert (step > epsilon / 4).all() and (step <= epsilon).all()
    assert ((moved > table).any() and (moved < table).any()).item()
