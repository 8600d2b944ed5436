"""`weft compare`: two of base, adapters and runs, on the same tokens and the same prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli import options, screen
from weft.cli.progress import rows_progress

if TYPE_CHECKING:
    from weft.analysis.compare import Comparison, Sample
    from weft.analysis.statistics import Interval

TEXT_COLUMNS = 100
"""Widest lines of texts side by side: longer ones are hard to read."""

APART = {
    "kl_ab": "KL(A || B), nats",
    "kl_ba": "KL(B || A), nats",
    "js": "JS, nats",
    "l2": "L2 of logits",
    "agree": "same top token",
}

REWARD = "reward"
"""The objective, and the metric, of completions that are graded."""

LOSSES = {
    "choice": "of the choice between candidates, nats a row",
    "choice_mean": "of the choice between candidates, nats a row",
    "option_nll": "of the right candidate's tokens, nats a token",
}
"""What a loss is where it is not that of the supervised tokens."""


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="`base`, a run, or an adapter directory.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    base: options.Base = None,
    task: options.Task = None,
    data: options.Data = None,
    split: options.Split = "valid",
    rows: options.Rows = None,
    batch_size: options.BatchSize = 8,
    prompts: Annotated[
        int, typer.Option(metavar="N", min=0, help="Continue this many prompts greedily.")
    ] = 4,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Longest continuation.")] = 64,
    out: options.Out = None,
    json: options.Json = False,
) -> None:
    """Compare two of base, adapters and runs.

    Prints losses, or rewards, and divergences on the same rows, and texts side by side.
    Differences are B minus A, with 95 % intervals from a paired bootstrap over the rows.
    """
    from weft import compare as compared
    from weft.core.files import write_json

    with rows_progress("comparing") as watch:
        found = compared(
            a,
            b,
            base=base,
            task=task,
            data=data,
            split=split,
            rows=rows,
            batch_size=batch_size,
            prompts=prompts,
            max_tokens=max_tokens,
            watch=watch,
        )
    record = screen.finite(found.record())
    if out is not None:
        write_json(out, record)
    if json:
        screen.put_json(record)
        return
    screen.notices(found.notices)
    show(found)
    if out is not None:
        screen.say()
        screen.say(f"written: {out}")


def show(found: Comparison) -> None:
    """Print a comparison for people."""
    tokens = "tokens that B said" if found.objective == REWARD else "supervised tokens"
    on = f"{found.examples:,} {found.split} rows, {found.supervised_tokens:,} {tokens}"
    heads = {"A": found.a, "B": found.b, "base": found.base, "on": on}
    if found.objective in LOSSES:
        heads["loss"] = LOSSES[found.objective]
    screen.put(screen.pairs(heads))
    screen.put()
    screen.put(_scores(found))
    screen.put()
    screen.put(_divergence(found))
    show_samples(found)


def show_samples(found: Comparison, most: int | None = None) -> None:
    """Print prompts and what both sides make of them."""
    for sample in found.samples[:most]:
        screen.put()
        _show_sample(found, sample)


def _scores(found: Comparison) -> screen.Renderable:
    return screen.table(("", "A", "B", "B - A", "95 % interval"), scores(found))


def scores(found: Comparison) -> list[tuple[str, ...]]:
    """A line for the loss, its perplexity where it has one, and each metric; or for the reward."""
    if found.objective == REWARD:
        change = found.loss_difference.negated
        return [
            score(name, values, found, change if name == REWARD else None)
            for name, values in found.metrics.items()
        ]
    rows = [score("loss", found.loss, found, found.loss_difference)]
    if found.perplexity is not None:
        rows.append(score("perplexity", found.perplexity, found, found.perplexity_difference))
    return rows + [score(name, values, found) for name, values in found.metrics.items()]


def score(
    name: str, values: Mapping[str, float], found: Comparison, difference: Interval | None = None
) -> tuple[str, ...]:
    """A line of the table: what A and B have, the change, and its interval."""
    a, b = values[found.a], values[found.b]
    change = b - a if difference is None else difference.estimate
    numbers = [screen.number(value) for value in (a, b, change)]
    return (name.replace("_", " "), *numbers, _interval(difference))


def _divergence(found: Comparison) -> screen.Renderable:
    rows = [
        (
            APART[name],
            screen.number(mean.estimate),
            _interval(mean),
            screen.number(found.largest.get(name)),
        )
        for name, mean in found.divergence.items()
    ]
    return screen.table(("a token, on average", "mean", "95 % interval", "largest"), rows)


def _interval(interval: Interval | None) -> str:
    if interval is None or interval.low != interval.low:
        return "-"
    return f"{screen.number(interval.low)} to {screen.number(interval.high)}"


def _show_sample(found: Comparison, sample: Sample) -> None:
    from rich.table import Table

    wanted = {"wanted": sample.reference.strip()} if sample.reference else {}
    screen.put(screen.pairs({"prompt": sample.prompt.strip(), **wanted}))
    sides = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    for side, name, reward in (("A", found.a, sample.reward_a), ("B", found.b, sample.reward_b)):
        graded = "" if reward is None else f" (reward {screen.number(reward)})"
        sides.add_column(f"{side}: {name}{graded}", ratio=1, overflow="fold")
    sides.add_row(sample.a.strip(), sample.b.strip())
    screen.put(sides, columns=TEXT_COLUMNS)
