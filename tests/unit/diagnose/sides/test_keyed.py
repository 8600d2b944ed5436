"""Which temperature Weft's own draws had: read off the tokens, with noise that is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.evidence import Side, pair
from weft.diagnose.rungs.sampling import look
from weft.diagnose.sides.keyed import temperature_drawn
from weft.model.decoding import Decoding
from weft.model.sampling import Chooser
from weft.runs.evidence import Seeded

PROMPTS = [
    np.array([3, 4, 5]),
    np.array([3, 4, 5]),
    np.array([9, 2]),
    *np.arange(24).reshape(12, 2),
]
STEPS, WORDS = 4, 50


def drawn(declared: Decoding, real: Decoding | None = None) -> Side:
    """What one says that declares a sampler and draws with another."""
    numbers = np.random.default_rng(7)
    logits_PSV = (2 * numbers.standard_normal((len(PROMPTS), STEPS, WORDS))).astype(np.float32)
    choose = Chooser(real or declared, PROMPTS)
    said: list[list[int]] = [[] for _ in PROMPTS]
    for step in range(STEPS):
        history = [[*p.tolist(), *own] for p, own in zip(PROMPTS, said, strict=True)]
        rows = range(len(PROMPTS))
        for own, token in zip(
            said, choose(torch.from_numpy(logits_PSV[:, step]), rows, history), strict=True
        ):
            own.append(int(token))
    side = Side().add(Seeded(library="weft", seed=declared.seed))
    settings: dict[str, Any] = declared.record() | {"greedy": declared.greedy}
    for prompt, own, logits_SV in zip(PROMPTS, said, logits_PSV, strict=True):
        first = sum(event.kind == "pass" for event in side.events)
        for step in range(STEPS):
            fed = prompt if not step else [own[step - 1]]
            past = len(prompt) + step - len(fed)
            side.forward(fed, past=past, logits=logits_SV[None, step])
        passes = range(first, first + STEPS)
        side.generation([prompt.tolist()], [own], passes, "weft", settings=settings)
    return side


FILTERED = [
    {},
    {"top_p": 0.9},
    {"top_k": 9, "min_p": 0.02},
    {"top_p": 0.9, "order": "mlx"},
    {"repetition_penalty": 1.3},
]


@pytest.mark.parametrize("more", FILTERED)
def test_what_was_set_gives_the_tokens(more: dict[str, Any]) -> None:
    side = drawn(Decoding(temperature=0.7, seed=5, **more))
    assert temperature_drawn(side.evidence, "model-0") == 0.7


@pytest.mark.parametrize("more", FILTERED)
@pytest.mark.parametrize("real", [0.35, 1.4])
def test_another_temperature_is_found(more: dict[str, Any], real: float) -> None:
    declared = Decoding(temperature=0.7, seed=5, **more)
    side = drawn(declared, declared.model_copy(update={"temperature": real}))
    found = temperature_drawn(side.evidence, "model-0")
    assert found == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("more", FILTERED)
def test_no_temperature_gives_what_another_seed_drew(more: dict[str, Any]) -> None:
    declared = Decoding(temperature=0.7, seed=5, **more)
    side = drawn(declared, declared.model_copy(update={"seed": 6}))
    assert temperature_drawn(side.evidence, "model-0") is None


def test_a_hidden_temperature_is_the_sampler_and_a_hidden_seed_is_not() -> None:
    declared = Decoding(temperature=0.7, seed=5)
    warm = drawn(declared, declared.model_copy(update={"temperature": 1.4}))
    (factor,) = (f for f in look(pair(drawn(declared), warm)).findings if f.nature == "factor")
    assert (factor.label, factor.unit, factor.value) == ("sampler", "temperature", 0.7)
    assert factor.other == pytest.approx(1.4, rel=0.1)
    other = drawn(declared, declared.model_copy(update={"seed": 6}))
    found = look(pair(drawn(declared), other)).findings
    assert [each.label for each in found] == ["seed"]


def test_too_few_tokens_say_nothing() -> None:
    """The first token alone: another temperature gives it, and so do many other seeds."""
    declared = Decoding(temperature=0.01, seed=5)
    side = drawn(declared, declared.model_copy(update={"temperature": 1.4}))
    said = [event for event in side.events if event.kind == "generation"]
    side.events = [event for event in side.events if event not in said[1:]]
    assert temperature_drawn(side.evidence, "model-0") is None
