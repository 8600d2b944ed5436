from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.support.watching import watching
from weft.diagnose.record.draws import Chosen, _edges, draw_of, filters, fit, shortest

V = 97
WARPERS: dict[str, Callable[[float], Any]] = {
    "top_k": lambda value: TopKLogitsWarper(int(value)),
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}


def logits(seed: int, size: int = V) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def weights(logits_V: torch.Tensor, temperature: float, name: str = "", value: float = 0) -> Any:
    scores = logits_V[None] / temperature
    if name:
        scores = WARPERS[name](value)(torch.zeros(1, 1, dtype=torch.long), scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 1.7])
@pytest.mark.parametrize("filtered", [("", 0), ("top_k", 9), ("top_p", 0.9), ("min_p", 0.05)])
def test_a_temperature_is_fitted_whatever_the_filter(
    temperature: float, filtered: tuple[str, float]
) -> None:
    z = logits(0)
    p = weights(z, temperature, *filtered)
    fitted = fit(z, p)
    if int((p > 0).sum()) > 1:
        assert fitted.temperature == pytest.approx(temperature, rel=1e-4)
    if filtered[0]:
        assert fitted.kept == int((p > 0).sum())
    else:  # what vanished in float32 was not filtered out
        assert fitted.kept == V


def test_a_temperature_is_fitted_beside_a_repetition_penalty() -> None:
    z = logits(1)
    penalised = z.clone()
    penalised[:10] /= 1.5
    assert fit(z, weights(penalised, 0.8)).temperature == pytest.approx(0.8, rel=1e-4)


def test_weights_need_not_be_normalised() -> None:
    z = logits(2)
    assert fit(z, 7 * weights(z, 0.5)).temperature == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_temperature_is_fitted_in_half_precision(dtype: torch.dtype) -> None:
    z = logits(3)
    assert fit(z, weights(z, 0.7).to(dtype)).temperature == pytest.approx(0.7, rel=1e-2)


def test_of_a_single_token_no_temperature_can_be_told() -> None:
    z = logits(4)
    fitted = fit(z, torch.nn.functional.one_hot(z.argmax(), V).float())
    assert (fitted.temperature, fitted.kept) == (None, 1)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("", 0, {"top_k": 0, "top_p": 1.0}),
        ("top_k", 12, {"top_k": 12}),
        ("top_p", 0.95, {"top_p": 0.95}),
        ("top_p", 0.8, {"top_p": 0.8}),
        ("min_p", 0.05, {"min_p": 0.05}),
    ],
)
def test_the_filter_behind_many_draws_is_told(
    name: str, value: float, expected: dict[str, float]
) -> None:
    fitted = [fit(z, weights(z, 0.9, name, value)) for z in map(logits, range(40))]
    assert filters(fitted, V) == expected


def test_an_edge_that_rounding_moved_still_has_its_number() -> None:
    """Two tokens make up 0.95 but for the last digits, which a script's float32 sums lose."""
    q = torch.tensor([0.6, 0.349999, 0.030001, 0.02], dtype=torch.float64)
    top_p, _ = _edges(q, torch.tensor([True, True, False, False]))
    assert top_p is not None and top_p[0] < 0.95 <= top_p[1]


def test_a_filter_that_no_rule_explains_is_not_named() -> None:
    fitted = []
    for z in map(logits, range(20)):
        p = weights(z, 0.9)
        p[z.argmax()] = 0  # nobody filters the likeliest out
        fitted.append(fit(z, p if len(fitted) % 2 else weights(z, 0.9, "top_k", 7)))
    assert filters(fitted, V) == {}
    assert filters([], V) == {}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.94, 0.957, 0.95), (0.1, 0.3, 0.3), (0.051, 0.0517, 0.0517), (0.0, 1.0, 1.0)],
)
def test_the_number_with_the_fewest_decimals(low: float, high: float, expected: float) -> None:
    found = shortest(low, high)
    assert low < found <= high
    assert len(str(found)) <= len(str(expected))


