"""`weft check`: everything that can be wrong with a configuration, without loading weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli import screen

if TYPE_CHECKING:
    from rich.console import RenderableType

    from weft.data.split import Split

COUNTS = ("read", "kept", "truncated", "dropped_truncated", "bad", "tokens", "supervised_tokens")


def check(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="What to check.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Override settings.")
    ] = None,
    show: Annotated[
        int, typer.Option("--show", min=0, help="Print this many examples token by token.")
    ] = 0,
    origins: Annotated[
        bool, typer.Option("--origins", help="Print every value and where it came from.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a configuration and its data without loading weights."""
    from weft.training.resolve import resolve

    resolved = resolve(recipe, settings or ())

    with screen.console().status("loading"):
        from weft.data.show import show as show_split
        from weft.data.tokenizer import row_tokenizer
        from weft.model.facts import skeleton
        from weft.model.sites import choose_sites, layers_notice
        from weft.training.block import configuration_block
        from weft.training.choosing import notices_of
        from weft.training.plan import load_data, trigger_of

        splits = load_data(resolved.config)
        sites = skeleton(resolved.config.base)
        layout = choose_sites(sites, resolved.config.adapter)
    block = configuration_block(resolved, layout, splits)
    notices = [*resolved.notices, *(text for s in splits.values() for text in s.notices)]
    if layers := layers_notice(sites, resolved.config.adapter):
        notices.append(layers)
    notices += notices_of(resolved.config.objective, splits)
    trigger = trigger_of(resolved.config, len(splits["train"].items))
    if trigger is not None and trigger.ignored is not None:
        notices.append(trigger.ignored)
    if json:
        screen.put_json(
            {
                "config": resolved.config.model_dump(mode="json"),
                "origins": resolved.origins,
                "block": block,
                "data": {name: split.counts for name, split in splits.items()},
                "notices": notices,
            }
        )
        return
    screen.put(screen.pairs(block))
    screen.put()
    choosing = resolved.config.objective.name == "choice"
    screen.put(_counts(splits, choosing))
    if origins:
        values = screen.leaves(resolved.config.model_dump(mode="json"))
        rows = [(key, value, resolved.origins[key]) for key, value in values.items()]
        screen.put()
        screen.put(screen.table(("key", "value", "from"), rows, numbers=False))
    if show:
        tokenizer = row_tokenizer(resolved.config.base)
        screen.put()
        screen.put(show_split(splits["train"], tokenizer, show, choosing=choosing))
    screen.notices(notices)
    screen.say()
    screen.say(f"next: {screen.command('weft', 'train', recipe, *(settings or ()))}")


def _counts(splits: Mapping[str, Split], choosing: bool) -> RenderableType:
    """Rows and tokens of each split; a column where nothing was counted is left out.

    So is, under a choice between candidates, that of tokens that it does not supervise.
    """
    used = [name for name in COUNTS if any(split.counts[name] for split in splits.values())]
    if choosing:
        used.remove("supervised_tokens")
    rows = [(name, *(f"{s.counts[key]:,}" for key in used)) for name, s in splits.items()]
    return screen.table(("split", *(key.replace("_", " ") for key in used)), rows)
