"""Steps of optimisers: what they were computed from, how they are set, and what they did.

Any optimiser of PyTorch is seen, also within Trainers: its hooks are global, and so is what
`backward` and clipping go through.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weft.core.batch import IGNORE
from weft.diagnose.record.loops import unpadded
from weft.diagnose.record.patching import Undo, replace, together, when_imported
from weft.diagnose.record.recorder import Ending, PassSeen, Recorder, StepTaken
from weft.diagnose.record.seeds import random_digest
from weft.runs.evidence import Settings, TrainStep
from weft.runs.sketch import batch_digest, labels_digest

LARGEST = 2**24
"""Parameters that are trained, up to which the norm of their change is taken: it needs a copy."""

MOST = 4096
"""Passes of one step that are remembered."""

TOLD = {
    "lr", "betas", "eps", "weight_decay", "momentum", "dampening", "nesterov", "amsgrad",
    "maximize", "alpha", "rho", "lambd",
}  # fmt: skip
"""What of an optimiser's groups is a setting; the rest says how it is computed."""


@dataclass(eq=False)
class _Fed:
    """A pass since the last step."""

    index: int
    model: str
    sure: int  # 2: it trained; 1: gradients were on; 0: an evaluation
    rows: list[list[int]]  # B, without padding
    mask: Any
    labels: list[list[int]] | None = None
    loss: float | None = None
    by_hand: bool = False  # the script gave its labels to a loss of its own


@dataclass(eq=False)
class _Coming:
    """What is known of a step before it is taken."""

    parts: Any
    random: str | None
    where: str | None
    lr: tuple[float, ...]
    grad_norm: float
    grad_norms: dict[str, float]
    before: list[Any] | None


@dataclass(eq=False)
class _Since:
    """What has happened since the last step."""

    fed: list[_Fed] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)
    clipped: tuple[float, float] | None = None  # limit, and norm before
    coming: _Coming | None = None


