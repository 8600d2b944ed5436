"""`weft recipes`: the configurations that ship with Weft."""

from __future__ import annotations

from typing import Annotated

import typer

from weft.cli import screen


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's YAML.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the recipes, or print one."""
    from weft.core.errors import InputError, did_you_mean
    from weft.training.resolve import recipe_paths, resolve

    paths = recipe_paths()
    if name is not None:
        if name not in paths:
            hint = did_you_mean(name, list(paths)) or f"recipes: {', '.join(paths)}"
            raise InputError(f"there is no recipe {name!r}", hint)
        screen.put(paths[name].read_text(encoding="utf-8").rstrip())
        return
    found = {recipe: resolve(recipe).config.description for recipe in paths}
    if json:
        screen.put_json(found)
        return
    screen.put(screen.pairs(found))
    screen.say()
    screen.say("next: weft train instruct")