def test_a_draw_from_ranks_is_a_draw_of_tokens() -> None:
    z = logits(5)
    p, ranks = weights(z, 0.6).sort(descending=True)
    chosen = Chosen("draw", ranks[:1], p[None], ranks[None])
    draw, _ = draw_of(0, 3, int(ranks[0]), chosen, z[None], True)
    assert draw.temperature == pytest.approx(0.6, rel=1e-4)
    assert draw.probability == pytest.approx(float(z.softmax(-1).max()), rel=1e-5)
    assert (draw.row, draw.step, draw.kept) == (0, 3, V)


def choices(
    tmp_path: Path, model: Any, choose: Callable[[torch.Tensor], Any]
) -> tuple[Any, list[Chosen]]:
    """What a function makes of logits while it is watched, and the choices that were seen."""
    found: list[Chosen] = []
    ids = torch.arange(2, 10).reshape(2, 4)
    with watching(tmp_path / "recording") as seen, torch.no_grad():
        seen.recorder.listen(Chosen, found.append)
        torch.manual_seed(0)
        made = choose(model(input_ids=ids).logits)
    torch.manual_seed(0)
    with torch.no_grad():
        again = choose(model(input_ids=ids).logits)
    assert torch.equal(torch.as_tensor(made), torch.as_tensor(again))
    return made, found


ARGMAX: list[Callable[[torch.Tensor], Any]] = [
    lambda z: z[:, -1].argmax(-1),
    lambda z: torch.argmax(z[:, -1], dim=-1, keepdim=True),
    lambda z: torch.argmax(input=z[:, -1], dim=1),
    lambda z: z[:, -1].max(dim=-1).indices,
    lambda z: torch.max(z[:, -1], 1)[1],
    lambda z: torch.topk(z[:, -1], 1).indices,
    lambda z: z[:, -1].softmax(-1).topk(k=1, dim=-1)[1],
]


@pytest.mark.parametrize("choose", ARGMAX)
def test_every_way_to_take_the_likeliest_is_seen(
    tmp_path: Path, make_model: Callable[..., Any], choose: Callable[[torch.Tensor], Any]
) -> None:
    made, (chosen,) = choices(tmp_path, make_model("llama"), choose)
    assert chosen.how == "argmax"
    assert chosen.tokens.tolist() == made.flatten().tolist()


def ranked(z: torch.Tensor) -> torch.Tensor:
    p, order = torch.sort(z[:, -1].softmax(-1), descending=True)
    p = p.masked_fill(p.cumsum(-1) - p > 0.9, 0.0)
    return order.gather(-1, torch.multinomial(p, 1))


def by_argsort(z: torch.Tensor) -> torch.Tensor:
    p = z[:, -1].softmax(-1)
    order = p.argsort(dim=-1, descending=True)
    return order.gather(-1, torch.multinomial(p.gather(-1, order), 1))


def best(z: torch.Tensor) -> torch.Tensor:
    values, order = torch.topk(z[:, -1], 5)
    return order.gather(-1, values.softmax(-1).multinomial(1))


def best_then_ranked(z: torch.Tensor) -> torch.Tensor:
    values, order = torch.topk(z[:, -1], 9, sorted=False)
    p, inner = values.softmax(-1).sort(descending=True)
    drawn = torch.multinomial(p, 1)
    return order.gather(-1, inner).gather(-1, drawn)


DRAWS: list[Callable[[torch.Tensor], Any]] = [
    lambda z: torch.multinomial(z[:, -1].softmax(-1), 1),
    lambda z: z[:, -1].softmax(-1).multinomial(num_samples=1),
    lambda z: torch.distributions.Categorical(logits=z[:, -1]).sample(),
    ranked,
    by_argsort,
    best,
    best_then_ranked,
]


