"""A configuration while it is put together: layers of values, and where each one came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

from weft.core.errors import InputError
from weft.engines.config import EngineConfig, OverConfig
from weft.methods.config import FOREIGN, OWN_UNIT, MethodConfig, OptimiserConfig
from weft.model.config import ObjectiveConfig

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
    "method.noise.sigma": ("method.noise.fraction",),
    "method.noise.fraction": ("method.noise.sigma",),
    "budget.forwards": ("budget.steps",),
    "budget.steps": ("budget.forwards",),
}
"""Keys that make no sense together: one of a layer clears the others of the layers below, and says
so. Two of them in one layer are an error."""

COUNTS = ("boost.steps_per_iteration", "boost.merge_frequency")
"""Keys whose 0 is for never, and so goes with anything."""

UNIONS = {
    section: {
        kind.model_fields["name"].default: set(kind.model_fields)
        for kind in get_args(get_args(union)[0])
    }
    for section, union in (
        ("method", MethodConfig),
        ("objective", ObjectiveConfig),
        ("engine", EngineConfig),
        ("over", OverConfig),
    )
}
"""Sections of several kinds, and the keys of each."""

READ_BY = {
    **UNIONS,
    "optimiser": {
        name: set(OptimiserConfig.model_fields) - set(foreign) for name, foreign in FOREIGN.items()
    },
}
"""Sections whose `name` decides which other keys count: a layer with another name clears those of
the layers below that the new one does not read, and says so."""


@dataclass(frozen=True)
class Layer:
    """Where values come from: the name that the origins show, and a place for sentences."""

    origin: str
    where: str


COMMAND_LINE = Layer("command line", "on the command line")


@dataclass
class Draft:
    """Nested values, the origin of each dotted key, and what was cleared on the way."""

    values: dict[str, Any]
    origins: dict[str, str]
    notices: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, values: dict[str, Any], origin: str) -> Draft:
        """One layer."""
        return cls(values, dict.fromkeys(leaves(values), origin))

    def lay(self, settings: Iterable[tuple[str, Any]], layer: Layer) -> None:
        """Put (dotted key, value) pairs on top."""
        for key, value in settings:
            for rival in _rivals(key, value):
                self._clear(rival, key, value, layer)
            for foreign in (
                *self._foreign(key, value, layer),
                *self._estranged(key, value, layer),
            ):
                self._clear(foreign, key, value, layer)
            put(self.values, key, value)
            self._forget(key)
            for leaf in [leaf for leaf in self.origins if key.startswith(f"{leaf}.")]:
                del self.origins[leaf]  # it was null, and is a section now
            self.origins |= dict.fromkeys(leaves(value, key), layer.origin)

    def _foreign(self, key: str, name: Any, layer: Layer) -> list[str]:
        """What the layers below say that the kind `name` of a section does not read."""
        section, _, leaf = key.partition(".")
        kinds = READ_BY.get(section, {})
        below = self.values.get(section)
        named = leaf == "name" and isinstance(name, str) and name in kinds
        if not named or not isinstance(below, dict):
            return []
        readable = set().union(*kinds.values())  # a slip is nobody's, and is reported as one
        found = sorted(f"{section}.{leaf}" for leaf in set(below) & readable - kinds[name])
        return [key for key in found if self.origins.get(key) != layer.origin]

    def _estranged(self, key: str, name: Any, layer: Layer) -> list[str]:
        """What the layers below say of steps, where the method `name` has rates of its own."""
        if key != "method.name":
            return []
        below = self.values.get("method")
        before = below.get("name") if isinstance(below, dict) else None
        if (name in OWN_UNIT) == (before in OWN_UNIT):
            return []
        return [
            key
            for key, origin in self.origins.items()
            if key.startswith(("optimiser.", "batch_size")) and origin != layer.origin
        ]

    def _clear(self, rival: str, key: str, value: Any, layer: Layer) -> None:
        """Take out what `key` makes no sense with."""
        cleared = remove(self.values, rival)
        gone = self._forget(rival)
        if cleared is None or cleared is False or (cleared == 0 and rival in COUNTS):
            return
        if layer.origin in gone.values():
            raise InputError(
                f"`{rival}` and `{key}` are both {layer.where}, and make no sense together",
                hint="give one of the two",
            )
        below = ", ".join(sorted({origin.removeprefix("file ") for origin in gone.values()}))
        self.notices.append(f"{key}={value} {layer.where} clears {rival} of {below}")

    def _forget(self, key: str) -> dict[str, str]:
        """Drop the origins of a key and of all below it; returns them."""
        gone = {
            leaf: origin
            for leaf, origin in self.origins.items()
            if leaf == key or leaf.startswith(f"{key}.")
        }
        self.origins = {leaf: origin for leaf, origin in self.origins.items() if leaf not in gone}
        return gone


def _rivals(key: str, value: Any) -> tuple[str, ...]:
    """What a key makes no sense with, once it has a value; in a section, what the section does."""
    if value is None or (value == 0 and key in COUNTS):
        return ()
    return next((its for name, its in RIVALS.items() if f"{key}.".startswith(f"{name}.")), ())


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


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; a broken one is an `InputError`."""
    try:
        values = load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        what = {type(None): "empty", list: "a list"}.get(type(values), "one value")
        raise InputError(
            f"{path} must hold keys and values, and is {what}", hint="write lines like `steps: 100`"
        )
    return values


def load(text: str) -> Any:
    """One YAML value."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def dump(values: Mapping[str, Any]) -> str:
    """The values as YAML."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def parse(override: str) -> tuple[str, Any]:
    """`key=value` of a command line."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(
            f"{override!r} is not key=value", hint="for example steps=100 or adapter.rank=4"
        )
    try:
        return key, load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the value of {override!r} is not YAML: {error}") from None


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; sections that are not there, or null, are made."""
    *sections, leaf = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        inner = values[section]
        if not isinstance(inner, dict):
            raise InputError(f"{key}: {section!r} is {inner!r}, not a section")
        values = inner
    values[leaf] = value


def remove(values: dict[str, Any], key: str) -> Any:
    """Take out a dotted key; returns what stood there."""
    *sections, leaf = key.split(".")
    for section in sections:
        inner = values.get(section)
        if not isinstance(inner, dict):
            return None
        values = inner
    return values.pop(leaf, None)


def leaves(value: Any, key: str = "") -> Iterator[str]:
    """The dotted keys below which there is no section."""
    for name, _ in pairs(value, key):
        yield name


def pairs(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and what stands there."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from pairs(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
