"""From rewards to the weights of members: what evolution strategies follow.

    zscore   (reward - mean) / std of the population            (arXiv 2509.24372)
    rank     centred ranks, ties at their average, in units of their std
    per prompt: prompt by prompt, and then the mean over prompts  (arXiv 2511.16652)

Shapes: N members, E prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from weft.methods.config import EsConfig

FLAT = 1e-8
"""A standard deviation below which members are taken to be equal."""


@dataclass(frozen=True, eq=False)
class Shaped:
    """`weight_N` sums to 0; all 0 where no member is better than another.

    `reward_N` are the members' mean rewards as they are ranked, failures filled in.
    """

    weight_N: np.ndarray
    reward_N: np.ndarray
    ties: float  # share of the members whose mean reward another member has, too

    @property
    def flat(self) -> bool:
        """Whether there is nothing to follow."""
        return not self.weight_N.any()


def shape(config: EsConfig, reward_NE: np.ndarray) -> Shaped:
    """The weights of members by their rewards; NaN is a completion that could not be graded.

    Such a cell counts as the worst reward that any member got on the prompt, and a prompt on which
    all failed counts for nobody. A member with nothing but failures is ranked below all others.
    """
    filled_NE = fill(reward_NE)
    failed_N = np.isnan(reward_NE).all(axis=1)
    if filled_NE.shape[1] == 0:  # nothing at all was graded
        return Shaped(np.zeros(len(reward_NE)), np.full(len(reward_NE), np.nan), 1.0)
    reward_N = filled_NE.mean(axis=1)
    weigh = WEIGHTS[config.shaping]
    if config.per_prompt:
        weight_N = weigh(_sunk(filled_NE, failed_N)).mean(axis=1)
    else:
        weight_N = weigh(_sunk(reward_N[:, None], failed_N))[:, 0]
    _, counts = np.unique(reward_N, return_counts=True)
    ties = float(counts[counts > 1].sum() / len(reward_N))
    return Shaped(weight_N, reward_N, ties)


def fill(reward_NE: np.ndarray) -> np.ndarray:
    """Failures as the worst reward of their prompt; without the prompts on which all failed."""
    graded_E = ~np.isnan(reward_NE).all(axis=0)
    reward_NE = reward_NE[:, graded_E]
    worst_E = np.nanmin(reward_NE, axis=0) if reward_NE.size else np.zeros(0)
    return np.where(np.isnan(reward_NE), worst_E, reward_NE)


def _sunk(reward_NK: np.ndarray, failed_N: np.ndarray) -> np.ndarray:
    """The rewards with failed members just below the worst of the others."""
    if not failed_N.any() or failed_N.all():
        return reward_NK
    worst_K = reward_NK[~failed_N].min(axis=0)
    return np.where(failed_N[:, None], np.nextafter(worst_K, -np.inf), reward_NK)


def zscore(reward_NK: np.ndarray) -> np.ndarray:
    """Centred in each column, by the standard deviation of all that."""
    centred_NK = reward_NK - reward_NK.mean(axis=0)
    std = np.sqrt((centred_NK**2).mean())
    return np.zeros_like(centred_NK) if std < FLAT else centred_NK / std


def rank(reward_NK: np.ndarray) -> np.ndarray:
    """Centred ranks in each column, in units of their standard deviation; 0 where all tie."""
    from scipy.stats import rankdata  # here: it takes long to load, and few runs rank

    rank_NK = rankdata(reward_NK, method="average", axis=0)
    centred_NK = rank_NK - rank_NK.mean(axis=0)
    std_K = np.sqrt((centred_NK**2).mean(axis=0))
    return centred_NK / np.where(std_K == 0, 1.0, std_K)


WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"zscore": zscore, "rank": rank}
"""Weights [N, K] of members in each of K columns."""
