"""An experiment's file to its arms: each one a checked configuration of a run (no torch).

An arm is laid together from below: the run that all start from, `run.*` of the command line, the
arm's own overrides, `arms.ARM.*` of the command line, and the experiment's seeds and budget.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from weft.core.errors import InputError, did_you_mean
from weft.data.dataset import available_splits
from weft.methods.config import OWN_UNIT
from weft.runs.experiment import BASE
from weft.training.config import RunConfig
from weft.training.draft import COMMAND_LINE, Draft, Layer, dump, pairs, parse, read_yaml
from weft.training.resolve import (
    Resolved,
    counted,
    experiment_paths,
    explain,
    find,
    force_rank,
    problems_in,
    recipe_paths,
    settle,
)

THE_EXPERIMENTS = {
    "seed": "seeds",
    "seeds": "seeds",
    "steps": "budget",
    "epochs": "budget",
    "name": "name",
}
"""What an arm cannot say of itself, and the key of the experiment that says it."""


class BudgetConfig(BaseModel):
    """How long every arm trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    forwards: Annotated[
        int | None, Field(ge=1, description="passes of one batch through the base, for each seed")
    ] = None
    steps: Annotated[int | None, Field(ge=1, description="steps, whatever they cost")] = None

    @model_validator(mode="after")
    def _one_of_two(self) -> BudgetConfig:
        if (self.forwards is None) == (self.steps is None):
            raise ValueError("give `budget.forwards` or `budget.steps`, one of the two")
        return self

    def record(self) -> dict[str, int]:
        """The one that was given."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class ExperimentConfig(BaseModel):
    """Arms that differ in some settings, each trained with the same seeds on the same rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str | None, Field(description="names the directory")] = None
    description: Annotated[str, Field(description="one line for people")] = ""
    run: Annotated[
        str | dict[str, Any],
        Field(
            description="what all arms start from: a recipe, a file beside this one, or settings"
        ),
    ]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    budget: BudgetConfig
    arms: Annotated[
        dict[str, dict[str, Any]],
        Field(min_length=1, description="name to overrides, nested or dotted"),
    ]
    reference: Annotated[
        str | None, Field(description="the arm that others are compared with (default: the first)")
    ] = None
    x: Annotated[
        Literal["forwards", "steps"], Field(description="the horizontal axis of the figure")
    ] = "forwards"

    @field_validator("arms", mode="before")
    @classmethod
    def _nothing_is_no_override(cls, arms: Any) -> Any:
        if not isinstance(arms, dict):
            return arms
        odd = [f"{name} {value!r}" for name, value in arms.items() if not _settings(value)]
        if odd:
            raise ValueError(f"an arm holds keys and values, not {', '.join(odd)}")
        return {str(name): value or {} for name, value in arms.items()}

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        problems = []
        if len(set(self.seeds)) != len(self.seeds):
            problems.append(f"`seeds` {list(self.seeds)} names one twice")
        if self.reference is not None and self.reference not in self.arms:
            near = did_you_mean(self.reference, list(self.arms))
            problems.append(
                f"`reference` {self.reference!r} is no arm; the arms are {', '.join(self.arms)}"
                + (f" ({near})" if near else "")
            )
        if BASE in self.arms:
            problems.append(f"an arm cannot be called `{BASE}`: so the untouched base is")
        if blank := [name for name in self.arms if not name.strip()]:
            problems.append(f"an arm needs a name, got {blank[0]!r}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _settings(value: Any) -> bool:
    return value is None or isinstance(value, dict)


@dataclass(frozen=True)
class Design:
    """An experiment as its file says it; what a step costs, and so how long an arm is, is open."""

    config: ExperimentConfig
    name: str
    text: str
    source: str
    drafts: Mapping[str, Draft]  # by arm, without the experiment's seeds and budget

    @property
    def reference(self) -> str:
        """The arm that others are compared with."""
        return self.config.reference or next(iter(self.config.arms))

    def arms(self, steps: Mapping[str, int]) -> dict[str, Resolved]:
        """Every arm with so many steps. Raises one `InputError` with all problems of all arms."""
        found: dict[str, Resolved] = {}
        problems: dict[str, list[str]] = {}
        for name, draft in self.drafts.items():
            whole = _with_budget(draft, self.config.seeds, steps[name])
            problems[name] = problems_in(whole)
            if not problems[name]:
                found[name] = settle(whole, self.source, self.name)
                problems[name] = _unsuitable(found[name].config)
        _refuse(self.source, problems)
        return found


def read_design(source: str, overrides: Sequence[str] = ()) -> Design:
    """Read an experiment (a bundled one's name or a YAML file), and check it and all its arms.

    `overrides` are `key=value`. Raises one `InputError` that lists every problem.
    """
    path = _file(source)
    values = read_yaml(path)
    draft = Draft.of(values, f"file {path.name}")
    of_run, of_arms = _overridden(draft, overrides)
    config = _checked(draft, source)
    base = _base(config.run, path)
    base.lay(of_run, COMMAND_LINE)
    drafts, problems = {}, {}
    for name, settings in config.arms.items():
        drafts[name] = copy.deepcopy(base)
        given = [*pairs(settings)] if settings else []
        problems[name] = _foreign(given + of_arms.get(name, []))
        drafts[name].lay(given, Layer(f"arm {name}", f"in arm `{name}`"))
        drafts[name].lay(of_arms.get(name, []), COMMAND_LINE)
    _refuse(source, problems)
    written = {**draft.values, "run": base.values}
    design = Design(config, config.name or path.stem, dump(written), source, drafts)
    design.arms({name: config.budget.steps or config.budget.forwards or 1 for name in drafts})
    return design


def _file(source: str) -> Path:
    """The file of a bundled experiment, or the file itself."""
    bundled = experiment_paths()
    path = bundled.get(source, Path(source))
    if path.is_file():
        return path
    if source in recipe_paths():
        raise InputError(
            f"{source} is a recipe of one run, not an experiment",
            hint=f"write a file with `run: {source}`, `seeds`, `budget` and `arms`",
        )
    raise InputError(
        f"there is no experiment and no file {source!r}",
        hint=did_you_mean(source, list(bundled))
        or f"experiments: {', '.join(bundled)}; docs/experiments.md shows a file of one's own",
    )


def remarks(arm: RunConfig, reference: RunConfig) -> tuple[str, ...]:
    """What makes a comparison of two arms unfair or unclear, in words."""
    found = []
    if (arm.base, arm.dtype) != (reference.base, reference.dtype):
        found.append(
            f"another base: {arm.base} ({arm.dtype}), not {reference.base} ({reference.dtype})"
        )
    if arm.data != reference.data:
        found.append("other data: it is not scored on the same rows as the reference")
    if arm.objective != reference.objective:
        found.append("another objective: its loss is another quantity")
    if arm.batch_size != reference.batch_size:
        found.append(
            f"{arm.batch_size} rows a step, not {reference.batch_size}: a forward of it is not the "
            "same work"
        )
    chances = [_evaluations(config) for config in (arm, reference)]
    if arm.keep != reference.keep:
        found.append(f"keeps the {arm.keep} adapter, the reference the {reference.keep}")
    elif arm.keep == "best" and chances[0] != chances[1]:
        found.append(f"keeps the best of {chances[0]} evaluations, the reference of {chances[1]}")
    own, other = speed(arm), speed(reference)
    if own and other and not 0.99 < own / other < 1.01:
        factor = own / other
        times = f"{factor:.3g} times as fast" if factor > 1 else f"{1 / factor:.3g} times slower"
        found.append(
            f"moves {times} a direction (lr x scale^2 {own:.3g}, the reference {other:.3g}): the "
            "difference may be one of step length"
        )
    return tuple(found)


def speed(config: RunConfig) -> float | None:
    """How far a step of SGD moves the update itself for one slope.

    None for other optimisers, and for a method whose rate is in units of its own.
    """
    if config.optimiser.name != "sgd" or config.method.name in OWN_UNIT:
        return None
    return config.optimiser.lrs[0] * config.adapter.effective_scale**2


def _evaluations(config: RunConfig) -> int:
    steps = config.steps or 0
    return steps // config.eval.every if config.eval.every else 0


def _overridden(
    draft: Draft, overrides: Sequence[str]
) -> tuple[list[tuple[str, Any]], dict[str, list[tuple[str, Any]]]]:
    """Lay what concerns the experiment itself; return what is for the run and for each arm."""
    of_run: list[tuple[str, Any]] = []
    of_arms: dict[str, list[tuple[str, Any]]] = {}
    arms = draft.values.get("arms")
    names = [str(name) for name in arms] if isinstance(arms, dict) else []
    for override in overrides:
        key, value = parse(override)
        section, _, rest = key.partition(".")
        if section == "run" and rest:
            of_run.append((rest, value))
        elif section == "arms" and rest:
            name = max((n for n in names if rest.startswith(f"{n}.")), key=len, default=None)
            if name is None:
                near = did_you_mean(rest.split(".")[0], names)
                raise InputError(
                    f"{override!r} names no arm of the experiment; the arms are {', '.join(names)}",
                    hint=near or "arms.NAME.key=value overrides a setting of one arm",
                )
            of_arms.setdefault(name, []).append((rest.removeprefix(f"{name}."), value))
        else:
            draft.lay([(key, value)], COMMAND_LINE)
    return of_run, of_arms


def _checked(draft: Draft, source: str) -> ExperimentConfig:
    try:
        return ExperimentConfig.model_validate(draft.values)
    except ValidationError as error:
        problems = [
            _misplaced(issue) or explain(issue, draft.origins, ExperimentConfig)
            for issue in error.errors()
        ]
        raise InputError(
            f"{source} has {counted(problems)}:\n  " + "\n  ".join(problems),
            hint="docs/experiments.md shows what an experiment's file holds",
        ) from None


def _misplaced(issue: Any) -> str | None:
    """A key of a run that stands where the experiment's own keys are."""
    if issue["type"] != "extra_forbidden" or len(issue["loc"]) > 1:
        return None
    key = str(issue["loc"][0])
    if key in THE_EXPERIMENTS:
        return f"{key}: no such key (an experiment has `{THE_EXPERIMENTS[key]}`)"
    if key.split(".")[0] in RunConfig.model_fields:
        return f"{key}: no such key (a run has it: `run.{key}`, or `{key}` in an arm)"
    return None


def _base(run: str | dict[str, Any], path: Path) -> Draft:
    """The configuration that all arms start from."""
    if isinstance(run, dict):
        return Draft.of(copy.deepcopy(run), f"file {path.name}")
    beside = path.parent / run
    found = beside if run not in recipe_paths() and beside.is_file() else find(run)
    return Draft.of(read_yaml(found), f"file {found.name}")


def _with_budget(draft: Draft, seeds: Iterable[int], steps: int) -> Draft:
    """With the experiment's own settings; that they go before those of a recipe is no news."""
    whole = copy.deepcopy(draft)
    notices = [*whole.notices]
    whole.lay([("seeds", list(seeds)), ("steps", steps)], Layer("experiment", "of the experiment"))
    whole.notices[:] = notices
    force_rank(whole)
    return whole


def _foreign(settings: Sequence[tuple[str, Any]]) -> list[str]:
    """Problems with keys that are not an arm's to set."""
    return [
        f"{key}: this is the experiment's: set `{THE_EXPERIMENTS[key]}` there, for all arms"
        for key, _ in settings
        if key in THE_EXPERIMENTS
    ]


def _unsuitable(config: RunConfig) -> list[str]:
    """What is well for a run of its own, and not for an arm."""
    problems = []
    if len(config.optimiser.lrs) > 1:
        problems.append("optimiser.lr: an arm has one learning rate; make an arm for each")
    if not {"valid", "test"} & set(available_splits(config.data)):
        problems.append("data: there are neither test nor validation rows to compare arms on")
    return problems


def _refuse(source: str, problems: Mapping[str, Sequence[str]]) -> None:
    """Raise with all problems; one that every arm has is the run's, and stands once."""
    if not any(problems.values()):
        return
    first = next(iter(problems.values()))
    common = [p for p in first if all(p in each for each in problems.values())]
    said = [f"run: {problem}" for problem in common]
    for name, each in problems.items():
        said += [f"arm {name}: {problem}" for problem in each if problem not in common]
    raise InputError(
        f"{source} has {counted(said)}:\n  " + "\n  ".join(said),
        hint="arms hold the keys of a run, such as optimiser.lr; `weft experiment FILE --dry-run` "
        "shows each as it is understood",
    )
