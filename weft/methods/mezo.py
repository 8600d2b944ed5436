"""MeZO: the gradient from losses at perturbed adapters (Malladi et al., arXiv 2305.17333).

    two-sided   slope = (f(theta + eps z) - f(theta - eps z)) / (2 eps)
    one-sided   slope = (f(theta + eps z) - f(theta)) / eps
    estimate    mean over directions of slope * z

The published code perturbs the weights in place, one copy after the other. Here every perturbed
adapter is a member of a bank, built from theta and a key, and all are scored together:
nothing has to be restored, so nothing drifts.

Shapes: L lanes, Q directions, q directions at a time, M members of a lane, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from weft.core.batch import spans
from weft.methods.config import AT_A_TIME, MezoConfig
from weft.methods.estimate import AT_THETA, PERTURBED, Estimate, Method, Point, Preflight, Scorer
from weft.methods.perturb import combine, draw

PREFLIGHT_DIRECTIONS = 4
PREFLIGHT_TOLERANCE = 0.1
"""Relative change of the slopes, when eps is halved or doubled, from which a warning is due."""
PREFLIGHT_ROUNDINGS = 16
"""Changes of the loss that rounding explains, in roundings of a number as large as the loss."""


@np.errstate(invalid="ignore", over="ignore")  # the loop refuses what is not finite, in words
def estimate(config: MezoConfig, point: Point, scorer: Scorer) -> Estimate:
    """The slopes along `config.directions` directions, and their mean product with these."""
    two = config.sides == "two"
    losses = _two_sided if two else _one_sided
    slopes, means, evidence = [], [], []
    for start, stop in spans(config.directions, AT_A_TIME):
        with scorer.clock("creating adapters"):
            z_LqP = draw(config.noise, point, range(start, stop))
        slope_Lq, mean_L, seen = losses(config.eps, z_LqP, point, scorer)
        slopes.append(slope_Lq)
        means.append(mean_L * (stop - start))
        evidence.append(seen)
    slope_LQ = np.concatenate(slopes, axis=1)
    loss_L = np.sum(means, axis=0) / config.directions
    return Estimate(
        combine(config.noise, point, slope_LQ),
        tuple(loss_L.tolist()),
        PERTURBED if two else AT_THETA,
        {"slope": tuple(np.sqrt((slope_LQ**2).mean(axis=1)).tolist())},
        tuple(
            {
                "key": key.value,
                "slopes": slope_LQ[lane].tolist(),
                **{
                    name: [x for part in evidence for x in part[name][lane]] for name in evidence[0]
                },
            }
            for lane, key in enumerate(point.keys)
        ),
    )


Found = tuple[np.ndarray, np.ndarray, dict[str, list[list[float]]]]
"""Slopes [L, q], the loss to log [L], and what was measured, by name."""


def _two_sided(eps: float, z_LqP: torch.Tensor, point: Point, scorer: Scorer) -> Found:
    theta_L1P = point.theta_LP[:, None]
    with scorer.clock("creating adapters"):
        members_LMP = torch.cat([theta_L1P + eps * z_LqP, theta_L1P - eps * z_LqP], dim=1)
    plus_Lq, minus_Lq = np.split(scorer.losses(members_LMP, point.batches), 2, axis=1)
    mean_L = (plus_Lq + minus_Lq).mean(axis=1) / 2
    seen = {"plus": plus_Lq.tolist(), "minus": minus_Lq.tolist()}
    return (plus_Lq - minus_Lq) / (2 * eps), mean_L, seen


def _one_sided(eps: float, z_LqP: torch.Tensor, point: Point, scorer: Scorer) -> Found:
    theta_L1P = point.theta_LP[:, None]
    with scorer.clock("creating adapters"):
        members_LMP = torch.cat([theta_L1P, theta_L1P + eps * z_LqP], dim=1)
    loss_LM = scorer.losses(members_LMP, point.batches)
    here_L1, plus_Lq = loss_LM[:, :1], loss_LM[:, 1:]
    return (plus_Lq - here_L1) / eps, here_L1[:, 0], {"plus": plus_Lq.tolist()}


def preflight(config: MezoConfig, point: Point, scorer: Scorer) -> Preflight | None:
    """Whether eps is where slopes are trustworthy, from the first lane's first batch.

    Along the same directions the slopes are taken at eps / 2, eps and 2 eps, with no more members
    in a forward than a step has. Where curvature dominates they part when eps grows; where
    rounding does they part when it shrinks.
    """
    if not config.preflight:
        return None
    with scorer.clock("preflight"):
        return _look(config, point, scorer)


@np.errstate(invalid="ignore", over="ignore")
def _look(config: MezoConfig, point: Point, scorer: Scorer) -> Preflight:
    first = replace(point.part(0, 1), keys=[point.keys[0].fold("preflight")])
    here = float(scorer.losses(first.theta_LP[:, None], first.batches)[0, 0])
    losses = _two_sided if config.sides == "two" else _one_sided
    slopes: dict[float, list[np.ndarray]] = {0.5: [], 1.0: [], 2.0: []}
    seen_M = []
    for start, stop in spans(PREFLIGHT_DIRECTIONS, config.directions):
        z_LqP = draw(config.noise, first, range(start, stop))
        for factor, parts in slopes.items():
            slope_Lq, _, seen = losses(config.eps * factor, z_LqP, first, scorer)
            parts.append(slope_Lq[0])
            if factor == 1:
                seen_M += [loss for name in seen for loss in seen[name][0]]
    half, whole, double = map(np.concatenate, slopes.values())
    size = float(np.sqrt((whole**2).mean()))
    smaller, larger = (
        float(np.sqrt(((other - whole) ** 2).mean())) / size if size else float("nan")
        for other in (half, double)
    )
    change = float(np.abs(np.array(seen_M) - here).max())
    facts = {
        "slope": size,
        "change_at_half": smaller,
        "change_at_double": larger,
        "loss_change": change,
    }
    finite = {name: x if np.isfinite(x) else None for name, x in facts.items()}
    bound = PREFLIGHT_ROUNDINGS * scorer.rounding * abs(here)
    warning = _warning(config.eps, size, smaller, larger, change > bound)
    return Preflight({"eps": config.eps, **finite}, warning)


def _warning(eps: float, size: float, smaller: float, larger: float, large: bool) -> str | None:
    """Truncation errors grow with eps, rounding errors shrink with it.

    Far beyond the curvature slopes are noise, too, but of a loss that changes by more (`large`)
    than rounding ever does.
    """
    if not np.isfinite(size):
        return f"preflight: the loss is not finite within 2 * {eps:g} of the start"
    if size == 0:
        return f"preflight: at eps {eps:g} the loss does not change at all: eps is too small"
    if max(smaller, larger) < PREFLIGHT_TOLERANCE:
        return None
    if larger > 2 * smaller or (large and larger > PREFLIGHT_TOLERANCE):
        return (
            f"preflight: curvature dominates at eps {eps:g}: slopes change by {larger:.0%} at "
            "twice that; a smaller eps would be closer to the gradient"
        )
    return (
        f"preflight: rounding dominates at eps {eps:g}: slopes change by {smaller:.0%} at half "
        "of it; a larger eps, or a base in fp32, would measure better"
    )


def replay(config: MezoConfig, point: Point, evidence: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """The direction of a step again, from the slopes that its evidence holds."""
    return combine(config.noise, point, np.array([line["slopes"] for line in evidence]))


MEZO = Method(
    estimate,
    preflight,
    replay,
    scalars=lambda config: ("slopes", config.directions),
)
