"""What a run records of itself besides its steps, so that it can be compared with another.

Only what stands nowhere else: tokens, labels and nats of the first steps, the base by tensor,
the adapter at the start and after steps 1, 2, 4, 8, ..., and how far the first loss moves when
nothing that matters does. The rest is in the manifest, steps.jsonl and evidence.jsonl.

Shapes: L lanes, P parameters of one adapter, B rows, T positions, D draws of a null, Q numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from weft.core.batch import IGNORE, Batch, Example
from weft.core.keys import Key
from weft.data.config import DataConfig
from weft.data.slots import Slots
from weft.data.sources import find_sources
from weft.data.split import Item
from weft.data.tokenizer import resolve_base, tokenizer_seen
from weft.engines.reward import Reward
from weft.engines.scorer import LocalScorer
from weft.methods.estimate import Point, Scorer
from weft.model.adapter import Adapter, Layout
from weft.model.base import Base
from weft.model.finite import first_broken
from weft.model.probing import embeddings_moved, seen_scales
from weft.model.seen import config_seen, sketch, tensor_seen, tied
from weft.runs.adapters import module_seen
from weft.runs.evidence import (
    AdapterModule,
    Check,
    Encoded,
    Notice,
    Pass,
    Snapshot,
    TrainStep,
    Weights,
)
from weft.runs.sketch import batch_digest, digest, labels_digest
from weft.runs.writer import RunWriter
from weft.training.ground import Ground
from weft.training.job import Job
from weft.training.state import State
from weft.training.watching import PASSES, Watched, print_of

MODEL = "model-0"
"""The base, and the only adapter of a run; those of a run with several go by their names."""

TEXTS = 32
"""Texts of these rows that are kept."""

DRAWS = 3
"""Of the null that moves the embeddings."""

ROWS = 4
"""At most so many rows are read by the nulls."""

MEASURED = ("the loss", "the norm of the gradient")

READ = 2**16
"""At most so many numbers of an adapter go into the digest of a step."""


def begin(job: Job, state: State, writer: RunWriter) -> None:
    """Before the first step: all but passes."""
    with job.clock("recording"):
        writer.record(tokenizer_seen(job.base.tokenizer))
        for text in texts(job):
            writer.record(text)
        names = [slot.site.name for slot in job.layout.slots if slot.site.kind != "router"]
        writer.record(*weights_of(job.base, names))
        snapshots(job, state, writer)
        for check in checks(job, state):
            writer.record(check)


def go_on(state: State, writer: RunWriter) -> None:
    """A run that goes on from a checkpoint and has no recording says so in one."""
    if not writer.records:
        writer.record(Notice(text=f"nothing was recorded before step {state.step + 1}"))


def follow(
    job: Job,
    writer: RunWriter,
    point: Point,
    direction_LP: torch.Tensor,
    state: State,
    watched: Watched,
) -> None:
    """After a step, where that is due: the rows that it read, its direction, and the adapters."""
    if state.step <= PASSES:
        for lane, batch in zip(job.names, point.batches, strict=True):
            rows, model = job.objective.rows(batch), _model(job, lane)
            writer.record(*_pass(job, model, state.step, rows, watched))
    if state.step & (state.step - 1) == 0:
        base = print_of(job.base)
        for lane, direction_P in zip(job.names, direction_LP, strict=True):
            norms = _norms(job.layout, direction_P)
            writer.record(
                TrainStep(
                    step=state.step,
                    model=_model(job, lane),
                    grad_norms=norms,
                    base=base,
                    base_before=watched.base,
                )
            )
        snapshots(job, state, writer)


def broke(job: Job, writer: RunWriter, point: Point, state: State) -> None:
    """Of a step that cannot be taken: the rows that it read, where they are first not finite."""
    if isinstance(job.objective, Reward):
        return
    with first_broken(job.base.model) as found:
        for ground in job.grounds(state.stacks):
            part = point.part(ground.start, ground.stop)
            job.scorer(ground).losses(part.theta_LP[:, None], part.batches)
    if found.module is None:  # it is the gradient, or the update
        return
    update = {"nonfinite": found.module, "largest": found.largest}
    for lane, batch in zip(job.names, point.batches, strict=True):
        rows, model = job.objective.rows(batch), _model(job, lane)
        seen, arrays = _pass(job, model, state.step + 1, rows, Watched())
        writer.record(seen.model_copy(update=update), arrays)


def _norms(layout: Layout, direction_P: torch.Tensor) -> dict[str, float]:
    """By factor: `model.layers.0.mlp.up_proj.A`."""
    factors = layout.factors(direction_P.detach().cpu())
    return {
        f"{name}.{letter}": float(factor.norm())
        for name, pair in factors.items()
        for letter, factor in zip("AB", pair, strict=True)
    }


def prints(batch: Batch, theta_P: torch.Tensor) -> dict[str, str]:
    """Fingerprints of a step for its record: rows in any order, labels, and the adapter after it.

    Of a large adapter every k-th number is read.
    """
    ids = [example.ids_T for example in batch.examples]
    labels = [example.labels_T for example in batch.examples]
    some_P = theta_P[:: max(1, len(theta_P) // READ)]
    return {
        "batch": batch_digest(ids),
        "labels": labels_digest(ids, labels),
        "adapter": digest(some_P.detach().cpu().numpy()),
    }


def texts(job: Job) -> Iterator[Encoded]:
    """The rows of the first steps as text and ids, with the records that they are."""
    split, config = job.splits["train"], job.config
    items = {item.example.id: item for item in split.items}
    keys = [Key.of(lane.seed) for lane in job.lanes]
    rows: dict[str, Item] = {}
    for step in range(min(PASSES, job.steps)):
        for key in keys:
            batch = config.method.batch(split.examples, step, config.batch_size, key)
            rows |= {name: items[name] for name in batch.ids}
    templated = config.data.chat or split.task.format.name == "messages"
    for name, item in list(rows.items())[:TEXTS]:
        yield encoded(item, record_of(name, config.data), templated=templated)


def encoded(item: Item, record: str, *, templated: bool) -> Encoded:
    """A row of data as text and ids, and where its fields stand in it."""
    text = item.prompt + item.reference
    slots = Slots()
    slots.add([(record, item.row)])
    return Encoded(
        text=text,
        ids=tuple(item.example.ids_T.tolist()),
        full_length=item.full_length,
        truncation_side=None if item.full_length is None else "right",
        templated=templated,
        slots=slots.find(text),
    )


def record_of(example: str, data: DataConfig) -> str:
    """The file and line of an example (`train:17`), as scripts' data is called, too."""
    origin, _, line = example.rpartition(":")
    path = find_sources(data)[origin].resolve()
    here = Path.cwd()
    name = path.relative_to(here) if path.is_relative_to(here) else Path(*path.parts[-2:])
    return f"{name.as_posix()}:{line}"


