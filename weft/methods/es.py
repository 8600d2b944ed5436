"""Evolution strategies: the centre of a population moves to where rewards are better.

    members     centre + noise * eps_i, in pairs with -eps_i unless `antithetic` is off
    direction   -(1/N) * sum of weight_i * eps_i, in units of the noise

(arXiv 2509.24372, and arXiv 1703.03864 for pairs and ranks.) What a run ends with is the centre:
the best of N noisy scores is mostly luck. It is graded in every generation, as one more member.

Shapes: L lanes, N members, E prompts, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from weft.core.errors import InputError
from weft.methods.calibrate import calibrate
from weft.methods.config import EsConfig
from weft.methods.estimate import AT_THETA, Estimate, Graded, Method, Point, Preflight, Scorer
from weft.methods.population import Population
from weft.methods.shaping import Shaped, shape


def population_of(config: EsConfig, point: Point, lane: int) -> Population:
    """The members of a lane in this generation."""
    assert point.noise_LP is not None
    noise_P = point.noise_LP[lane] * _scale(config, point)
    if point.free_LP is not None:
        noise_P = noise_P * point.free_LP[lane]
    key = point.keys[lane].fold("population")
    return Population(point.theta_LP[lane], noise_P, key, config.population, config.antithetic)


def _scale(config: EsConfig, point: Point) -> float:
    """How many times the calibrated noise members lie away from the centre."""
    return config.noise.perturb_scale if point.step else config.noise.init_scale


def estimate(config: EsConfig, point: Point, scorer: Scorer) -> Estimate:
    """One generation of every lane."""
    lanes = [_generation(config, point, lane, scorer) for lane in range(len(point.keys))]
    names = {name for stats, _ in lanes for name in stats}
    evidence = tuple(line for _, line in lanes)
    return Estimate(
        replay(config, point, evidence),
        tuple(-stats["reward"] for stats, _ in lanes),
        AT_THETA,  # minus the centre's mean reward
        {name: tuple(stats.get(name, math.nan) for stats, _ in lanes) for name in sorted(names)},
        evidence,
    )


Found = tuple[dict[str, float], dict[str, Any]]
"""Numbers for the record, and evidence."""


def _generation(config: EsConfig, point: Point, lane: int, scorer: Scorer) -> Found:
    population = population_of(config, point, lane)
    key = point.keys[lane]
    graded = scorer.rewards(lane, population, point.batches[lane], key.fold("sampling"))
    shaped = shape(config, graded.reward_NE[:-1])
    evidence = {
        "key": key.value,
        "rewards": [_number(reward) for reward in shaped.reward_N.tolist()],
        "weights": shaped.weight_N.tolist(),
    }
    if graded.failures:
        evidence["failures"] = dict(graded.failures)
    return _stats(graded, shaped), evidence


def _stats(graded: Graded, shaped: Shaped) -> dict[str, float]:
    centre_E = graded.reward_NE[-1]
    reward_N = shaped.reward_N
    return {
        "reward": _mean(centre_E),
        "reward_mean": float(reward_N.mean()),
        "reward_std": float(reward_N.std()),
        "reward_best": float(reward_N.max()),
        "reward_worst": float(reward_N.min()),
        "ties": shaped.ties,
        "flat": float(shaped.flat),
        "failed": float(np.isnan(graded.reward_NE).sum()),
        "completions": float(graded.reward_NE.size),
        **{f"centre_{name}": _mean(part_NE[-1]) for name, part_NE in graded.parts.items()},
    }


def _mean(value_E: np.ndarray) -> float:
    """Of what is there; NaN where nothing is."""
    known = value_E[~np.isnan(value_E)]
    return float(known.mean()) if len(known) else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def replay(config: EsConfig, point: Point, evidence: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """The direction of a generation again, [L, P], from the weights that its evidence holds.

    Its unit is `point.noise_LP`: in generation 0 members may lie further out than that.
    """
    scale = _scale(config, point)
    return torch.stack(
        [
            population_of(config, point, lane).combine(np.array(line["weights"])) * -scale
            for lane, line in enumerate(evidence)
        ]
    )


def preflight(config: EsConfig, point: Point, scorer: Scorer) -> Preflight | None:
    """Is the centre a saddle? Where A and B are zero, f(A, B) = f(-A, -B)."""
    if point.theta_LP.any(dim=1).all():
        return None
    if config.antithetic:
        raise InputError(
            "the population starts around zero with pairs: at A = B = 0 the function of (A, B) is "
            "that of (-A, -B), so both members of a pair are the same and nothing is ever learnt",
            hint="start from a random A (leave out adapter.init=zero), or method.antithetic=false",
        )
    return Preflight(
        {"saddle": True},
        "es: the centre is zero, where the function of (A, B) is that of (-A, -B): the first "
        "updates are noise, until they have led away from it",
    )


ES = Method(
    estimate,
    preflight=preflight,
    replay=replay,
    calibrate=lambda config, *about: calibrate(config.noise, *about),
    scalars=lambda config: ("weights", config.population),
)
