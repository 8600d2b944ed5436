"""A run from start to end: prepare, train, keep, evaluate, and leave every fingerprint."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weft.core.errors import CheckFailed, InputError
from weft.core.files import sha256_file
from weft.formats.peft import TENSORS, write_adapter
from weft.model.sites import layers_notice
from weft.runs.layout import RunLayout
from weft.runs.manifest import Manifest
from weft.runs.provenance import code_state, hardware, versions
from weft.runs.reader import RunReader
from weft.runs.timing import Stopwatch
from weft.runs.writer import RunWriter
from weft.training.block import configuration_block
from weft.training.fit import StopRequest, Watch, fit, validate
from weft.training.job import Job, load_job
from weft.training.resolve import Resolved, from_record
from weft.training.state import State


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    root: Path
    finished: bool
    step: int
    steps: int
    results: dict[str, dict[str, Any]]  # by member; empty without validation rows
    initial_loss: dict[str, float]


Announce = Callable[[Job, Manifest], None]
"""Called once, when everything is checked and loaded and the first step is about to be taken."""


def train(
    resolved: Resolved,
    run_dir: Path | None = None,
    *,
    announce: Announce | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Start a run in `run_dir` (default: a new directory below `runs/`)."""
    root = run_dir or free_directory(Path("runs"), resolved.name)
    if run_dir is not None:
        _refuse_occupied(run_dir)
    job = load_job(resolved)
    theta_LP = job.initial_theta()
    manifest = _manifest(job, theta_LP, root.name)
    diff = code_state().diff
    with RunWriter.create(root, manifest, resolved.text, diff) as writer:
        for notice in _notices(job):
            writer.notice(notice)
        return _go(job, State.fresh(theta_LP), writer, announce, watch)


def resume(root: Path, *, announce: Announce | None = None, watch: Watch | None = None) -> Outcome:
    """Go on with a run that did not finish, from its newest checkpoint, bit for bit."""
    manifest = RunReader(root).manifest
    resolved = from_record(manifest.config, manifest.origins, str(root / "manifest.json"))
    job = load_job(resolved)
    _refuse_changed(manifest, job)
    with RunWriter.reopen(root) as writer:
        found = writer.latest_checkpoint()
        state = State.load(found[1], job.base.device) if found else State.fresh(job.initial_theta())
        writer.resume_at(state.step)
        for notice in _changes(manifest, job):
            writer.notice(notice)
        return _go(job, state, writer, announce, watch)


