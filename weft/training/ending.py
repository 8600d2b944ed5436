"""What a run ends with: adapters, their evaluation, checks, or why it could not go on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weft.core.errors import CheckFailed, NumericError
from weft.core.files import sha256_file
from weft.engines.local import LocalEngine
from weft.engines.ranks import ALONE
from weft.engines.reward import Reward
from weft.formats.peft import TENSORS, write_adapter
from weft.runs.layout import RunLayout
from weft.runs.reader import COMPLETIONS, RunReader
from weft.runs.writer import RunWriter
from weft.training.completions import completions, with_kl
from weft.training.exactness import CERTIFICATE, certify, refuse_inexact
from weft.training.job import Job
from weft.training.state import Best, State
from weft.training.step import validate


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    root: Path
    finished: bool
    step: int
    steps: int
    results: dict[str, dict[str, Any]]  # by member; empty without validation rows
    before: dict[str, dict[str, float]]  # by member: loss and accuracy before the first step
    error: NumericError | None = None  # why it could not go on


def end(job: Job, state: State, writer: RunWriter, error: NumericError | None = None) -> Outcome:
    """Finish a run that has come to its end, or record why it has not."""
    root = writer.layout.root
    if error is not None:
        return failed(job, state.step, writer, error)
    if state.step < job.steps:
        writer.finish("interrupted")
        return Outcome(root, False, state.step, job.steps, {}, {})
    if job.ranks.rank > 0:  # the first process ends the run for all, alone
        return Outcome(root, True, state.step, job.steps, {}, {})
    job = replace(job, ranks=ALONE)
    try:
        with job.clock("writing results"):
            results = _keep(job, state, writer)
            _certify(job, state, writer)
    except NumericError as found:  # those beside it may be sound
        return failed(job, state.step, writer, found)
    _check_base(job, writer)
    writer.finish("finished")
    return Outcome(root, True, state.step, job.steps, results, _before(writer.layout, results))


def failed(job: Job, step: int, writer: RunWriter, error: NumericError) -> Outcome:
    """Record that a run cannot go on."""
    with suppress(NumericError), writer:
        raise error
    return Outcome(writer.layout.root, False, step, job.steps, {}, {}, error)


def finished(root: Path) -> Outcome:
    """What a finished run came to, from its files."""
    reader = RunReader(root)
    steps = max((record["step"] for record in reader.steps()), default=0)
    names = [name for name in reader.result_names() if name == "eval" or name.startswith("eval-")]
    results = {name.removeprefix("eval-"): reader.results(name) for name in names}
    results = {"adapter" if name == "eval" else name: found for name, found in results.items()}
    return Outcome(root, True, steps, steps, results, _before(RunLayout(root), results))


def _keep(job: Job, state: State, writer: RunWriter) -> dict[str, dict[str, Any]]:
    """Write each lane's adapters, and evaluate the ones that are kept."""
    best = job.config.keep == "best"
    kept, last = _kept(job, state), _last(state)
    digest = hashlib.sha256()
    for index, lane in enumerate(job.lanes):
        place = member_layout(writer.layout, job, lane.name)
        _write(job, state.stacks[index], kept[index], place.adapter)
        if best:
            _write(job, state.stacks[index], last[index], place.adapter_last)
        digest.update(sha256_file(place.adapter / TENSORS).encode())
    writer.fingerprint("outcome", digest.hexdigest())
    if "valid" not in job.splits:
        return {}
    stacks = [s[: its.commits] for s, its in zip(state.stacks, kept, strict=True)]
    theta_LP = torch.stack([its.theta_P for its in kept])
    with job.clock("final evaluation"):
        evaluation = validate(job, stacks, theta_LP, task_metric=True)
        if isinstance(job.objective, Reward):
            adapters = dict(zip(job.names, map(job.adapter, stacks, theta_LP), strict=True))
            split = job.splits["valid"]
            evaluation = with_kl(evaluation, LocalEngine(job.base), adapters, split)
            writer.result(COMPLETIONS, completions(evaluation, split))
    writer.table("valid", evaluation.table)
    writer.table(job.objective.hits, evaluation.hits)
    for name, its in evaluation.parts.items():
        writer.table(name, its)
    results = {}
    for index, lane in enumerate(job.lanes):
        found = {"kept": job.config.keep, "step": kept[index].step}
        if job.config.boost is not None:
            found["commits"] = kept[index].commits
        results[lane.name] = evaluation.record(lane.name) | found
        name = "eval" if len(job.lanes) == 1 else f"eval-{lane.name}"
        writer.result(name, results[lane.name])
    return results


def _kept(job: Job, state: State) -> Sequence[Best]:
    """What each lane ends with."""
    return state.best if job.config.keep == "best" else _last(state)


def _last(state: State) -> list[Best]:
    """Each lane after the last step."""
    return [
        Best(theta_P, 0.0, state.step, len(stack_KP))
        for theta_P, stack_KP in zip(state.theta_LP, state.stacks, strict=True)
    ]


def _certify(job: Job, state: State, writer: RunWriter) -> None:
    """Of a boosted run: the files are the function that was trained."""
    if job.config.boost is None:
        return
    kept = _kept(job, state)
    stacks = [s[: its.commits] for s, its in zip(state.stacks, kept, strict=True)]
    theta_LP = torch.stack([its.theta_P for its in kept])
    paths = {name: member_layout(writer.layout, job, name).adapter for name in job.names}
    found = certify(job, stacks, theta_LP, paths)
    writer.result(CERTIFICATE, found)
    refuse_inexact(found)


def member_layout(run: RunLayout, job: Job, name: str) -> RunLayout:
    """Where a lane's adapters are: in the run itself when it is the only one."""
    return run if len(job.lanes) == 1 else run.member(name)


def _write(job: Job, stack_KP: torch.Tensor, its: Best, directory: Path) -> None:
    write_adapter(
        job.adapter(stack_KP[: its.commits], its.theta_P),
        directory,
        base_ref=job.config.base,
        dropout=job.config.adapter.dropout,
        sites=job.base.sites,
    )


def _before(run: RunLayout, results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What each lane scored before the first step: what the base does, since B is zero."""
    reader = RunReader(run.root)
    scored = {member: reader.before_and_after(member) for member in results}
    return {
        member: {name: before.mean for name, (before, _) in found.items()}
        for member, found in scored.items()
        # `eval.rows` scored other rows while training: not to be put side by side
        if found and len(found["loss"][0].ids) == results[member]["num_examples"]
    }


def _check_base(job: Job, writer: RunWriter) -> None:
    with job.clock("hashing the base"):
        before, after = writer.manifest.fingerprints["base"], job.base.fingerprint()
    writer.event("base checked", unchanged=before == after)
    if before != after:
        raise CheckFailed(
            f"the base's weights changed during the run: sha256 {before[:12]} became {after[:12]}",
            hint="this is a bug in Weft; the adapter was trained on a moving base",
        )
