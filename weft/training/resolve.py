"""A recipe or file and `key=value` overrides to one checked configuration with its origins."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from weft.core.errors import InputError, did_you_mean
from weft.methods.config import MethodConfig
from weft.model.config import AdapterConfig
from weft.training.config import RunConfig

RIVALS = {
    "data.task": ("data.path", "data.valid_path", "data.test_path", "data.format"),
    "data.path": ("data.task",),
    "steps": ("epochs",),
    "epochs": ("steps",),
    "adapter.alpha": ("adapter.scale",),
    "adapter.scale": ("adapter.alpha", "adapter.rslora"),
    "seed": ("seeds",),
    "seeds": ("seed",),
    "boost.plateau": ("boost.steps_per_iteration", "boost.merge_frequency"),
    "boost.steps_per_iteration": ("boost.plateau",),
    "boost.merge_frequency": ("boost.plateau",),
}
"""Keys that make no sense together: an override of one clears the others of the file, and says so.
Two of them on one command line are an error."""

COMMAND_LINE = "command line"


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
    folder = Path(str(files("weft") / "training" / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def resolve(source: str, overrides: Sequence[str] = ()) -> Resolved:
    """Read `source` (a recipe's name or a YAML file), apply overrides, and check everything.

    Raises one `InputError` that lists every problem: key, value, where it was given, and a hint.
    """
    path = _find(source)
    values = _read_yaml(path)
    origins = dict.fromkeys(_leaves(values), f"file {path.name}")
    notices = []
    for override in overrides:
        key, value = _parse(override)
        for rival in RIVALS.get(key, ()) if value is not None else ():
            if _clear(values, origins, key, rival):
                notices.append(f"{key}={value} on the command line clears {rival} of {path.name}")
        _put(values, key, value)
        origins = {k: o for k, o in origins.items() if not k.startswith(f"{key}.")}
        origins |= dict.fromkeys(_leaves(value, key), COMMAND_LINE)
    shown = f"recipe {source}" if source in recipe_paths() else str(path)
    _refuse_two_kinds_of_seed(values, shown)
    notices += _rank_of_boosting(values, origins)
    return _checked(values, origins, shown, path.stem, notices)


def from_record(config: dict[str, Any], origins: dict[str, str], source: str) -> Resolved:
    """The configuration that a run stored about itself."""
    return _checked(config, origins, source, "run", [])


def _clear(values: dict[str, Any], origins: dict[str, str], key: str, rival: str) -> bool:
    """Take out what `key` makes no sense with; whether something stood there."""
    cleared = _remove(values, rival)
    origin = origins.pop(rival, None)
    if cleared is None or cleared is False:
        return False
    if origin == COMMAND_LINE:
        raise InputError(
            f"`{rival}` and `{key}` are both on the command line, and make no sense together",
            hint="give one of the two",
        )
    return True


FORCED_RANK = "forced to 1 by boosting"


def _rank_of_boosting(values: dict[str, Any], origins: dict[str, str]) -> list[str]:
    """Boosting trains rank-1 adapters: another rank is replaced, and that is said and recorded."""
    adapter = values.setdefault("adapter", {}) if values.get("boost") is not None else None
    if not isinstance(adapter, dict) or adapter.get("rank") == 1:
        return []
    try:
        asked = AdapterConfig.model_validate(adapter)
        really = AdapterConfig.model_validate({**adapter, "rank": 1})
    except ValidationError:
        return []  # whatever is wrong with it is reported with all other problems
    given = origins.get("adapter.rank")
    adapter["rank"] = 1
    origins["adapter.rank"] = FORCED_RANK + (f" ({asked.rank} was asked)" if given else "")
    if given is None:
        return []
    scale = f"scale {really.effective_scale:g}"
    if really.effective_scale != asked.effective_scale:
        scale += f", not {asked.effective_scale:g}"
    return [
        f"`adapter.rank` is {FORCED_RANK}, {asked.rank} was asked [{given}]: with alpha "
        f"{really.effective_alpha:g} that is {scale}"
    ]


def _refuse_two_kinds_of_seed(values: dict[str, Any], source: str) -> None:
    """Here and not in the configuration, where `seed` always has a value."""
    given = {key: values.get(key) for key in ("seed", "seeds")}
    if None not in given.values():
        raise InputError(
            f"{source} gives both `seed` ({given['seed']}) and `seeds` ({given['seeds']})",
            hint="give one of the two: `seeds` trains one adapter for each",
        )


def _checked(
    values: dict[str, Any], origins: dict[str, str], source: str, name: str, notices: list[str]
) -> Resolved:
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        problems = [_explain(issue, origins) for issue in error.errors()]
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise InputError(
            f"{source} has {count}:\n  " + "\n  ".join(problems),
            hint="`weft check` shows a configuration as it is understood",
        ) from None
    whole = {key: origins.get(key, "default") for key in _leaves(config.model_dump(mode="json"))}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return Resolved(config, whole, config.name or name, text, tuple(notices))


def _find(source: str) -> Path:
    recipes = recipe_paths()
    if source in recipes:
        return recipes[source]
    path = Path(source)
    if path.is_file():
        return path
    near = did_you_mean(source, list(recipes))
    raise InputError(
        f"there is no recipe and no file {source!r}",
        hint=near or f"recipes: {', '.join(recipes)} (see `weft recipes`)",
    )


class _Loader(yaml.SafeLoader):
    """YAML in which 2e-4 is a number and a key may stand once."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|INF)$|^\.(nan|NAN)$"),
    list("-+0123456789."),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"`{key}` stands twice", None)
    values = [loader.construct_object(value, deep=True) for _, value in node.value]
    return dict(zip(keys, values, strict=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold keys and values, not {type(values).__name__}")
    return values


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def _parse(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(
            f"{override!r} is not key=value", hint="for example steps=100 or adapter.rank=4"
        )
    try:
        return key, _load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the value of {override!r} is not YAML: {error}") from None


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"{key}: {section!r} is {inner!r}, not a section")
        values = inner
    values[leaf] = value


def _remove(values: dict[str, Any], key: str) -> Any:
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.get(section, {})
    return values.pop(leaf, None) if isinstance(values, dict) else None


def _leaves(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key


def _explain(issue: Any, origins: dict[str, str]) -> str:
    where = [str(part) for part in issue["loc"] if _is_key(part)]
    key = ".".join(where) or "configuration"
    origin = origins.get(key)
    given = "" if isinstance(issue["input"], dict) else f", got {issue['input']!r}"
    if issue["type"] == "extra_forbidden":
        near = did_you_mean(where[-1], _fields(where[:-1]))
        return f"{key}: no such key" + (f" ({near})" if near else "") + _from(origin)
    if issue["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _explain_tag(key, issue, origins)
    message = issue["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}{given}{_from(origin)}"


METHOD_NAMES = tuple(
    kind.model_fields["name"].default for kind in get_args(get_args(MethodConfig)[0])
)


def _explain_tag(key: str, issue: Any, origins: dict[str, str]) -> str:
    """A section whose `name` decides what else may stand in it."""
    known = f"the names are {', '.join(METHOD_NAMES)}"
    if issue["type"] == "union_tag_not_found":
        return f"{key}.name: is missing, and the rest of `{key}` depends on it: {known}"
    given = issue["ctx"]["tag"]
    near = did_you_mean(given, list(METHOD_NAMES))
    shown = f" ({near})" if near else ""
    return f"{key}.name: there is no {given!r}; {known}{shown}" + _from(origins.get(f"{key}.name"))


def _from(origin: str | None) -> str:
    return f" [{origin}]" if origin else ""


def _is_key(part: Any) -> bool:
    """Pydantic mixes in the names of union branches, such as `tuple[str, ...]`."""
    branches = ("int", "float", "str", *METHOD_NAMES)
    return isinstance(part, str) and part.isidentifier() and part not in branches


def _fields(path: Sequence[str]) -> list[str]:
    models: list[type[BaseModel]] = [RunConfig]
    for part in path:
        kinds = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        kinds += [arg for kind in kinds for arg in get_args(kind)]
        models = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
    return [name for model in models for name in model.model_fields]