def free_directory(parent: Path, name: str) -> Path:
    """`parent/name`, or the first of `parent/name-2`, `-3`, ... that does not exist."""
    number = 1
    while (parent / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return parent / (name if number == 1 else f"{name}-{number}")


def _go(
    job: Job, state: State, writer: RunWriter, announce: Announce | None, watch: Watch | None
) -> Outcome:
    if announce:
        announce(job, writer.manifest)
    stop, clock, since = StopRequest(), Stopwatch(), state.step
    with stop.listening(), clock("total"):
        state = fit(job, state, writer, stop, clock, watch)
        if state.step < job.steps:
            writer.finish("interrupted")
            return Outcome(writer.layout.root, False, state.step, job.steps, {}, {})
        with clock("evaluate"):
            results = _keep(job, state, writer)
        _check_base(job, writer)
    writer.result("time_breakdown", {"since_step": since, "seconds": clock.seconds})
    writer.finish("finished")
    return Outcome(
        writer.layout.root, True, state.step, job.steps, results, _initial_loss(job, writer.layout)
    )


def _keep(job: Job, state: State, writer: RunWriter) -> dict[str, dict[str, Any]]:
    """Write each lane's adapters, and evaluate the ones that are kept."""
    best = job.config.keep == "best"
    kept_LP = state.best_LP if best else state.theta_LP
    digest = hashlib.sha256()
    for index, lane in enumerate(job.lanes):
        place = member_layout(writer.layout, job, lane.name)
        _write(job, kept_LP[index], place.adapter)
        if best:
            _write(job, state.theta_LP[index], place.adapter_last)
        digest.update(sha256_file(place.adapter / TENSORS).encode())
    writer.fingerprint("outcome", digest.hexdigest())
    if "valid" not in job.splits:
        return {}
    evaluation = validate(job, kept_LP, task_metric=True)
    writer.table("valid", evaluation.table)
    results = {}
    for index, lane in enumerate(job.lanes):
        step = state.best_step_L[index] if best else state.step
        results[lane.name] = evaluation.record(lane.name) | {"kept": job.config.keep, "step": step}
        name = "eval" if len(job.lanes) == 1 else f"eval-{lane.name}"
        writer.result(name, results[lane.name])
    return results


def member_layout(run: RunLayout, job: Job, name: str) -> RunLayout:
    """Where a lane's adapters are: in the run itself when it is the only one."""
    return run if len(job.lanes) == 1 else run.member(name)


def _write(job: Job, flat_P: torch.Tensor, directory: Path) -> None:
    write_adapter(
        job.adapter(flat_P),
        directory,
        base_ref=job.config.base,
        dropout=job.config.adapter.dropout,
        sites=job.base.sites,
    )


def _initial_loss(job: Job, run: RunLayout) -> dict[str, float]:
    """Each lane's validation loss before the first step: the base's, since B is zero."""
    reader = RunReader(run.root)
    if "valid-step-0" not in reader.table_names():
        return {}
    table = reader.table("valid-step-0")
    if table.ids != reader.table("valid").ids:
        return {}  # `eval.rows` scored other rows while training: not to be put side by side
    return dict(zip(table.members, table.means().tolist(), strict=True))


def _check_base(job: Job, writer: RunWriter) -> None:
    before, after = writer.manifest.fingerprints["base"], job.base.fingerprint()
    writer.event("base checked", unchanged=before == after)
    if before != after:
        raise CheckFailed(
            f"the base's weights changed during the run: sha256 {before[:12]} became {after[:12]}",
            hint="this is a bug in Weft; the adapter was trained on a moving base",
        )


def _manifest(job: Job, theta_LP: torch.Tensor, name: str) -> Manifest:
    resolved, splits = job.resolved, job.splits
    config = resolved.config.model_dump(mode="json")
    return Manifest(
        name=name,
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        config=config,
        origins=resolved.origins,
        block=configuration_block(job.config, job.layout, splits),
        fingerprints={
            "config": _sha256(json.dumps(config, sort_keys=True).encode()),
            "code": code_state().sha256,
            "base": job.base.fingerprint(),
            **{f"rows.{name}": split.rows_fingerprint for name, split in splits.items()},
            **{f"tokens.{name}": split.fingerprint for name, split in splits.items()},
            "initial_adapter": _sha256(theta_LP.cpu().contiguous().numpy().tobytes()),
        },
        versions=versions(),
        hardware=hardware() | _torch_facts(job),
        data={name: dict(split.counts) for name, split in splits.items()},
        sites={
            slot.site.name: {"rank": slot.rank, "scale": slot.scale} for slot in job.layout.slots
        },
    )


def _notices(job: Job) -> Sequence[str]:
    found = [*job.resolved.notices]
    found += [notice for split in job.splits.values() for notice in split.notices]
    layers = layers_notice(job.base.sites, job.config.adapter)
    return found + [notice for notice in (layers, job.base.notice) if notice]


def _torch_facts(job: Job) -> dict[str, Any]:
    facts: dict[str, Any] = {"torch_threads": torch.get_num_threads()}
    if job.base.device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(job.base.device)
    return facts


def _refuse_changed(manifest: Manifest, job: Job) -> None:
    """A resumed run must go on with the same weights and the same tokens."""
    now = {"base": job.base.fingerprint()}
    now |= {f"tokens.{name}": split.fingerprint for name, split in job.splits.items()}
    changed = [stage for stage, digest in now.items() if manifest.fingerprints[stage] != digest]
    if changed:
        raise InputError(
            f"this run cannot be resumed: {', '.join(changed)} differ from when it started",
            hint="put the old files back, or start a new run",
        )


def _changes(manifest: Manifest, job: Job) -> list[str]:
    """What is not as it was when the run started, so that the rest may not be bit for bit."""
    facts = {
        "the code of Weft": (manifest.fingerprints.get("code"), code_state().sha256),
        "torch": (manifest.versions.get("torch"), versions().get("torch")),
        "transformers": (manifest.versions.get("transformers"), versions().get("transformers")),
        "the processor": (manifest.hardware.get("cpu"), hardware()["cpu"]),
        "the number of threads": (
            manifest.hardware.get("torch_threads"),
            _torch_facts(job)["torch_threads"],
        ),
    }
    return [
        f"resumed with another state of {what}: {str(now)[:12]}, was {str(before)[:12]}"
        for what, (before, now) in facts.items()
        if before != now
    ]


def _refuse_occupied(root: Path) -> None:
    """Before anything is loaded; the writer checks again when it takes the directory."""
    if RunLayout(root).manifest.exists():
        raise InputError(
            f"the directory {root} holds a run",
            hint=f"go on with it with `weft train --resume {root}`, or choose another --run-dir",
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
