"""What a run records of itself when it starts, and what must still be so when it goes on."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from weft.core.errors import InputError
from weft.engines.config import LocalConfig
from weft.engines.local import LocalEngine
from weft.engines.reward import Reward
from weft.model.products import arithmetic
from weft.model.sites import layers_notice
from weft.runs.manifest import Manifest
from weft.runs.provenance import code_state, hardware, versions
from weft.training.block import configuration_block, noise_words
from weft.training.job import Job


def manifest_of(job: Job, theta_LP: torch.Tensor, name: str) -> Manifest:
    """The manifest of a run that is about to start from `theta_LP`."""
    resolved, splits = job.resolved, job.splits
    config = resolved.config.model_dump(mode="json")
    block = configuration_block(resolved, job.layout, splits)
    if job.noise is not None:
        block["noise"] = noise_words(job.magnitudes, job.noise.values())
    return Manifest(
        name=name,
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        config=config,
        origins=resolved.origins,
        block=block,
        fingerprints={
            "config": _sha256(json.dumps(config, sort_keys=True).encode()),
            "code": code_state().sha256,
            "base": job.base.fingerprint(),
            **{f"rows.{name}": split.rows_fingerprint for name, split in splits.items()},
            **{f"tokens.{name}": split.fingerprint for name, split in splits.items()},
            **reward_print(job),
            "initial_adapter": _sha256(theta_LP.cpu().contiguous().numpy().tobytes()),
        },
        versions=versions(),
        hardware=hardware() | _torch_facts(job),
        data={name: dict(split.counts) for name, split in splits.items()},
        sites={
            slot.site.name: {"rank": slot.rank, "scale": slot.scale} for slot in job.layout.slots
        },
        notices=tuple(dict.fromkeys(notices(job))),
    )


def reward_print(job: Job) -> dict[str, str]:
    """Who grades, where somebody does."""
    if not isinstance(job.objective, Reward):
        return {}
    return {"reward": _sha256(json.dumps(job.objective.grader.record(), sort_keys=True).encode())}


def notices(job: Job) -> Sequence[str]:
    """What the user should know before the first step."""
    found = [*job.resolved.notices, *job.notices]
    if job.trigger is not None and job.trigger.ignored is not None:
        found.append(job.trigger.ignored)
    found += [notice for split in job.splits.values() for notice in split.notices]
    found += memory_notices(job)
    layers = layers_notice(job.base.sites, job.config.adapter)
    return found + [notice for notice in (layers, job.base.notice) if notice]


def memory_notices(job: Job) -> list[str]:
    """What the local engine has to say of its memory before it makes texts to be graded."""
    objective, engine = job.objective, job.config.engine
    if not isinstance(objective, Reward) or not isinstance(engine, LocalConfig):
        return []
    goals = [item.example.goal for split in job.splits.values() for item in split.items]
    lengths = [len(goal.prompt_T) for goal in goals if goal is not None]
    local = LocalEngine(job.base, kv_memory_mib=engine.kv_memory_mib)
    return local.notices(lengths, objective.decoding.max_tokens)


def _torch_facts(job: Job) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "torch_threads": torch.get_num_threads(),  # of each process
        "processes": job.ranks.size,
        "base_products": arithmetic(job.base.head[0]),
    }
    if job.base.device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(job.base.device)
    return facts


def refuse_changed(manifest: Manifest, job: Job) -> None:
    """A resumed run must go on with the same weights and the same tokens."""
    with job.clock("hashing the base"):
        now = {"base": job.base.fingerprint()}
    now |= {f"tokens.{name}": split.fingerprint for name, split in job.splits.items()}
    changed = [stage for stage, digest in now.items() if manifest.fingerprints[stage] != digest]
    if changed:
        raise InputError(
            f"this run cannot be resumed: {', '.join(changed)} differ from when it started",
            hint="put the old files back, or start a new run",
        )


def changes(manifest: Manifest, job: Job) -> list[str]:
    """What is not as it was when the run started, so that the rest may not be bit for bit."""
    facts = {
        "reward": (manifest.fingerprints.get("reward"), reward_print(job).get("reward")),
        "state of the code of Weft": (manifest.fingerprints.get("code"), code_state().sha256),
        "version of torch": (manifest.versions.get("torch"), versions().get("torch")),
        "version of transformers": (
            manifest.versions.get("transformers"),
            versions().get("transformers"),
        ),
        "processor": (manifest.hardware.get("cpu"), hardware()["cpu"]),
        "number of threads": (
            manifest.hardware.get("torch_threads"),
            _torch_facts(job)["torch_threads"],
        ),
        "number of processes": (manifest.hardware.get("processes", 1), job.ranks.size),
    }
    return [
        f"resumed with another {what}: {str(now)[:12]}, was {str(before)[:12]}"
        for what, (before, now) in facts.items()
        if before != now
    ]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
