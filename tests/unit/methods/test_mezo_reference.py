"""A hundred steps of Weft's MeZO and of MeZO as it is published, along the same directions.

The reference is PEFT's adapter on transformers' model, one adapter at a time: two forwards one
after the other on padded rows, a slope that is a plain number, and an update tensor by tensor.
From Weft it takes the numbers of each direction, and nothing else.
"""

import numpy as np
import peft
import pytest
import torch

from weft.core.batch import IGNORE, Batch, Choice, Example
from weft.core.keys import Key
from weft.engines.scorer import LocalScorer
from weft.methods.config import MezoConfig, OptimiserConfig
from weft.methods.estimate import Point
from weft.methods.optimise import Moments, update
from weft.methods.registry import METHODS
from weft.model.adapter import initial_adapter
from weft.model.base import prepare
from weft.model.config import AdapterConfig
from weft.model.noise import normal, rademacher
from weft.model.objectives import TOKENS, MeanChoice, OneTokenChoice
from weft.model.sites import choose_sites

STEPS, LR = 100, 1e-3
ADAPTER = AdapterConfig(rank=2, alpha=32, targets=("q_proj", "v_proj"))
ROUNDING = 2e-6
"""Of a loss, which comes from logits in fp32; a slope has this over eps."""


class Reference:
    """Published MeZO over one adapter of PEFT."""

    def __init__(self, model, layout, flat_P, loss):
        config = peft.LoraConfig(
            r=ADAPTER.rank, lora_alpha=ADAPTER.alpha, target_modules=list(ADAPTER.targets)
        )
        self.model = peft.get_peft_model(model, config).eval()
        self.loss = loss
        self.parameters = []
        for name, factors in layout.factors(flat_P).items():
            module = self.model.get_base_model().get_submodule(name)
            for part, factor in zip((module.lora_A, module.lora_B), factors, strict=True):
                part["default"].weight.data.copy_(factor)
                self.parameters.append(part["default"].weight)

    def theta(self):
        return torch.cat([p.data.reshape(-1) for p in self.parameters])

    def move(self, origin_P, factor, z_P):
        """Every tensor to its part of origin + factor * z."""
        start = 0
        for p in self.parameters:
            here = slice(start, start + p.numel())
            p.data = (origin_P[here] + factor * z_P[here]).view(p.shape)
            start += p.numel()

    @torch.inference_mode()
    def at(self, origin_P, factor, z_P, batch):
        self.move(origin_P, factor, z_P)
        return self.loss(self.model, batch).item()

    def step(self, config, batch, directions):
        """The losses (f+ and f-, or f+ and f) and the slope of each direction, and the update."""
        origin_P = self.theta()
        total_P = torch.zeros_like(origin_P)
        seen = []
        for z_P in directions:
            up = self.at(origin_P, config.eps, z_P, batch)
            if config.sides == "two":
                down = self.at(origin_P, -config.eps, z_P, batch)
                slope = (up - down) / (2 * config.eps)
            else:
                down = self.at(origin_P, 0.0, z_P, batch)
                slope = (up - down) / config.eps
            total_P += slope * z_P
            seen.append((up, down, slope))
        self.move(origin_P, -LR / len(directions), total_P)
        return np.array(seen).T


def padded(rows):
    values = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(values)
    for number, row in enumerate(rows):
        values[number, : len(row)] = torch.as_tensor(row)
        mask[number, : len(row)] = 1
    return values, mask


def log_probs(model, rows):
    """Of every token but the first of each row, [rows, length - 1]."""
    ids, mask = padded(rows)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].double()
    return logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)


def token_loss(model, batch):
    """Cross-entropy of the supervised tokens."""
    found = log_probs(model, [example.ids_T for example in batch.examples])
    counted, _ = padded([example.labels_T[1:] != IGNORE for example in batch.examples])
    return -found[counted.bool()].mean()