def weights_of(base: Base, names: Sequence[str]) -> tuple[Weights, dict[str, np.ndarray]]:
    """The base tensor by tensor, and sketches of the layers that are named."""
    tensors = base.model.state_dict()
    arrays = {name: sketch(_matrix(base, name)).cpu().numpy() for name in names}
    seen = Weights(
        model=MODEL,
        name=base.ref,
        load=resolve_base(base.ref),
        architecture=type(base.model).__name__,
        dtype=_short(base.dtype),
        attention=str(getattr(base.model.config, "_attn_implementation", "")),
        config=config_seen(base.model.config),
        tensors={name: tensor_seen(tensor) for name, tensor in tensors.items()},
        tied=tied(tensors),
        sketches={name: name for name in names},
    )
    return seen, arrays


def _matrix(base: Base, name: str) -> torch.Tensor:
    weight: torch.Tensor = base.model.get_submodule(name).weight
    return weight.T if base.sites[name].kind == "conv1d" else weight


def snapshots(job: Job, state: State, writer: RunWriter) -> None:
    """Each lane's adapter as it is: what it has committed, and its current round."""
    for lane, stack_KP, theta_P in zip(job.names, state.stacks, state.theta_LP, strict=True):
        adapter = job.adapter(stack_KP, theta_P)
        seen, arrays = snapshot_of(job.base, adapter, job.config.adapter.dropout)
        when = {"when": "step" if state.step else "use", "step": state.step}
        writer.record(seen.model_copy(update=when | {"model": _model(job, lane)}), arrays)


def snapshot_of(
    base: Base, adapter: Adapter, dropout: float = 0.0
) -> tuple[Snapshot, dict[str, np.ndarray]]:
    """An adapter over a base: its factors, and by what its forward really multiplies them."""
    measured = seen_scales(base, adapter)
    modules: dict[str, AdapterModule] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, factors in adapter.sites.items():
        a_rI, b_Or = (factor.detach().cpu().numpy() for factor in factors)
        slot = adapter.layout.by_name[name]
        scale, unexplained = measured.get(name, (None, None))
        modules[name] = module_seen(
            a_rI,
            b_Or,
            slot.scale,
            name,
            alpha=slot.scale * slot.rank,
            dropout=dropout,
            seen_scale=scale,
            unexplained=unexplained,
        )
        arrays |= {f"{name}.a": a_rI, f"{name}.b": b_Or}
    counts = {"adapter": adapter.layout.size, "base": 0}
    counts["total"] = counts["adapter"] + sum(p.numel() for p in base.model.parameters())
    return Snapshot(
        model=MODEL, when="use", style="weft", modules=modules, trainable=counts
    ), arrays


