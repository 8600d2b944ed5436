"""A run directory as evidence. Each fact comes from the one file that holds it.

Settings and commits come from the manifest, steps from steps.jsonl and evidence.jsonl, completions
from samples.jsonl, the end from the adapter's files, and what stands nowhere else from the run's
own recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from weft.core.errors import InputError, did_you_mean
from weft.core.files import Record
from weft.diagnose.sides.evidence import Evidence
from weft.diagnose.sides.from_adapter import snapshot_of
from weft.diagnose.sides.from_config import settings_of
from weft.formats.factors import kinds_at, read_factors
from weft.runs.evidence import (
    Event,
    Generation,
    Happened,
    Pass,
    Settings,
    Snapshot,
    TrainStep,
)
from weft.runs.layout import RunLayout
from weft.runs.manifest import Manifest
from weft.runs.reader import RunReader, step_loss
from weft.runs.recording import Recording, is_recording
from weft.training.config import Lane, RunConfig
from weft.training.resolve import from_record

MODEL = "model-0"
"""What a run's own recording calls the base, and its reader the one adapter that is looked at."""

HAPPENED = {"commit": "commit", "restart": "reset"}
"""Events of a manifest that say what was done to an adapter, in the words of evidence."""

ENDED = {"stop token": "eos", "stop text": "stop", "max_tokens": "length", "context": "length"}
"""How a completion of Weft ended, in the words of evidence."""

Arrays = Callable[[str], np.ndarray]


def run_evidence(ref: str, root: Path, member: str | None = None) -> Evidence:
    """A run, or one member of a run that trains several adapters.

    Raises `InputError` for a run of several where none is named, and for a member that it lacks.
    """
    reader = RunReader(root)
    manifest = reader.manifest
    source = str(reader.layout.manifest)
    resolved = from_record(manifest.config, manifest.origins, source)
    lane = _lane(ref, resolved.config, member)
    alone = len(resolved.config.lanes) == 1
    layout = reader.layout if alone else reader.layout.member(lane.name)
    trail, recorded, cut = _recording(ref, reader.layout.recording)
    ends, held = _ends(reader, resolved.config, lane.name, layout)
    events: list[Event] = [_settings(resolved.config, resolved.origins, lane, manifest)]
    own = list(_of_member(trail, lane.name))
    events += [each for each in own if not isinstance(each, TrainStep)]
    events += _steps(reader, None if alone else lane.name, own)
    events += _happened(manifest, lane.name)
    events += ends
    events += _generations(reader, ref if alone else lane.name, alone)

    def array(name: str) -> np.ndarray:
        for prefix, arrays in held.items():
            if name.startswith(f"{prefix}/"):
                return arrays(name)
        return recorded(name)

    lacks = (*_lacks(ref, trail, reader), *(cut if reader.done else ()))
    return Evidence(ref, "run", root, tuple(events), array, _about(reader, manifest), lacks)


def _lane(ref: str, config: RunConfig, member: str | None) -> Lane:
    lanes = {lane.name: lane for lane in config.lanes}
    if member is None and len(lanes) == 1:
        return config.lanes[0]
    members = [str(RunLayout(Path(ref)).members / name) for name in lanes]
    if member is None:
        raise InputError(
            f"the run {ref} trains {len(lanes)} adapters",
            hint=f"name one of them: {', '.join(members)}",
        )
    if len(lanes) == 1 or member not in lanes:
        raise InputError(
            f"the run has no member `{member}`",
            hint=did_you_mean(member, list(lanes)) or f"it trains {', '.join(lanes)}",
        )
    return lanes[member]


def _settings(
    config: RunConfig, origins: Mapping[str, str], lane: Lane, manifest: Manifest
) -> Settings:
    versions, hardware = manifest.versions, manifest.hardware
    more: dict[str, Any] = {f"environment.{name}": version for name, version in versions.items()}
    more |= {
        "environment.threads": hardware.get("torch_threads"),
        "environment.processes": hardware.get("processes", 1),
        "environment.cpu": hardware.get("cpu"),
        "environment.gpu": hardware.get("gpu"),
        "environment.code": manifest.fingerprints.get("code"),
    }
    more = {key: value for key, value in more.items() if value is not None}
    found = settings_of(config, origins, more)
    own = {"seed": lane.seed, "optimiser.lr": lane.lr}
    values = {key: value for key, value in found.values.items() if key != "seeds"}
    return Settings(values=values | own, origins=found.origins)


def _recording(ref: str, root: Path) -> tuple[tuple[Event, ...], Arrays, tuple[str, ...]]:
    """The events that the run left of itself, their arrays, and what is missing of them."""
    if is_recording(root):
        recording = Recording(root)
        return recording.events, recording.array, recording.lacks(ref)

    def array(name: str) -> np.ndarray:
        raise InputError(f"there is no array {name}: the run has no {root}")

    return (), array, ()


def _of_member(events: Sequence[Event], member: str) -> Iterator[Event]:
    """What concerns one adapter, and what all share."""
    for event in events:
        whose = getattr(event, "model", MODEL)
        if whose in ("", MODEL):
            yield event
        elif whose == member:
            yield event.model_copy(update={"model": MODEL})


