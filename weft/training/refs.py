"""What people point at (a base, an adapter, a run) to an engine and a bank.

A reference is `base` or the name of a base, an adapter (a directory or a tensor file, in any
format), a run, or a member of a run (`RUN/members/seed-1`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from weft.core.errors import InputError, NumericError
from weft.core.files import read_json
from weft.data.config import DataConfig
from weft.data.dataset import can_chat, load_splits
from weft.data.readers import is_saved_dataset, read_rows
from weft.data.sources import find_sources
from weft.data.split import Split
from weft.data.tasks import TASKS
from weft.data.templates import FORMATS, detect
from weft.data.tokenizer import BUNDLED, resolve_base
from weft.engines.config import EngineConfig
from weft.engines.engine import Engine
from weft.engines.local import LocalEngine
from weft.engines.registry import ENGINES, engine_config, open_engine
from weft.formats.bundled import ADAPTERS, bundled_adapter
from weft.formats.certificate import certificate_of, certified_scale, load_certificate
from weft.formats.folder import CONFIG, contents
from weft.formats.loaded import LoadedAdapter, UndecidedScale
from weft.formats.registry import detect_format, nearby, read_any
from weft.model.adapter import Adapter, Site
from weft.model.bank import Bank
from weft.model.base import load_config
from weft.model.config import DType, ObjectiveConfig
from weft.runs.layout import RunLayout
from weft.runs.reader import RunReader
from weft.training.config import RunConfig
from weft.training.origin import Origin, check_origins, origin_of_files, origin_of_run
from weft.training.resolve import from_record

DEFAULT_BASE = "weft/tiny"

BASE_KEYS = ("base_model_name_or_path", "model")
"""What PEFT and mlx-lm call the base in an adapter's configuration."""

STALE = "the certificate.json beside it was made for other files, and counts for nothing"
"""A note."""

CUT = ("max_length", "append_eos", "train_on_prompt", "pad_target")
"""How rows of any source become examples: other rows than the run's are treated the same."""

_BELOW_A_RUN = 4
"""How deep the tensors of an adapter lie in a run: RUN/members/NAME/adapter/FILE."""

READ = ("format", "verbalizers", "chat", "chat_template")
"""How rows of one's own are read."""


@dataclass(frozen=True)
class Place:
    """A reference, found: which adapters it means (none for a base), and the run they are from."""

    ref: str
    base: str | None
    adapters: dict[str, Path]
    run: Path | None = None
    config: RunConfig | None = None
    origin: Origin | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """References over one base, ready to be scored: one member for each adapter or bare base."""

    engine: Engine
    adapters: dict[str, Adapter | None]
    places: tuple[Place, ...]
    notices: tuple[str, ...] = ()  # what could not be checked of the base

    @property
    def local(self) -> LocalEngine:
        """The engine, for what only PyTorch in this process can do."""
        if not isinstance(self.engine, LocalEngine):
            raise InputError(f"the {self.engine.name} engine cannot do this", hint="--engine local")
        return self.engine

    @property
    def bank(self) -> Bank:
        """All members side by side."""
        return Bank.of(self.adapters)


def locate(ref: str) -> Place:
    """Find out what `ref` is, without loading anything.

    Raises `InputError` for what is none of these, and for a run that has no adapter yet.
    """
    path = bundled_adapter(ref) or Path(ref)
    if ref == "base":
        return Place(ref, None, {})
    if ref in BUNDLED:
        return Place(ref, ref, {})
    if RunLayout(path).manifest.is_file():
        return _locate_run(ref, path)
    is_base = (path / "config.json").is_file()
    if detect_format(path) and not (is_base and any(path.glob("model*.safetensors"))):
        return _locate_adapter(ref, path, path)  # some come with the configuration of their base
    if is_base:
        return Place(ref, ref, {})
    if detect_format(RunLayout(path).adapter):
        return _locate_adapter(ref, path, RunLayout(path).adapter)
    if path.exists():
        raise InputError(
            f"{ref} is not an adapter, a run or a base: {contents(path)}",
            hint=nearby(path)
            or "an adapter is a directory or file of tensors (PEFT, mlx-lm, mlx-examples); "
            "a run holds manifest.json, a base config.json",
        )
    raise InputError(
        f"there is no {ref}",
        hint=f"with Weft come {', '.join((*BUNDLED, *ADAPTERS))}"
        if ref.startswith("weft/")
        else "give `base`, an adapter directory, or the run directory that `weft train` printed",
    )


