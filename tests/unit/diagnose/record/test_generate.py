from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.watching import watching
from weft.runs.evidence import Generation, Pass
from weft.runs.recording import Recording

IDS = torch.tensor([[5, 17, 30, 44], [0, 0, 9, 8]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])


@pytest.fixture
def model(make_model: Callable[..., Any]) -> Any:
    """One that never ends by itself."""
    made = make_model("llama")
    made.generation_config.eos_token_id = made.config.eos_token_id = 96
    made.generation_config.pad_token_id = 0
    return made


def watched(tmp_path: Path, model: Any, **given: Any) -> tuple[list[list[int]], Generation]:
    """What `generate` made of the batch, the same with and without looking, and its event."""
    given = {"input_ids": IDS, "attention_mask": MASK, "max_new_tokens": 6} | given
    torch.manual_seed(3)
    plain = model.generate(**given)
    with watching(tmp_path / "recording") as seen:
        torch.manual_seed(3)
        made = model.generate(**given)
    assert torch.equal(plain, made)
    (event,) = seen.of(Generation)
    assert event.passes == tuple(each.index for each in seen.of(Pass))
    return made[:, given["input_ids"].shape[1] :].tolist(), event


def test_a_call_has_its_prompts_without_padding_and_its_new_tokens(
    tmp_path: Path, model: Any
) -> None:
    new, event = watched(tmp_path, model, do_sample=False)
    assert event.driver == "generate"
    assert event.prompts == ((5, 17, 30, 44), (9, 8))
    assert [list(row) for row in event.tokens] == new
    assert event.ended == ("length", "length")
    assert {draw.how for draw in event.draws} == {"argmax"}
    assert len(event.draws) == 12
    assert event.where is not None
    assert event.where.startswith("unit/diagnose/record/test_generate.py:")


def test_settings_are_those_that_were_resolved(tmp_path: Path, model: Any) -> None:
    model.generation_config.repetition_penalty = 1.3  # nobody asks for it in the call
    _, event = watched(tmp_path, model, do_sample=True, temperature=0.6, top_k=12)
    expected = {
        "max_tokens": 6,
        "greedy": False,
        "temperature": 0.6,
        "top_k": 12,
        "top_p": 1.0,
        "repetition_penalty": 1.3,
        "num_beams": 1,
        "eos": [96],
        "pad": 0,
    }
    assert event.settings | expected == event.settings


def test_draws_are_what_was_drawn_from(tmp_path: Path, model: Any) -> None:
    new, event = watched(tmp_path, model, do_sample=True, temperature=0.6, top_k=12)
    assert [[d.token for d in event.draws if d.row == row] for row in (0, 1)] == new
    assert {draw.how for draw in event.draws} == {"draw"}
    for draw in event.draws:
        assert draw.temperature == pytest.approx(0.6, rel=1e-4)
        assert draw.kept == 12
    with torch.no_grad():
        first = model(IDS, attention_mask=MASK).logits[0, -1].softmax(-1)
    draw = next(d for d in event.draws if (d.row, d.step) == (0, 0))
    assert draw.probability == pytest.approx(float(first[draw.token]), rel=1e-4)


def test_rows_end_at_their_end_token(tmp_path: Path, model: Any) -> None:
    free, _ = watched(tmp_path / "free", model, do_sample=False)
    eos = next(token for token in free[0][1:4] if token not in free[1])
    _, event = watched(tmp_path, model, do_sample=False, eos_token_id=eos)
    end = free[0].index(eos) + 1
    assert event.ended == ("eos", "length")
    assert list(event.tokens[0]) == free[0][:end]
    assert len([draw for draw in event.draws if draw.row == 0]) == end


def test_a_rule_that_ends_a_row_is_told(tmp_path: Path, model: Any) -> None:
    def enough(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1] >= 7)

    new, event = watched(tmp_path, model, do_sample=False, stopping_criteria=[enough])
    assert event.ended == ("stop", "stop")
    assert [list(row) for row in event.tokens] == new
    assert event.settings["max_tokens"] == 6


@pytest.mark.parametrize("given", [{"num_beams": 3}, {"num_beams": 3, "do_sample": True}])
def test_beams_have_tokens_and_no_single_draws(
    tmp_path: Path, model: Any, given: dict[str, Any]
) -> None:
    new, event = watched(tmp_path, model, **{"do_sample": False} | given)
    assert [list(row) for row in event.tokens] == new
    assert event.prompts == ((5, 17, 30, 44), (9, 8))
    assert event.settings["num_beams"] == 3
    assert event.draws == ()


def test_several_texts_of_a_prompt_are_rows_of_their_own(tmp_path: Path, model: Any) -> None:
    new, event = watched(tmp_path, model, do_sample=True, num_return_sequences=2)
    assert event.prompts == ((5, 17, 30, 44),) * 2 + ((9, 8),) * 2
    assert [list(row) for row in event.tokens] == new


def test_a_call_through_peft_is_one(tmp_path: Path, model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"])).eval()
    new, event = watched(tmp_path, wrapped, do_sample=False)
    assert (event.model, [list(row) for row in event.tokens]) == ("model-0", new)


def test_a_call_that_fails_fails_as_it_would(tmp_path: Path, model: Any) -> None:
    with watching(tmp_path / "recording") as seen:
        with pytest.raises(ValueError, match="max_new_tokens"):
            model.generate(IDS, max_new_tokens=-1)
        model.generate(IDS, attention_mask=MASK, max_new_tokens=2, do_sample=False)
    (event,) = seen.of(Generation)
    assert event.settings["max_tokens"] == 2


def test_the_state_of_the_generator_before_a_call_tells_seeds_apart(
    tmp_path: Path, model: Any
) -> None:
    states = []
    with watching(tmp_path / "recording") as seen:
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            model.generate(IDS, attention_mask=MASK, max_new_tokens=2, do_sample=True)
    states = [event.random for event in seen.of(Generation)]
    assert states[0] == states[2] != states[1]


def test_the_first_completions_have_the_state_that_they_were_drawn_from(
    tmp_path: Path, model: Any
) -> None:
    torch.manual_seed(5)
    torch.rand(1000)
    expected = torch.get_rng_state().numpy()
    with watching(tmp_path / "recording") as seen:
        for _ in range(2):
            model.generate(IDS, attention_mask=MASK, max_new_tokens=2, do_sample=True)
    first, second = seen.of(Generation)
    assert first.state is not None and second.state is None
    assert np.array_equal(Recording(seen.root).array(first.state), expected)


def test_texts_are_there_where_a_tokenizer_was_used(tmp_path: Path, small_base: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(small_base)
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    with watching(tmp_path / "recording") as seen:
        given = tokenizer("the cat sat", return_tensors="pt")
        made = model.generate(**given, max_new_tokens=5, do_sample=False)
    (event,) = seen.of(Generation)
    assert event.texts == (tokenizer.decode(made[0, given.input_ids.shape[1] :]),)
