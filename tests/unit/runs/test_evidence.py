from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from weft.runs.evidence import (
    EVENT,
    AdapterModule,
    Check,
    Draw,
    Encoded,
    Event,
    Generation,
    Happened,
    Notice,
    Pass,
    Seeded,
    Settings,
    Slot,
    Snapshot,
    TensorSeen,
    TokenizerSeen,
    TrainStep,
    Weights,
)

MODULE = AdapterModule(
    rank=2, shape=(4, 8), norm_a=1.0, norm_b=0.0, norm_update=0.0, digest_a="a", digest_b="b"
)
EVENTS: list[Event] = [
    Settings(values={"optimiser.lr": 1e-3, "adapter.targets": ["q_proj"]}, where="x.py:1"),
    Seeded(library="torch", seed=3),
    TokenizerSeen(name="tiny", size=9, vocabulary="v", template=None, special={"eos": 0}),
    Encoded(text="ü", ids=(1, 2), slots=(Slot(start=0, stop=1, record="a:1", field="b"),)),
    Weights(model="model-0", name="tiny", tensors={"w": TensorSeen(
        shape=(2, 2), dtype="float32", digest="d", norm=1.0)}, tied=(("w", "v"),)),
    Snapshot(model="model-0", when="use", style="peft", modules={"q": MODULE}),
    Pass(model="model-0", index=0, phase="score", rows=1, length=2, loss=math.nan),
    Generation(model="model-0", driver="loop", prompts=((1,),), tokens=((2,),),
               draws=(Draw(row=0, step=0, token=2, how="draw"),)),
    TrainStep(step=1, loss=math.inf, losses=(math.nan, 1.0)),
    Happened(what="merge", facts={"modules": 2}),
    Check(name="repeat", unit="nats", values=(0.0,)),
    Notice(text="no room"),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_an_event_reads_back_as_it_was(event):
    assert repr(EVENT.validate_json(event.model_dump_json())) == repr(event)


def test_every_kind_of_event_is_in_the_vocabulary():
    assert len({event.kind for event in EVENTS}) == len(EVENTS) == 12


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "sneeze"},
        {"kind": "seeded", "library": "torch"},
        {"kind": "notice", "text": "a", "more": 1},
        {"kind": "pass", "model": "m", "index": 0, "phase": "odd", "rows": 1, "length": 1},
    ],
    ids=["unknown kind", "missing field", "unknown field", "unknown word"],
)
def test_what_is_no_event_is_refused(raw):
    with pytest.raises(ValidationError):
        EVENT.validate_python(raw)