def _pass(
    job: Job, model: str, step: int, batch: Batch, watched: Watched
) -> tuple[Pass, dict[str, np.ndarray]]:
    """What a step read, padded on the right."""
    rows = batch.examples
    length = max(len(example.ids_T) for example in rows)
    ids_BT = np.full((len(rows), length), job.base.pad_id, np.int64)
    labels_BT = np.full((len(rows), length), IGNORE, np.int64)
    mask_BT = np.zeros((len(rows), length), np.int64)
    for row, example in enumerate(rows):
        ids_BT[row, : example.tokens] = example.ids_T
        labels_BT[row, : example.tokens] = example.labels_T
        mask_BT[row, : example.tokens] = 1
    arrays = {"ids": ids_BT, "mask": mask_BT, "labels": labels_BT}
    if (positions_BT := _positions(rows, length, watched)) is not None:
        arrays["positions"] = positions_BT
    if (nats_B := _nats(job, rows, watched)) is not None:
        arrays["row_nll"] = nats_B
    dropout = job.config.adapter.dropout
    seen = Pass(
        model=model,
        index=step - 1,
        phase="train",
        rows=len(rows),
        length=length,
        training=job.config.base_dropout,
        dropouts=len(job.layout.slots) if dropout else 0,
        grad=job.config.method.name == "backprop",
        dtype=_short(job.base.dtype),
        ids_digest=batch_digest([example.ids_T for example in rows]),
        ids="ids",
        mask="mask",
        labels="labels",
        positions=None if positions_BT is None else "positions",
        row_nll=None if nats_B is None else "row_nll",
    )
    return seen, arrays


def _positions(rows: Sequence[Example], length: int, watched: Watched) -> np.ndarray | None:
    """Of each row [B, T]; what no forward reads counts on. None where one row was not seen."""
    found = []
    for example in rows:
        at_n = watched.applied.get(tuple(example.ids_T[: example.read].tolist()))
        if at_n is None or not len(at_n):
            return None
        found.append(np.append(at_n, at_n[-1] + 1 + np.arange(length - len(at_n))))
    return np.stack(found) if found else None


def _nats(job: Job, rows: Sequence[Example], watched: Watched) -> np.ndarray | None:
    """Of each row [B], by the one adapter that trains; None where that is not what is minimised."""
    seen = [watched.nats.get(tuple(example.ids_T.tolist())) for example in rows]
    if len(job.lanes) > 1 or job.objective.hits != "token_accuracy" or None in seen:
        return None
    return np.array(seen, np.float64)


def checks(job: Job, state: State) -> Iterator[Check | Notice]:
    """How far the first loss and its gradient move when nothing that matters does."""
    if isinstance(job.objective, Reward):
        yield Notice(text="the noise of a reward was not measured: completions are drawn")
        return
    point = job.point(state)
    few = replace(point, batches=[Batch(batch.examples[:ROWS]) for batch in point.batches])
    for ground in job.grounds(state.stacks):
        lanes = job.names[ground.start : ground.stop]
        for name, change_DQL in _nulls(job, ground, few.part(ground.start, ground.stop)):
            for what, change_DL in zip(MEASURED, change_DQL.swapaxes(0, 1), strict=False):
                for lane, change_D in zip(lanes, change_DL.T, strict=True):
                    yield Check(
                        name=name,
                        model=_model(job, lane),
                        unit="relative",
                        values=tuple(change_D.tolist()),
                        words=f"{what} on the first rows of step 1",
                    )


def _nulls(
    job: Job, ground: Ground, point: Point
) -> Iterator[tuple[Literal["repeat", "ulp", "split"], np.ndarray]]:
    """Relative changes [D, Q, L] of what is measured: D draws of a null, Q numbers."""
    scorer = job.scorer(ground)
    start_QL = _measured(job, scorer, point)
    moved = []
    for draw in range(DRAWS):
        with embeddings_moved(ground.base, Key.of(0).fold("null", draw)):
            moved.append(_measured(job, scorer, point))
    again_QL = _measured(job, scorer, point)
    yield "repeat", _relative(again_QL[None], start_QL)
    yield "ulp", _relative(np.stack(moved), start_QL)
    if isinstance(scorer, LocalScorer) and min(len(b.examples) for b in point.batches) > 1:
        other = 1 if scorer.rows_per_forward == ROWS // 2 else ROWS // 2
        split_QL = _measured(job, replace(scorer, rows_per_forward=other), point)
        yield "split", _relative(split_QL[None], start_QL)


@np.errstate(invalid="ignore", over="ignore")  # what is not finite stops the first step, in words
def _relative(other_DQL: np.ndarray, start_QL: np.ndarray) -> np.ndarray:
    size_QL = np.maximum(np.abs(start_QL), np.finfo(np.float32).tiny)
    return np.asarray(np.abs(other_DQL - start_QL) / size_QL)


def _measured(job: Job, scorer: Scorer, point: Point) -> np.ndarray:
    """Each lane's loss and, where the method has one, the norm of its gradient: [Q, L]."""
    if job.config.method.name != "backprop":
        return scorer.losses(point.theta_LP[:, None], point.batches).T
    found = scorer.gradient(point.theta_LP, point.batches, point.keys)
    return np.array([found.loss_L, found.gradient_LP.norm(dim=1).tolist()])


def _model(job: Job, lane: str) -> str:
    return MODEL if len(job.lanes) == 1 else lane


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
