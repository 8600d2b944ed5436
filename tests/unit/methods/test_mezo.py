"""MeZO on functions whose gradient is known, and what it asks of a scorer."""

import numpy as np
import pytest
import torch

from weft.core.keys import Key
from weft.methods import config as configured
from weft.methods import mezo, perturb
from weft.methods.config import MezoConfig
from weft.methods.estimate import AT_THETA, PERTURBED, Point
from weft.methods.mezo import MEZO, estimate, preflight
from weft.methods.perturb import combine, draw
from weft.runs.timing import Stopwatch

P = 1024


class Function:
    """A scorer of a plain function, which remembers where it was asked."""

    rounding = 2**-23

    def __init__(self, function):
        self.function, self.asked, self.clock = function, [], Stopwatch()

    def losses(self, theta_LMP, batches):
        self.asked.append(theta_LMP.clone())
        return self.function(theta_LMP.double()).numpy()


def quadratic():
    """(x - a)^T D (x - a) / 2 with a diagonal D, and its gradient."""
    generator = torch.Generator().manual_seed(0)
    target_P = torch.randn(P, generator=generator).double()
    weight_P = torch.rand(P, generator=generator).double() + 0.5
    function = Function(lambda x: (weight_P * (x - target_P) ** 2).sum(-1) / 2)
    return function, lambda x: weight_P * (x.double() - target_P)


def at(seed=0, lanes=1, free_LP=None, theta_LP=None):
    if theta_LP is None:
        theta_LP = torch.linspace(-1, 1, lanes * P).view(lanes, P)
    return Point(theta_LP, free_LP, (), [Key.of(seed + lane) for lane in range(len(theta_LP))])


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


def test_the_cosine_to_the_gradient_grows_like_the_root_of_directions():
    """Its square is chi-squared with q degrees of freedom over P, where q is much less than P."""
    function, gradient = quadratic()
    exact_P = gradient(at().theta_LP[0])
    for directions in (1, 4, 16, 64):
        config = MezoConfig(directions=directions)
        found = [
            cosine(estimate(config, at(seed), function).direction_LP[0], exact_P)
            for seed in range(41)
        ]
        root = np.sqrt(np.mean(np.square(found)))
        assert root == pytest.approx(np.sqrt(directions / (P + directions)), rel=0.12), directions
        assert min(found) > 0


def test_the_estimate_is_the_mean_of_products_and_not_the_product_of_means():
    function, gradient = quadratic()
    config, point = MezoConfig(directions=64), at()
    found = estimate(config, point, function)
    slope_Q = torch.tensor(found.evidence[0]["slopes"])
    z_QP = draw("gaussian", point, range(64))[0]
    torch.testing.assert_close(found.direction_LP[0], (slope_Q[:, None] * z_QP).mean(dim=0))
    wrong_P = slope_Q.mean() * z_QP.mean(dim=0)
    exact_P = gradient(point.theta_LP[0])
    assert cosine(found.direction_LP[0], exact_P) > 3 * abs(cosine(wrong_P, exact_P))


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("sides", ["two", "one"])
def test_slopes_are_the_gradient_s_along_the_directions(sides, noise):
    function, gradient = quadratic()
    point = at(lanes=2)
    config = MezoConfig(eps=1e-4, directions=3, sides=sides, noise=noise)
    found = estimate(config, point, function)
    z_LQP = draw(noise, point, range(3)).double()
    for lane in range(2):
        expected = (z_LQP[lane] @ gradient(point.theta_LP[lane])).tolist()
        assert found.evidence[lane]["slopes"] == pytest.approx(expected, rel=5e-3, abs=0.2)


@pytest.mark.parametrize("directions", [1, 5])
def test_members_are_theta_and_eps_z_exactly_whatever_was_asked_before(directions):
    """Nothing is perturbed in place and restored, so nothing drifts, however long a run is."""
    function, _ = quadratic()
    point = at()
    theta_LP = point.theta_LP.clone()
    config = MezoConfig(directions=directions)
    for step in range(50):
        now = Point(point.theta_LP, None, (), [Key.of(3).fold("step", step)])
        found = estimate(config, now, function)
        z_qP = draw("gaussian", now, range(directions))[0]
        plus_qP, minus_qP = function.asked[-1][0].chunk(2)
        assert torch.equal(plus_qP, theta_LP + 1e-3 * z_qP)
        assert torch.equal(minus_qP, theta_LP - 1e-3 * z_qP)
        slopes_LQ = np.array([line["slopes"] for line in found.evidence])
        assert torch.equal(found.direction_LP, combine("gaussian", now, slopes_LQ))
    assert torch.equal(point.theta_LP, theta_LP)


