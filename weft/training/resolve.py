"""A recipe or file and `key=value` overrides to one checked configuration with its origins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from weft.core.errors import InputError, did_you_mean
from weft.model.config import AdapterConfig
from weft.training.config import RunConfig
from weft.training.draft import COMMAND_LINE, UNIONS, Draft, dump, leaves, parse, read_yaml


@dataclass(frozen=True)
class Resolved:
    """A checked configuration, and where each of its values came from."""

    config: RunConfig
    origins: dict[str, str]
    name: str  # of the run: the one that the configuration gives itself, or that of its file
    text: str
    notices: tuple[str, ...]


def recipe_paths() -> dict[str, Path]:
    """The recipes that ship with Weft, by name."""
    return _bundled("recipes")


def experiment_paths() -> dict[str, Path]:
    """The experiments that ship with Weft, by name."""
    return _bundled("experiments")


def _bundled(folder: str) -> dict[str, Path]:
    found = Path(str(files("weft") / "training" / folder))
    return {path.stem: path for path in sorted(found.glob("*.yaml"), key=lambda path: path.stem)}


def resolve(source: str, overrides: Sequence[str] = ()) -> Resolved:
    """Read `source` (a recipe's name or a YAML file), apply overrides, and check everything.

    Raises one `InputError` that lists every problem: key, value, where it was given, and a hint.
    """
    path = find(source)
    draft = Draft.of(read_yaml(path), f"file {path.name}")
    if "arms" in draft.values:
        raise InputError(
            f"{source} has `arms`: it is an experiment, not one run",
            hint=f"weft experiment {source} --dry-run",
        )
    draft.lay(map(parse, overrides), COMMAND_LINE)
    shown = f"recipe {source}" if source in recipe_paths() else str(path)
    _refuse_two_kinds_of_seed(draft.values, shown)
    force_rank(draft)
    return settle(draft, shown, path.stem)


def from_record(config: dict[str, Any], origins: dict[str, str], source: str) -> Resolved:
    """The configuration that a run stored about itself."""
    return settle(Draft(config, origins), source, "run")


def settle(draft: Draft, source: str, name: str) -> Resolved:
    """The checked configuration. Raises one `InputError` with all that `problems_in` finds."""
    problems = problems_in(draft)
    if problems:
        raise InputError(
            f"{source} has {counted(problems)}:\n  " + "\n  ".join(problems),
            hint="`weft check` shows a configuration as it is understood",
        )
    config = RunConfig.model_validate(draft.values)
    known = leaves(config.model_dump(mode="json"))
    whole = {key: draft.origins.get(key, "default") for key in known}
    text = dump(draft.values)
    return Resolved(config, whole, config.name or name, text, tuple(draft.notices))


def problems_in(draft: Draft) -> list[str]:
    """Everything that is wrong with a configuration, a line each."""
    try:
        RunConfig.model_validate(draft.values)
    except ValidationError as error:
        return [explain(issue, draft.origins) for issue in error.errors()]
    return []


def counted(problems: Sequence[str]) -> str:
    """How many, in words."""
    return f"{len(problems)} problems" if len(problems) > 1 else "1 problem"


FORCED_RANK = "forced to 1 by boosting"


def force_rank(draft: Draft) -> None:
    """Boosting trains rank-1 adapters: another rank is replaced, and that is said and recorded."""
    values, origins = draft.values, draft.origins
    adapter = values.setdefault("adapter", {}) if values.get("boost") is not None else None
    if not isinstance(adapter, dict) or adapter.get("rank") == 1:
        return
    try:
        asked = AdapterConfig.model_validate(adapter)
        really = AdapterConfig.model_validate({**adapter, "rank": 1})
    except ValidationError:
        return  # whatever is wrong with it is reported with all other problems
    given = origins.get("adapter.rank")
    adapter["rank"] = 1
    origins["adapter.rank"] = FORCED_RANK + (f", {asked.rank} was asked" if given else "")
    if given is None:
        return
    scale = f"scale {really.effective_scale:g}"
    if really.effective_scale != asked.effective_scale:
        scale += f", not {asked.effective_scale:g}"
    draft.notices.append(
        f"`adapter.rank` is {FORCED_RANK}, {asked.rank} was asked [{given}]: with alpha "
        f"{really.effective_alpha:g} that is {scale}"
    )


def _refuse_two_kinds_of_seed(values: dict[str, Any], source: str) -> None:
    """Here and not in the configuration, where `seed` always has a value."""
    given = {key: values.get(key) for key in ("seed", "seeds")}
    if None not in given.values():
        raise InputError(
            f"{source} gives both `seed` ({given['seed']}) and `seeds` ({given['seeds']})",
            hint="give one of the two: `seeds` trains one adapter for each",
        )


def find(source: str) -> Path:
    """The file of a recipe, or the file itself."""
    recipes = recipe_paths()
    if source in recipes:
        return recipes[source]
    path = Path(source)
    if path.is_file():
        return path
    if source in experiment_paths():
        raise InputError(
            f"{source} is an experiment, not one run", hint=f"weft experiment {source} --dry-run"
        )
    near = did_you_mean(source, list(recipes))
    raise InputError(
        f"there is no recipe and no file {source!r}",
        hint=near or f"recipes: {', '.join(recipes)} (see `weft recipes`)",
    )


def explain(issue: Any, origins: dict[str, str], model: type[BaseModel] = RunConfig) -> str:
    """One of pydantic's errors as a line: key, what is wrong, what was given, and where."""
    where = [str(part) for part in issue["loc"] if _is_key(part)]
    key = ".".join(where)  # none: what is wrong is said of several keys, by their names
    origin = origins.get(key)
    given = "" if isinstance(issue["input"], dict) else f", got {issue['input']!r}"
    if issue["type"] == "extra_forbidden":
        near = did_you_mean(where[-1], _fields(where[:-1], model))
        return f"{key}: no such key" + (f" ({near})" if near else "") + _from(origin)
    if issue["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _explain_tag(key, issue, origins)
    message = issue["msg"].removeprefix("Value error, ")
    text = f"{message[0].lower()}{message[1:]}{given}{_from(origin)}"
    return f"{key}: {text}" if key else text


def _explain_tag(key: str, issue: Any, origins: dict[str, str]) -> str:
    """A section whose `name` decides what else may stand in it."""
    names = list(UNIONS[key.rpartition(".")[2]])
    known = f"the names are {', '.join(names)}"
    if issue["type"] == "union_tag_not_found":
        return f"{key}.name: is missing, and the rest of `{key}` depends on it: {known}"
    given = issue["ctx"]["tag"]
    near = did_you_mean(given, names)
    shown = f" ({near})" if near else ""
    return f"{key}.name: there is no {given!r}; {known}{shown}" + _from(origins.get(f"{key}.name"))


def _from(origin: str | None) -> str:
    return f" [{origin}]" if origin else ""


BRANCHES = {"int", "float", "str", *(name for kinds in UNIONS.values() for name in kinds)}


def _is_key(part: Any) -> bool:
    """Pydantic mixes in the names of union branches, such as `tuple[str, ...]`."""
    return isinstance(part, str) and part.isidentifier() and part not in BRANCHES


def _fields(path: Sequence[str], model: type[BaseModel]) -> list[str]:
    models: list[type[BaseModel]] = [model]
    for part in path:
        kinds = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        kinds += [arg for kind in kinds for arg in get_args(kind)]
        models = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
    return [name for model in models for name in model.model_fields]