class _Tap:
    def __init__(self, recorder: Recorder) -> None:
        from weft.diagnose.record.between import Between

        self.recorder = recorder
        self.since = _Since()
        self.between = Between(recorder)
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()
        self.models: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

    def passed(self, seen: PassSeen) -> None:
        if seen.ids is None or seen.ids.ndim != 2:
            return
        fed = _Fed(
            seen.event.index,
            seen.event.model,
            2 if seen.event.phase == "train" else int(seen.event.grad),
            unpadded(seen.ids, seen.mask),
            seen.mask,
            None if seen.labels is None else unpadded(seen.labels, seen.mask),
            seen.event.loss,
        )
        before = self.since.fed[1 - MOST :]
        if not fed.sure:  # needed if nothing else comes before the step
            before = [each for each in before if each.sure]
        self.since.fed = [*before, fed]

    def optimiser(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Passes with gradients are training from when there is an optimiser."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            self.recorder.optimising |= self.recorder.watching

        return __init__

    def backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(*args: Any, **kwargs: Any) -> Any:
            if self.recorder.watching:
                with self.recorder.aside():
                    given: Any = args[0] if args else kwargs["tensors"]
                    first = given[0] if isinstance(given, list | tuple) else given
                    if first.ndim == 0:
                        self.since.losses.append(first.detach())
                        del self.since.losses[:-MOST]
            return original(*args, **kwargs)

        return backward

    def cross_entropy(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Labels that a script gives to the loss itself, not to the model."""

        def cross_entropy(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            if sys.modules["torch"].compiler.is_compiling() or not self.recorder.watching:
                return made
            if self.since.fed and self.since.fed[-1].labels is None:
                with self.recorder.aside():
                    target = args[1] if len(args) > 1 else kwargs["target"]
                    ignore = args[4] if len(args) > 4 else kwargs.get("ignore_index", IGNORE)
                    fed = self.since.fed[-1]
                    fed.labels, fed.by_hand = _labels(target, ignore, fed), True
            return made

        return cross_entropy

    def clip(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _clip_grads_with_norm_(
            parameters: Any, max_norm: float, total_norm: Any, *args: Any, **kwargs: Any
        ) -> Any:
            if self.recorder.watching:
                with self.recorder.aside():
                    self.since.clipped = float(max_norm), float(total_norm)
            return original(parameters, max_norm, total_norm, *args, **kwargs)

        return _clip_grads_with_norm_

    def coming(self, optimiser: Any, args: Any, kwargs: Any) -> None:
        """Look before a step."""
        if not self.recorder.watching:
            return
        with self.recorder.aside():
            from weft.diagnose.record.fingerprints import Parts, norm_of

            model = self._model(optimiser)
            root = self.recorder.models.root(model) if model else None
            if root is None:
                self.recorder.notice("an optimiser of something else than a language model stepped")
                return
            parts = Parts.of(root)
            self.between.look(model, parts)
            trained = _trained(optimiser)
            step = self.recorder.steps + 1
            detailed = step <= 4 or step & (step - 1) == 0
            self.since.coming = _Coming(
                parts=parts,
                random=random_digest(),
                where=self.recorder.where(),
                lr=tuple(float(group["lr"]) for group in optimiser.param_groups if "lr" in group),
                grad_norm=norm_of([each.grad for each in trained if each.grad is not None]),
                grad_norms=_grad_norms(parts) if detailed else {},
                before=[each.detach().clone() for each in trained] if _fits(trained) else None,
            )
            if optimiser not in self.known:
                self.known.add(optimiser)
                self._first(optimiser, len(trained))

    def stepped(self, optimiser: Any, args: Any, kwargs: Any) -> None:
        """Look after a step."""
        if not self.recorder.watching:
            return
        with self.recorder.aside():
            since, self.since = self.since, _Since()
            if since.coming is None:
                return
            model = self._model(optimiser)
            root = self.recorder.models.root(model)
            if root is None:
                return
            self.recorder.steps += 1
            self._emit(model, root, since, since.coming, _trained(optimiser))
            self.recorder.tell(StepTaken(self.recorder.steps, model))

    def end(self, _: Ending) -> None:
        """Say what was not seen."""
        if self.since.losses and not self.recorder.steps:
            text = "`backward` was called and no optimiser of PyTorch stepped: steps by hand"
            self.recorder.notice(f"{text} are not seen")

    def _emit(
        self, model: str, root: Any, since: _Since, coming: _Coming, trained: list[Any]
    ) -> None:
        from weft.diagnose.record.fingerprints import Points, digest_of, norm_of

        parts = coming.parts
        base = Points.of(parts.base)
        fed = _surest([each for each in since.fed if each.model == model])
        rows = [row for each in fed for row in each.rows]
        losses = [float(loss) for loss in since.losses]
        losses = losses or [each.loss for each in fed if each.loss is not None]
        labelled = [each for each in fed if each.labels is not None]
        labels = [row for each in labelled for row in each.labels or []]
        moved = None
        if coming.before is not None:
            changes = [now.detach() - old for now, old in zip(trained, coming.before, strict=True)]
            moved = norm_of(changes)
        records = [self.recorder.data.record_of(row) for row in rows]
        targets = {f"targets {each.index}": _even(each.labels) for each in fed if each.by_hand}
        self.recorder.emit(
            TrainStep(
                step=self.recorder.steps,
                model=model,
                passes=tuple(each.index for each in fed),
                loss=sum(losses) / len(losses) if losses else None,
                losses=tuple(losses),
                supervised=sum(_count(row) for row in labels) if labelled else None,
                batch=batch_digest(rows),
                rows=tuple(records) if any(records) else (),
                labels=labels_digest([row for each in labelled for row in each.rows], labels)
                if labelled
                else "",
                targets={name.partition(" ")[2]: name for name in targets},
                lr=coming.lr,
                grad_norm=since.clipped[1] if since.clipped else coming.grad_norm,
                grad_norms=coming.grad_norms,
                update_norm=moved,
                adapter=digest_of(parts.factors) if parts.factors else "",
                adapter_norm=norm_of(list(parts.factors.values())) if parts.factors else None,
                base=base.digest,
                random=coming.random,
                where=coming.where,
            ),
            targets,
        )
        self.between.settled(model, root, parts, base)

    def _first(self, optimiser: Any, tensors: int) -> None:
        """Write down how an optimiser is set when it first steps."""
        groups = optimiser.param_groups
        values: dict[str, Any] = {
            "optimiser.name": type(optimiser).__name__.lower(),
            "optimiser.groups": len(groups),
            "optimiser.tensors": tensors,
            "optimiser.clip": self.since.clipped[0] if self.since.clipped else None,
        }
        for key in sorted({key for group in groups for key in group} & TOLD):
            found = [
                group.get("initial_lr", group[key]) if key == "lr" else group[key]
                for group in groups
                if key in group
            ]
            plain = [_plain(each) for each in found]
            same = all(each == plain[0] for each in plain)
            values[f"optimiser.{key}"] = plain[0] if same else plain
        fed = _surest(self.since.fed)
        if fed:
            values["batch_size"] = sum(len(each.rows) for each in fed)
            values["micro_batch_size"] = len(fed[0].rows)
        origins = dict.fromkeys(values, "seen")
        self.recorder.emit(Settings(values=values, origins=origins, where=self.recorder.where()))

    def _model(self, optimiser: Any) -> str:
        """The model that an optimiser trains; empty: none that was ever called."""
        if optimiser not in self.models:
            held = {id(each) for group in optimiser.param_groups for each in group["params"]}
            for name, root in self.recorder.models.live().items():
                if any(id(each) in held for each in root.parameters()):
                    self.models[optimiser] = name
        return self.models.get(optimiser, "")


def _surest(fed: list[_Fed]) -> list[_Fed]:
    """The passes of a step: those that trained, if any did."""
    most = max((each.sure for each in fed), default=0)
    return [each for each in fed if each.sure == most]


def _trained(optimiser: Any) -> list[Any]:
    return [
        each for group in optimiser.param_groups for each in group["params"] if each.requires_grad
    ]


def _fits(tensors: Iterable[Any]) -> bool:
    return sum(each.numel() for each in tensors) <= LARGEST


def _grad_norms(parts: Any) -> dict[str, float]:
    """Of each factor of an adapter, and of each other tensor that has a gradient."""
    return {
        name: float(tensor.grad.detach().float().norm())
        for name, tensor in {**parts.factors, **parts.base}.items()
        if tensor.grad is not None
    }


def _count(labels: list[int]) -> int:
    """Supervised tokens of a row; nothing comes before the first position to predict it."""
    return sum(label != IGNORE for label in labels[1:])


def _labels(target: Any, ignore: int, fed: _Fed) -> list[list[int]] | None:
    """Targets of a loss as labels of a pass, each at its own position; None if they are not.

    What a loss is given is shifted already: all positions but the first, or one after another for
    all positions, the last of which has nothing to predict.
    """
    import torch

    count = len(fed.rows)
    if target.is_floating_point() or target.numel() % count:
        return None
    grid = target.detach().reshape(count, -1)
    masked = fed.mask is not None and fed.mask.ndim == 2
    width = fed.mask.shape[-1] if masked else max(map(len, fed.rows))
    if grid.shape[1] not in (width - 1, width):
        return None
    grid = grid[:, : width - 1].masked_fill(grid[:, : width - 1] == ignore, IGNORE)
    labels = torch.cat([grid.new_full((count, 1), IGNORE), grid], dim=1)
    return unpadded(labels, fed.mask)


def _even(labels: list[list[int]] | None) -> np.ndarray:
    """Labels [B, T] of rows without padding, filled up on the right."""
    rows = labels or []
    width = max(map(len, rows), default=0)
    return np.array([row + [IGNORE] * (width - len(row)) for row in rows], np.int64)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value


def install(recorder: Recorder) -> Undo:
    """Look at optimisers, `backward`, clipping, and losses that get their labels by hand."""
    tap = _Tap(recorder)
    recorder.listen(PassSeen, tap.passed)
    recorder.listen(Ending, tap.end)
    undos: list[Undo] = []

    def imported(torch: Any) -> None:
        from torch.nn.utils import clip_grad
        from torch.optim import optimizer

        undos.append(replace(torch.optim.Optimizer, "__init__", tap.optimiser))
        undos.append(replace(torch.autograd, "backward", tap.backward))
        undos.append(replace(torch.nn.functional, "cross_entropy", tap.cross_entropy))
        undos.append(replace(clip_grad, "_clip_grads_with_norm_", tap.clip))
        undos.append(optimizer.register_optimizer_step_pre_hook(tap.coming).remove)
        undos.append(optimizer.register_optimizer_step_post_hook(tap.stepped).remove)

    undos.append(when_imported("torch", imported))
    return together(undos)