def open_subject(
    refs: Sequence[str],
    *,
    base: str | None = None,
    dtype: DType | None = None,
    device: str | None = None,
    rows_per_forward: int | None = None,
    engine: EngineConfig | str = "local",
) -> Subject:
    """Load one base and every adapter that the references mean, as members named after them.

    The base is `base` if given, else the one that the references name; they must name the same.
    `engine` is a configuration, or a name of `ENGINES`. A dtype or a device that is not given is
    the run's, where the engine computes here.
    """
    settings = engine_config(engine) if isinstance(engine, str) else engine
    here = ENGINES[settings.name].here
    given = {"dtype": dtype, "device": device}
    chosen = [name for name, value in given.items() if value is not None]
    if chosen and not here:
        raise InputError(
            f"{' and '.join(chosen)} cannot be chosen here: the {settings.name} server has its own",
            hint="leave it out; how the server is started decides it",
        )
    places = tuple(locate(ref) for ref in refs)
    config = next((place.config for place in places if place.config), None)
    name = base or common_base(places)
    base_config = load_config(name)
    for path in (path for place in places for path in place.adapters.values()):
        # a file that cannot be read is found before the weights are loaded
        read_adapter(path, base_config=base_config)
    opened = open_engine(
        settings,
        name,
        dtype=dtype or (config.dtype if config and here else None),
        device=device or (config.device if config and settings.name == "local" else None),
        rows_per_forward=rows_per_forward,
    )
    adapters: dict[str, Adapter | None] = {}
    for place in places:
        read: dict[str, Adapter | None] = {
            name: _finite(read_adapter(path, opened.sites, base_config).adapter, path)
            for name, path in place.adapters.items()
        }
        for name, adapter in (read or {place.ref: None}).items():
            adapters[_free(name, adapters)] = adapter
    notices = check_origins([(place.ref, place.origin) for place in places], opened)
    return Subject(opened, adapters, places, notices)


def read_adapter(
    path: Path,
    sites: Mapping[str, Site] | None = None,
    base_config: PretrainedConfig | None = None,
) -> LoadedAdapter:
    """Read an adapter in any format, at the scale that its files determine.

    Raises `UndecidedScale` where they determine none and no certificate of Weft does. That a
    certificate was made for other files is a note.
    """
    stale = load_certificate(_directory(path)) is not None and certificate_of(path) is None
    try:
        read = read_any(path, sites, base_config=base_config)
        return replace(read, notes=(*read.notes, STALE)) if stale else read
    except UndecidedScale as undecided:
        scale = certified_scale(path)
        if scale is None:
            problem, _, _ = undecided.problem.partition("\n")
            raise UndecidedScale(
                problem,
                undecided.candidates,
                hint=f"say it once: `weft import {path} --out DIR --scale NUMBER`, or `--scale "
                "auto --data FILE`, which scores each of these on rows that it was trained for",
            ) from None
        read = read_any(path, sites, scale=scale, base_config=base_config)
        return replace(read, scale_from="the certificate beside it")


def _finite(adapter: Adapter, path: Path) -> Adapter:
    """The adapter, if it computes anything: attention can swallow a NaN and go on, wrongly."""
    if not adapter.flat.isfinite().all():
        raise NumericError(
            f"{path} holds numbers that are not finite: nothing was computed",
            hint=f"`weft inspect {path}` says where",
        )
    return adapter


def _free(name: str, taken: Collection[str]) -> str:
    """The name, or with a number that tells it from those of the same name."""
    names = chain([name], (f"{name} ({number})" for number in count(2)))
    return next(each for each in names if each not in taken)


def data_for(
    places: Sequence[Place], *, task: str | None = None, path: Path | None = None
) -> DataConfig:
    """The data to score on: as asked, or else what the run behind a reference was trained on.

    Other rows than the run's are cut and supervised as the run's were, and read like them where
    they have the fields for it. Every row of a single file or saved dataset is scored, whatever
    the split is called: nothing is held out of it.
    """
    run = next((place.config.data for place in places if place.config), None)
    if task is None and path is None:
        if run is None:
            raise InputError(
                f"nothing says on which data to score {', '.join(p.ref for p in places)}",
                hint=f"give --task (one of {', '.join(TASKS)}), or --data FILE",
            )
        return run
    kept = run.model_dump(include=set(CUT)) if run else {}
    if run and path and not task:
        kept |= _read_like(run, path)
    if run and task and task == run.task:
        kept |= run.model_dump(include={"verbalizers", "chat", "chat_template"})
    single = path is not None and (path.is_file() or is_saved_dataset(path))
    whole = path if single else None
    try:
        return DataConfig(task=task, path=path, valid_path=whole, test_path=whole, **kept)
    except ValueError as error:
        message = str(error).split("Value error, ")[-1].split(" [type=")[0]
        raise InputError(message) from None


def differences(places: Sequence[Place], settled: Collection[str] = ()) -> tuple[str, ...]:
    """What the runs behind two references say differently of base, data and loss, in words.

    Both are scored as the first one says; `settled` are the keys that somebody else decides.
    """
    runs = [(place.ref, _shared(place.config)) for place in places if place.config]
    if len(runs) < 2:
        return ()
    (ref_a, a), (ref_b, b) = runs[:2]
    return tuple(
        f"`{key}` differs: {a[key]} in {ref_a}, {b[key]} in {ref_b}; both are scored with {a[key]}"
        for key in a
        if a[key] != b[key] and key not in settled
    )


def settled_by(
    *, base: object = None, dtype: object = None, task: object = None, path: object = None
) -> set[str]:
    """The keys that do not come from a run when these are given."""
    settled = {key for key, value in (("base", base), ("dtype", dtype)) if value is not None}
    if task is not None or path is not None:
        kept = {*CUT, *(READ if task is None else ())}
        settled |= {f"data.{name}" for name in DataConfig.model_fields if name not in kept}
    return settled


