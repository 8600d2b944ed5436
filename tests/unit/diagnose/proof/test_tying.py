"""A head that is the embedding, or a tensor of its own, as a factor that can be exchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from weft.diagnose.proof.counterfactuals import explain
from weft.diagnose.proof.feeding import readings
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.measures import Measure, mean_kl, predicted
from weft.diagnose.proof.replica import BaseValue, Context, Replica, Row
from weft.diagnose.proof.solve import Trial, solve
from weft.diagnose.proof.swaps import SWAPS

ROWS = (Row((5, 17, 80, 3)), Row((44, 9, 9, 61, 7)))


@pytest.fixture(scope="module")
def tied_base(base_on_disk, tmp_path_factory) -> BaseValue:
    """A base whose configuration ties the head, and whose file has another head all the same."""
    where: Path = tmp_path_factory.mktemp("tied")
    model = AutoModelForCausalLM.from_pretrained(base_on_disk().load)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(where)
    (file,) = where.glob("*.safetensors")
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    drawn = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(3))
    save_file(tensors | {"lm_head.weight": drawn * embedding.std()}, file, {"format": "pt"})
    return BaseValue(str(where))


def dense(base: BaseValue, head: torch.Tensor) -> torch.Tensor:
    """Logits of the first row, its last hidden state times a head."""
    model = AutoModelForCausalLM.from_pretrained(base.load)
    with torch.no_grad():
        return model.model(torch.tensor([ROWS[0].prompt])).last_hidden_state[0, -1] @ head.T


def made(base: BaseValue) -> torch.Tensor:
    return Engine().logits(base, {}, readings(ROWS[0], Context()))[0][-1]


def test_a_tied_head_is_the_embedding_and_an_untied_one_that_of_its_file(tied_base):
    (file,) = Path(tied_base.load).glob("*.safetensors")
    tensors = load_file(file)
    for tied, name in ((True, "model.embed_tokens.weight"), (False, "lm_head.weight")):
        expected = dense(tied_base, tensors[name])
        torch.testing.assert_close(made(replace(tied_base, tied=tied)), expected)


def test_an_untied_base_is_tied_to_its_embedding(base_on_disk):
    base = base_on_disk()
    embedding = AutoModelForCausalLM.from_pretrained(base.load).get_input_embeddings().weight
    torch.testing.assert_close(made(replace(base, tied=True)), dense(base, embedding.detach()))


def test_tying_is_exchanged_in_both_directions(base_on_disk):
    base = base_on_disk()
    model = AutoModelForCausalLM.from_pretrained(base.load)
    head = model.lm_head.weight.detach().numpy() * 1.5
    a = Replica("A", replace(base, tied=True), rows=ROWS)
    b = Replica("B", replace(base, tied=False, changed={"lm_head.weight": head}), rows=ROWS)
    engine, measure = Engine(), Measure.of(a, b)
    own = predicted(engine, a, measure)

    def distance(replica: Replica) -> float:
        return mean_kl(own, predicted(engine, replica, measure))

    solved = solve(a, b, [Trial("tied")], distance, 1e-9)
    (shown,) = solved.accepted
    assert solved.gap > 1e-6 and solved.confidence(shown) == "proven"
    assert SWAPS["tied"](a, a, (), None) is a


def test_a_head_that_nobody_recorded_is_guessed(tied_base):
    """The replica has the embedding as its head; what was recorded came of the file's."""
    engine = Engine()
    replica = Replica("A", replace(tied_base, tied=True), rows=ROWS)
    measure = Measure.of(replica, replica)
    truth = predicted(engine, replica.with_(base=replace(tied_base, tied=False)), measure)

    def apart(mended: Replica) -> float:
        return mean_kl(truth, predicted(engine, mended, measure))

    guess = explain(replica, replica, apart, 1e-9)
    assert guess is not None and (guess.label, guess.factor) == ("tied", "tied")
