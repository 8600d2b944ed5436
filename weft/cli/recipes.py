"""`weft recipes`: the configurations of runs and experiments that ship with Weft."""

from __future__ import annotations

from typing import Annotated

import typer

from weft.cli import screen


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe's or experiment's YAML.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the recipes and experiments, or print one."""
    from weft.core.errors import InputError, did_you_mean
    from weft.training.draft import read_yaml
    from weft.training.resolve import experiment_paths, recipe_paths, resolve

    paths = {**recipe_paths(), **experiment_paths()}
    if name is not None:
        if name not in paths:
            hint = did_you_mean(name, list(paths)) or f"recipes: {', '.join(paths)}"
            raise InputError(f"there is no recipe {name!r}", hint)
        screen.put(paths[name].read_text(encoding="utf-8").rstrip())
        return
    runs = {recipe: resolve(recipe).config.description for recipe in recipe_paths()}
    several = {each: read_yaml(path)["description"] for each, path in experiment_paths().items()}
    if json:
        screen.put_json({"recipes": runs, "experiments": several})
        return
    screen.put("recipes, for `weft train NAME`")
    screen.put(screen.pairs(runs))
    screen.put()
    screen.put("experiments, for `weft experiment NAME`")
    screen.put(screen.pairs(several))
    screen.say()
    screen.say("next: weft train instruct")