def _shared(config: RunConfig) -> dict[str, Any]:
    data = config.data.model_dump(mode="json")
    objective = config.objective.model_dump(mode="json")
    return {
        "base": config.base,
        "dtype": config.dtype,
        **{f"data.{name}": value for name, value in data.items()},
        **{f"objective.{name}": value for name, value in objective.items()},
    }


def _read_like(run: DataConfig, path: Path) -> dict[str, Any]:
    """The run's format, words and chat template, as far as the rows at `path` can be read so."""
    if run.format == "auto" and not (run.chat or run.chat_template or run.verbalizers):
        return {}
    source = next(iter(find_sources(DataConfig(path=path)).values()))
    rows = read_rows(source).rows
    if not rows:
        return {}
    fits = run.format != "auto" and FORMATS[run.format].told_by(rows) is not None
    name = run.format if fits else detect(rows, responses=False)[0].name
    kept: dict[str, Any] = {"format": run.format} if fits else {}
    if run.verbalizers and name == _own_format(run):
        kept["verbalizers"] = run.verbalizers
    if run.chat and can_chat(FORMATS[name]):
        kept["chat"] = True
    conversing = name == "messages" or "chat" in kept
    return kept | ({"chat_template": run.chat_template} if conversing else {})


def _own_format(run: DataConfig) -> str | None:
    """The format of a run's rows; None where it was found by reading them, and they are gone."""
    if run.task is not None:
        return TASKS[run.task].format.name
    if run.format != "auto":
        return run.format
    assert run.path is not None
    rows = read_rows(next(iter(find_sources(run).values()))).rows if run.path.exists() else []
    return detect(rows, responses=False)[0].name if rows else None


def load_split(
    subject: Subject, data: DataConfig, name: str, objective: ObjectiveConfig | None = None
) -> Split:
    """One split, tokenised for the subject's base; a reward needs no responses."""
    engine, responses = subject.engine, objective is None or objective.name != "reward"
    splits = load_splits(data, engine.tokenizer, (name,), engine.context, responses=responses)
    return splits[name]


def _locate_run(ref: str, path: Path) -> Place:
    reader = RunReader(path)
    config = _stored_config(reader)
    layout = reader.layout
    members = {name: layout.member(name).adapter for name in reader.member_names()}
    adapters = members or {ref: layout.adapter}
    if not all(detect_format(adapter) for adapter in adapters.values()):
        raise InputError(
            f"the run {ref} has no adapter yet: it is {reader.manifest.status}",
            hint=f"finish it with `weft train --resume {ref}`",
        )
    origin = origin_of_run(reader.manifest, layout.manifest)
    return Place(ref, config.base, adapters, path, config, origin)


def _locate_adapter(ref: str, path: Path, adapter: Path) -> Place:
    """An adapter; if it lies in a run, the run says the base and the data."""
    origin = origin_of_files(adapter)
    for parent in path.resolve().parents[:_BELOW_A_RUN]:
        if origin is None and RunLayout(parent).manifest.is_file():
            reader = RunReader(parent)
            config = _stored_config(reader)
            origin = origin_of_run(reader.manifest, reader.layout.manifest)
            return Place(ref, config.base, {ref: adapter}, None, config, origin)
    base = _named_base(adapter) or (origin.base if origin else None)
    return Place(ref, base, {ref: adapter}, origin=origin)


def _named_base(adapter: Path) -> str | None:
    """The base that an adapter's own configuration names: PEFT's, or mlx-lm's."""
    path = _directory(adapter) / CONFIG
    fields = read_json(path) if path.is_file() else {}
    names = [fields.get(key) for key in BASE_KEYS] if isinstance(fields, dict) else []
    return next((name for name in names if isinstance(name, str) and name), None)


def _directory(adapter: Path) -> Path:
    return adapter if adapter.is_dir() else adapter.parent


def _stored_config(reader: RunReader) -> RunConfig:
    """What the run used; `InputError` where this Weft cannot read it any more."""
    manifest = reader.manifest
    return from_record(manifest.config, manifest.origins, str(reader.layout.manifest)).config


def common_base(places: Sequence[Place]) -> str:
    """The one base that the references name; the bundled one for `base` alone."""
    named = {place.base: place.ref for place in places if place.base}
    if len({resolve_base(base) for base in named}) > 1:
        facts = "; ".join(f"{ref} is on {base}" for base, ref in named.items())
        raise InputError(
            f"these are on different bases: {facts}",
            hint="if they are the same weights under two names, say which with --base",
        )
    homeless = [place for place in places if place.adapters and not place.base]
    if homeless and not named:
        for path in homeless[0].adapters.values():
            with suppress(UndecidedScale):  # files that cannot be read say nothing of their base
                read_adapter(path)
        raise InputError(
            f"{homeless[0].ref} does not say which base it was trained on",
            hint="give it with --base",
        )
    return next(iter(named), DEFAULT_BASE)