def test_one_direction_is_its_slope_times_the_z_that_was_looked_along():
    function, _ = quadratic()
    point = at()
    found = estimate(MezoConfig(), point, function)
    z_P = function.asked[0][0, 0] - point.theta_LP[0]
    assert cosine(found.direction_LP[0], z_P) == pytest.approx(
        np.sign(found.evidence[0]["slopes"][0]), abs=1e-6
    )


def test_the_loss_of_two_sides_is_a_mean_around_theta_and_that_of_one_side_is_theta_s():
    function, _ = quadratic()
    point = at()
    here = function.losses(point.theta_LP[:, None], ())[0, 0]
    two = estimate(MezoConfig(eps=0.1, directions=2), point, function)
    assert two.loss_name == PERTURBED
    (seen,) = two.evidence
    assert two.loss_L[0] == pytest.approx(np.mean(seen["plus"] + seen["minus"]), rel=1e-12)
    assert two.loss_L[0] > here  # it curves upwards
    one = estimate(MezoConfig(eps=0.1, directions=2, sides="one"), point, function)
    assert (one.loss_name, one.loss_L) == (AT_THETA, (here,))


@pytest.mark.parametrize("sides", ["two", "one"])
def test_many_directions_are_drawn_in_parts_and_are_the_same(sides, monkeypatch):
    config = MezoConfig(directions=7, sides=sides)
    function, _ = quadratic()
    whole = estimate(config, at(lanes=2), function)
    monkeypatch.setattr(perturb, "AT_A_TIME", 3)
    monkeypatch.setattr(mezo, "AT_A_TIME", 3)
    monkeypatch.setattr(configured, "AT_A_TIME", 3)
    function.asked.clear()
    parts = estimate(config, at(lanes=2), function)
    assert sum(theta_LMP.shape[1] for theta_LMP in function.asked) == config.forwards
    torch.testing.assert_close(parts.direction_LP, whole.direction_LP)
    assert parts.loss_L == pytest.approx(whole.loss_L, rel=1e-12)
    assert parts.evidence == whole.evidence


def test_what_may_not_move_is_not_perturbed():
    function, _ = quadratic()
    free_LP = torch.zeros(1, P)
    free_LP[0, ::2] = 1
    point = at(free_LP=free_LP)
    estimate(MezoConfig(directions=4), point, function)
    moved = (function.asked[0][0] - point.theta_LP).abs().amax(dim=0) > 0
    assert torch.equal(moved, free_LP[0] == 1)


def test_evidence_is_small_and_replays_the_direction():
    function, _ = quadratic()
    point, config = at(lanes=2), MezoConfig(directions=4)
    found = estimate(config, point, function)
    for line, key in zip(found.evidence, point.keys, strict=True):
        assert set(line) == {"key", "slopes", "plus", "minus"}
        assert line["key"] == key.value
    assert torch.equal(MEZO.replay(config, point, found.evidence), found.direction_LP)


@pytest.mark.parametrize(
    ("eps", "warning"),
    [(1e-7, "rounding dominates at eps 1e-07"), (10.0, "curvature dominates at eps 10")],
)
def test_preflight_warns_of_an_eps_that_measures_something_else(eps, warning):
    """The loss is rounded to fp32, as a model's is; sin curves within a few tenths."""
    function = Function(lambda x: (8 + torch.sin(x / 3).sum(-1)).float().double())
    found = preflight(MezoConfig(eps=eps), at(), function)
    assert found.warning.startswith(f"preflight: {warning}")
    assert found.facts["eps"] == eps


@pytest.mark.parametrize("sides", ["two", "one"])
def test_preflight_is_silent_at_a_sensible_eps(sides):
    function, _ = quadratic()
    found = preflight(MezoConfig(eps=1e-3, sides=sides), at(lanes=2), function)
    assert found.warning is None
    assert set(found.facts) == {
        "eps",
        "slope",
        "change_at_half",
        "change_at_double",
        "loss_change",
    }
    assert all(theta_LMP.shape[0] == 1 for theta_LMP in function.asked)  # of the first lane only


def test_preflight_names_a_loss_that_does_not_change_or_is_not_finite():
    flat = preflight(MezoConfig(), at(), Function(lambda x: x.sum(-1) * 0))
    assert "does not change at all: eps is too small" in flat.warning
    wild = preflight(MezoConfig(), at(), Function(lambda x: x.sum(-1) * float("inf")))
    assert "not finite within 2 * 0.001" in wild.warning
    for found in (flat, wild):
        numbers = [value for value in found.facts.values() if value is not None]
        assert np.isfinite(numbers).all()  # they go into a JSON file


def test_preflight_can_be_turned_off():
    function, _ = quadratic()
    assert preflight(MezoConfig(preflight=False), at(), function) is None
    assert not function.asked
