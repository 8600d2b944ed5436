"""`weft inspect`: is it attached, how strong is it, and what is odd about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli import options, screen

if TYPE_CHECKING:
    from weft.training.inspect import AdapterFacts, BaseFacts, SiteFacts
    from weft.training.replay import Verdict

MANY = 32
"""More sites than this are shown by the last part of their names."""


def inspect(
    subject: options.Subject,
    base: options.Base = None,
    every: Annotated[
        bool, typer.Option("--all", help="List every site, however many there are.")
    ] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Make a run's adapters again from its evidence.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Look into an adapter: is it attached, how strong, what is odd.

    Of a base it lists the places that can carry an adapter. Exits with 1 when an adapter is
    broken: not finite, made for another base, without effect, or not what its run recorded.
    """
    from weft import inspect as look

    with screen.console().status("loading"):
        found = look(subject, base=base, replay=replay)
    if json:
        screen.put_json(found.record())
    else:
        if found.base:
            _show_base(found.base, every)
        for facts in found.adapters:
            _show_adapter(facts, found.base_ref, every)
        for verdict in found.replayed:
            screen.put(_replayed(verdict))
        screen.notices(found.notes)
    if found.broken:
        raise typer.Exit(1)


def _show_base(base: BaseFacts, every: bool) -> None:
    if every:
        rows = [(s.name, s.kind, f"{s.outputs} x {s.inputs}") for s in base.sites]
        screen.put(screen.table(("site", "kind", "weight"), rows, numbers=False))
        return
    screen.put(screen.pairs({"base": base.ref, "sites": f"{len(base.sites)}"}))
    screen.put()
    targets = []
    for suffix, sites in base.suffixes.items():
        shapes = dict.fromkeys(f"{s.outputs} x {s.inputs}" for s in sites)
        kinds = dict.fromkeys(s.kind for s in sites)
        targets.append((suffix, str(len(sites)), ", ".join(kinds), ", ".join(shapes)))
    screen.put(screen.table(("target", "sites", "kind", "weight"), targets))


def _show_adapter(facts: AdapterFacts, base: str | None, every: bool) -> None:
    ranks = sorted({site.rank for site in facts.sites})
    scales = sorted({site.scale for site in facts.sites})
    scale = ", ".join(f"{scale:g}" for scale in scales)
    lines = {
        "adapter": str(facts.path),
        "format": facts.format,
        "base": base or "not loaded",
        "rank": ", ".join(map(str, ranks)),
        "alpha": None if facts.alpha is None else f"{facts.alpha:g}",
        "scale": f"{scale} ({facts.scale_from})",
        "dropout": None if facts.dropout is None else f"{facts.dropout:g}",
        "trainable": f"{facts.trainable:,} of {facts.parameters:,} parameters: {facts.why}",
        "attached": f"at {len(facts.sites)} sites; {_effect(facts)}",
        "as recorded": facts.recorded,
    }
    screen.put(screen.pairs({label: text for label, text in lines.items() if text is not None}))
    screen.put()
    if every or len(facts.sites) <= MANY:
        screen.put(_each_site(facts.sites))
    else:
        screen.put(_by_suffix(facts.sites))
    if facts.oddities:
        screen.put()
        screen.put("odd:")
        for oddity in facts.oddities:
            screen.put(f"  {'BROKEN ' if oddity.breaks else ''}{oddity.what}")
    screen.put()


def _replayed(verdict: Verdict) -> str:
    """One line for each adapter that was made again."""
    commits = f" and {_counted(verdict.commits, 'commit')}" if verdict.commits else ""
    made = f"{verdict.path}: replayed from {_counted(verdict.step, 'step')} of evidence{commits}"
    if verdict.difference is None:
        return f"{made}: the same, bit for bit"
    return f"BROKEN {made}: not the same: {verdict.difference}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _effect(facts: AdapterFacts) -> str:
    effect = facts.effect
    if effect is None:
        return "what it does was not measured"
    if effect.largest_logit_change == 0:
        return f"the logits of {effect.positions} tokens are exactly the base's"
    return (
        f"it moves the logits of {effect.positions} tokens by up to "
        f"{screen.number(effect.largest_logit_change)}, KL(base || adapter) "
        f"{screen.number(effect.kl)} nats a token"
    )


def _each_site(sites: tuple[SiteFacts, ...]) -> screen.Renderable:
    rows = [
        (
            site.name,
            str(site.rank),
            f"{site.scale:g}",
            *map(screen.number, (site.norm_a, site.norm_b, site.norm_update)),
            _share(site.relative),
        )
        for site in sites
    ]
    return screen.table(("site", "rank", "scale", "|A|", "|B|", "|dW|", "of |W|"), rows)


def _by_suffix(sites: tuple[SiteFacts, ...]) -> screen.Renderable:
    groups: dict[str, list[SiteFacts]] = {}
    for site in sites:
        groups.setdefault(site.name.rpartition(".")[2], []).append(site)
    rows = []
    for suffix, group in groups.items():
        shares = [site.relative for site in group if site.relative is not None]
        span = f"{_share(min(shares))} to {_share(max(shares))}" if shares else "-"
        mean = sum(site.norm_update for site in group) / len(group)
        rows.append((suffix, str(len(group)), screen.number(mean), span))
    return screen.table(("sites", "number", "|dW|, mean", "of |W|"), rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