def _steps(reader: RunReader, member: str | None, trail: Sequence[Event]) -> Iterator[TrainStep]:
    """Steps as they were logged, with what evidence.jsonl and the run's recording add."""
    passes = {each.index for each in trail if isinstance(each, Pass) and each.phase == "train"}
    more = {each.step: each for each in trail if isinstance(each, TrainStep)}
    seen: dict[int, Record] = {}
    for number, line in enumerate(reader.evidence(), start=1):
        with _as_written(reader.layout.evidence, number):
            if line.get("member") == member:
                seen[line["step"]] = line
    for number, record in enumerate(reader.steps(), start=1):
        if record.get("member") != member:
            continue
        with _as_written(reader.layout.steps, number):
            step = record["step"]
            known = more.get(step, TrainStep(step=step))
            found = _step(record, seen.get(step, {})).model_copy(
                update={
                    "passes": (step - 1,) if step - 1 in passes else (),
                    "grad_norms": known.grad_norms,
                    "base": known.base,
                    "base_before": known.base_before,
                }
            )
        yield found


def _step(record: Record, seen: Record) -> TrainStep:
    """`seen` is the evidence of a zeroth-order step, with the losses that it compared."""
    key = seen.get("key")
    return TrainStep(
        step=record["step"],
        model=MODEL,
        loss=step_loss(record),
        losses=tuple(x for name in ("plus", "minus") for x in seen.get(name, ())),
        supervised=record["supervised_tokens"],
        batch=record.get("batch", ""),
        labels=record.get("labels", ""),
        lr=(record["lr"],),
        grad_norm=record["grad_norm"],
        update_norm=record["update_norm"],
        adapter=record.get("adapter", ""),
        random=None if key is None else f"{key:016x}",
    )


def _happened(manifest: Manifest, member: str) -> Iterator[Happened]:
    for event in manifest.events:
        if event.get("kind") in HAPPENED and event.get("member") == member:
            facts = {k: v for k, v in event.items() if k in ("round", "commits", "of_step")}
            yield Happened(
                what=HAPPENED[event["kind"]], step=event["step"], place=member, facts=facts
            )


def _ends(
    reader: RunReader, config: RunConfig, member: str, layout: RunLayout
) -> tuple[list[Snapshot], dict[str, Arrays]]:
    """The adapter after the last step and the one that was kept, the latter last."""
    with _as_written(reader.layout.steps):
        last = max((record["step"] for record in reader.steps()), default=0)
    found, held = [], {}
    for path, kept in ((layout.adapter_last, False), (layout.adapter, True)):
        if not kinds_at(path):
            continue
        step = last
        if kept and config.keep == "best" and reader.done:
            step = reader.kept_step(None if len(config.lanes) == 1 else member)
        when = "end" if kept else "step"
        snapshot, held[path.name] = snapshot_of(read_factors(path), when, step, path.name)
        found.append(snapshot)
    return found, held


def _generations(reader: RunReader, member: str, alone: bool) -> Iterator[Generation]:
    """What `weft generate` stored of this member, a command an event."""
    lines = [line for line in reader.samples() if alone or line.get("member") == member]
    for _, group in groupby(lines, key=lambda line: (line.get("time"), line.get("member"))):
        with _as_written(reader.layout.samples):
            found = _generation(list(group))
        yield found


def _generation(said: Sequence[Record]) -> Generation:
    return Generation(
        model=MODEL,
        driver="weft",
        settings=decoding_seen(said[0]["parameters"]),
        prompts=tuple(tuple(line["prompt_ids"]) for line in said),
        tokens=tuple(all_tokens(line["ids"], line["stopped_by"]) for line in said),
        texts=tuple(line["text"] for line in said),
        ended=tuple(ENDED[line["finish"]] for line in said),
    )


@contextmanager
def _as_written(path: Path, line: int | None = None) -> Iterator[None]:
    """What a file lacks, or has of another kind than the run wrote, is told with its place."""
    place = str(path) if line is None else f"{path}, line {line}"
    hint = "it was damaged after it was written: copy the run again, or train it again"
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{place}: there is no `{error.args[0]}`", hint=hint) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}: not what a run writes: {_short(error)}", hint=hint) from None


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        issue = error.errors()[0]
        return f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}"
    return str(error)


def all_tokens(ids: Sequence[int], stopped_by: int | str | None) -> tuple[int, ...]:
    """Every token that was chosen, also the one that ended the text."""
    return (*ids, *((stopped_by,) if isinstance(stopped_by, int) else ()))


def decoding_seen(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a generation, with the names that every recorder uses."""
    return {
        **{key: value for key, value in parameters.items() if key != "stop_ids"},
        "eos": parameters["stop_ids"],
        "greedy": parameters["temperature"] == 0,
    }


def _about(reader: RunReader, manifest: Manifest) -> dict[str, Any]:
    results = {name: reader.results(name) for name in reader.result_names()}
    return {
        "source": "weft",
        "name": manifest.name,
        "command": manifest.command,
        "created": manifest.created,
        "status": manifest.status,
        "error": _error(manifest),
        "versions": manifest.versions,
        "hardware": manifest.hardware,
        "fingerprints": manifest.fingerprints,
        "data": manifest.data,
        "events": manifest.events,
        "notices": manifest.notices,
        "results": {name: its for name, its in results.items() if name.startswith("eval")},
    }


def _error(manifest: Manifest) -> str | None:
    """What a failed run failed of, without the hint."""
    told = [event["error"] for event in manifest.events if event["kind"] == "failed"]
    return told[-1].partition("\n\n")[0] if told and manifest.status == "failed" else None


def _lacks(ref: str, trail: Sequence[Event], reader: RunReader) -> tuple[str, ...]:
    found = []
    if not any(isinstance(event, Pass) for event in trail):
        found.append(f"{ref} holds no recording of its passes: no tokens, labels or logits")
    if not reader.done:
        found.append(f"{ref} is not finished: its status is `{reader.manifest.status}`")
    return tuple(found)
