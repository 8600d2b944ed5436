"""Where an error is made, and not where it shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unit.diagnose.proof.conftest import updates
from weft.core.keys import Key
from weft.diagnose.proof.feeding import readings
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.local import made, trace
from weft.diagnose.proof.replica import Moment, Replica, Row

ROWS = (Row((5, 17, 80, 3)), Row((44, 9, 9, 61, 7), left=2))
KEY = Key.of(0)


def found(a: Replica, b: Replica):
    return made(Engine(), a, b, KEY)


def at(base, names: str) -> Replica:
    """With an update at the modules whose names end so."""
    adapter = updates(AutoModelForCausalLM.from_pretrained(base.load), names) if names else {}
    return Replica("B", base, adapter, ROWS)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_block_that_errs_is_named_whatever_comes_after_it(number, base_on_disk):
    base = base_on_disk()
    error = found(at(base, ""), at(base, f"layers.{number}.mlp.up_proj"))
    assert error is not None and error.place == f"model.layers.{number}"
    assert error.value > 3 * error.floor and error.place in error.words


def test_blocks_are_found_in_other_architectures(base_on_disk):
    base = base_on_disk("gpt2")
    model = AutoModelForCausalLM.from_pretrained(base.load)
    name = "transformer.h.1.mlp.c_fc.weight"
    held = {name: model.get_parameter(name).detach().numpy() * 1.5}
    error = found(at(base, ""), Replica("B", replace(base, changed=held), {}, ROWS))
    assert error is not None and error.place == "transformer.h.1"


def test_an_embedding_that_differs_comes_before_all_blocks(base_on_disk):
    base = base_on_disk()
    model = AutoModelForCausalLM.from_pretrained(base.load)
    moved = model.get_input_embeddings().weight.detach().numpy() * 1.1
    b = Replica("B", replace(base, changed={"model.embed_tokens.weight": moved}), {}, ROWS)
    error = found(at(base, ""), b)
    assert error is not None and error.place == "model.embed_tokens"


def test_a_head_that_differs_comes_after_all_blocks(base_on_disk):
    error = found(at(base_on_disk(), ""), at(base_on_disk(), "lm_head"))
    assert error is not None and error.place == "lm_head"


def test_sides_that_are_the_same_err_nowhere(base_on_disk):
    assert found(at(base_on_disk(), ""), at(base_on_disk(), "")) is None


@torch.no_grad()
def test_errors_are_those_of_blocks_called_one_by_one(base_on_disk):
    """Beside a plain loop over transformers' own blocks, each with A's hidden states."""
    base = base_on_disk()
    model = AutoModelForCausalLM.from_pretrained(base.load).eval()
    (read,) = readings(ROWS[0], at(base, "").context)
    engine = Engine()
    own = trace(engine, Moment(base), read)
    other = trace(engine, Moment(base, at(base, "layers.1.mlp.up_proj").adapter), read, own.fed)
    hidden = model.model(torch.tensor([ROWS[0].prompt]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(own.outs[1], hidden[1][0])
    for n in (1, 3):
        torch.testing.assert_close(other.outs[n], own.outs[n])
    update = at(base, "layers.1.mlp.up_proj").adapter["model.layers.1.mlp.up_proj"]
    block = model.model.layers[1]
    block.mlp.up_proj.weight += torch.from_numpy(update.delta_OI).float()
    angles = model.model.rotary_emb(hidden[1], torch.arange(4)[None])
    out = block(hidden[1], position_embeddings=angles)
    expected = (out[0] if isinstance(out, tuple) else out).reshape(4, -1)
    assert not np.allclose(expected, own.outs[2])
    torch.testing.assert_close(other.outs[2], expected, rtol=1e-4, atol=1e-5)