def choice_loss(model, batch):
    """Cross-entropy over the candidates, each by the mean log-probability of its tokens."""
    losses = []
    for choice in (example.choice for example in batch.examples):
        rows = [[*choice.prompt_T, *candidate] for candidate in choice.candidates]
        found = log_probs(model, rows)
        start = len(choice.prompt_T) - 1
        means = [found[k, start : len(row) - 1].mean() for k, row in enumerate(rows)]
        losses.append(-torch.stack(means).log_softmax(0)[choice.right])
    return torch.stack(losses).mean()


def choices(batch, candidates):
    """The same rows, as prompts with candidates."""
    return Batch(
        tuple(
            Example(e.id, e.ids_T, e.labels_T, Choice(e.ids_T, candidates, number % 2))
            for number, e in enumerate(batch.examples)
        )
    )


def sharp(model):
    """Weights so large that a loss changes by much more than its rounding."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    return model


NOISES = {"gaussian": normal, "rademacher": rademacher}
ONE_TOKEN, SEVERAL = ((5,), (9,)), ((5, 11, 3), (9,))

CASES = {
    "two lanes": (MezoConfig(eps=0.1), TOKENS, token_loss, None, 2),
    "several directions": (MezoConfig(eps=0.1, directions=3), TOKENS, token_loss, None, 1),
    "one side": (MezoConfig(eps=0.1, directions=2, sides="one"), TOKENS, token_loss, None, 1),
    "rademacher": (MezoConfig(eps=0.1, noise="rademacher"), TOKENS, token_loss, None, 1),
    "usual eps": (MezoConfig(), TOKENS, token_loss, None, 1),
    "choice at one position": (MezoConfig(eps=0.1), OneTokenChoice(), choice_loss, ONE_TOKEN, 1),
    "choice by means": (MezoConfig(eps=0.1), MeanChoice(), choice_loss, SEVERAL, 1),
}
"""Method, objective, the reference's loss, the candidates, and how many adapters train at once."""


@pytest.mark.parametrize("case", CASES)
def test_a_hundred_steps_are_those_of_published_mezo(case, make_model, make_batch):
    config, objective, loss, candidates, lanes = CASES[case]
    base = prepare("opt", sharp(make_model("opt-350m")), NoTokenizer())
    layout = choose_sites(base.sites, ADAPTER)
    scorer = LocalScorer(base, layout, objective)
    start_LP = torch.stack([initial_adapter(layout, Key.of(lane)).flat for lane in range(lanes)])
    references = [
        Reference(sharp(make_model("opt-350m")), layout, flat_P, loss) for flat_P in start_LP
    ]
    optimiser = OptimiserConfig(name="sgd", lr=LR, clip=None)
    theta_LP, moments = start_LP, Moments.fresh(start_LP)
    for step in range(STEPS):
        batches = [make_batch(lanes * step + lane) for lane in range(lanes)]
        if candidates:
            batches = [choices(batch, candidates) for batch in batches]
        keys = [Key.of(lane).fold("step", step) for lane in range(lanes)]
        estimate = METHODS["mezo"].estimate(config, Point(theta_LP, None, batches, keys), scorer)
        for reference, batch, key, found in zip(
            references, batches, keys, estimate.evidence, strict=True
        ):
            directions = [
                NOISES[config.noise](layout.size, key.fold("direction", number))
                for number in range(config.directions)
            ]
            up, other, slopes = reference.step(config, batch, directions)
            assert found["plus"] == pytest.approx(up, rel=1e-5), step
            if config.sides == "two":
                assert found["minus"] == pytest.approx(other, rel=1e-5), step
            rounding = ROUNDING / config.eps
            assert found["slopes"] == pytest.approx(slopes, rel=1e-5, abs=rounding), step
        theta_LP, moments = update(
            theta_LP, estimate.direction_LP, torch.full((lanes, 1), LR), moments, optimiser
        )
    for lane, reference in enumerate(references):
        torch.testing.assert_close(theta_LP[lane], reference.theta(), rtol=1e-5, atol=1e-5)
        assert (theta_LP[lane] - start_LP[lane]).norm() > 0.3  # it went somewhere


class NoTokenizer:
    pad_token_id = None
    eos_token_id = 1