@pytest.mark.parametrize("choose", DRAWS)
def test_every_way_to_draw_is_seen(
    tmp_path: Path, make_model: Callable[..., Any], choose: Callable[[torch.Tensor], Any]
) -> None:
    model = make_model("llama")
    made, (chosen,) = choices(tmp_path, model, choose)
    assert chosen.how == "draw"
    assert chosen.tokens.tolist() == made.flatten().tolist()
    with torch.no_grad():
        z = model(input_ids=torch.arange(2, 10).reshape(2, 4)).logits[:, -1]
    draw, _ = draw_of(1, 0, int(chosen.tokens[1]), chosen, z, True)
    assert draw.temperature == pytest.approx(1.0, rel=1e-4)


def put_back(z: torch.Tensor) -> torch.Tensor:
    """The first token is all that a filter leaves, and the least likely ones were sorted first."""
    scores = z[:, -1].clone()
    scores[:, 0] = 100
    kept, order = torch.sort(scores, descending=False)
    gone = kept.softmax(-1).cumsum(-1) <= 0.05
    scores = scores.masked_fill(gone.scatter(1, order, gone), float("-inf"))
    return torch.multinomial(scores.softmax(-1), 1)


def test_a_filter_that_puts_tokens_back_in_their_places_is_no_rank(
    tmp_path: Path, make_model: Callable[..., Any]
) -> None:
    made, (chosen,) = choices(tmp_path, make_model("llama"), put_back)
    assert made.flatten().tolist() == chosen.tokens.tolist() == [0, 0]


def test_an_argmax_of_noise_is_a_draw(tmp_path: Path, make_model: Callable[..., Any]) -> None:
    def gumbel(z: torch.Tensor) -> torch.Tensor:
        p = z[:, -1].softmax(-1)
        return (p / torch.empty_like(p).exponential_()).argmax(-1)

    _, (chosen,) = choices(tmp_path, make_model("llama"), gumbel)
    assert chosen.how == "draw"
    assert chosen.weights is None


def test_choices_over_something_else_are_none(
    tmp_path: Path, make_model: Callable[..., Any]
) -> None:
    def other(z: torch.Tensor) -> torch.Tensor:
        torch.max(z, z)
        z.max()
        z.argmax(dim=0)
        torch.sort(z[:, -1], descending=True)
        torch.multinomial(torch.ones(2, 5), 1)
        torch.multinomial(z[:, -1].softmax(-1), 3)
        return torch.ones(3, 4).argmax(-1)

    _, found = choices(tmp_path, make_model("llama"), other)
    assert found == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_functions_that_are_looked_at_can_still_be_compiled_to_scripts(tmp_path: Path) -> None:
    with watching(tmp_path / "recording"):

        def pick(z: torch.Tensor) -> torch.Tensor:
            return torch.argmax(z, dim=-1) + torch.topk(z, 1).indices[..., 0]

        scripted = torch.jit.script(pick)
        assert scripted(torch.eye(3)).tolist() == [0, 2, 4]


def test_functions_that_are_looked_at_can_still_be_compiled_into_one_graph(tmp_path: Path) -> None:
    def both(z: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = torch.nn.functional.cross_entropy(z, labels)
        return torch.argmax(z, -1) + z.max(-1).indices, loss

    with watching(tmp_path / "recording"):
        compiled = torch.compile(both, backend="eager", fullgraph=True)
        given = logits(0, 12).reshape(3, 4), torch.tensor([1, 2, 3])
        for one, other in zip(compiled(*given), both(*given), strict=True):
            assert torch.equal(one, other)


def test_everything_is_put_back(tmp_path: Path) -> None:
    names = ("argmax", "max", "topk", "sort", "argsort", "multinomial")
    before = [(getattr(torch, name), getattr(torch.Tensor, name)) for name in names]
    with watching(tmp_path / "recording"):
        assert torch.argmax is not before[0][0]
    assert [(getattr(torch, name), getattr(torch.Tensor, name)) for name in names] == before
