"""Recorded training steps, taken again by a replica on a plain PyTorch loop.

Shapes: B rows, T positions, V vocabulary, R ranks, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from weft.core.keys import Key
from weft.diagnose.proof.forward import Engine, Unspliced, nudged, woven
from weft.diagnose.proof.replica import (
    BaseValue,
    Course,
    Lesson,
    Micro,
    Normaliser,
    Optimiser,
    Update,
    Updates,
)

Term = tuple[float, torch.Tensor, torch.Tensor]
"""s, B [O, R], A [R, I] in float64: a part of what was learned at a module."""


@dataclass(frozen=True, eq=False)
class Learned:
    """What K steps came to."""

    losses: tuple[tuple[float, ...], ...]  # by step, what each micro-batch added
    updates: Updates  # the adapter after them
    terms: Mapping[str, tuple[Term, ...]]  # all that was learned, with what went into the weights
    base: Mapping[str, torch.Tensor] = field(default_factory=dict)  # change of trained weights
    parts: tuple[tuple[tuple[float, int], ...], ...] = ()  # sum and count of each micro-batch
    reached: Mapping[int, Updates] = field(default_factory=dict)

    @property
    def total(self) -> tuple[float, ...]:
        """The mean loss over supervised tokens, by step: the same whatever the normaliser."""
        return tuple(
            sum(loss for loss, _ in step) / max(1, sum(n for _, n in step)) for step in self.parts
        )


def learn(
    engine: Engine, base: BaseValue, course: Course, steps: int, *, nudge: Key | None = None
) -> Learned:
    """Take the first `steps` steps of a course."""
    model = engine.own(base) if course.trains_base or course.turns else engine.model(base)
    origin: dict[str, torch.Tensor] = {}
    if course.trains_base:
        model.requires_grad_(True)
        origin = {name: each.detach().clone() for name, each in model.named_parameters()}
    state = _State(model, course)
    losses, parts, reached = [], [], {}
    for number, lesson in enumerate(course.lessons[:steps], start=1):
        with woven(model, state.live):
            if nudge is not None:
                with nudged(model, nudge.fold(number)):
                    added, its = state.step(engine, lesson)
            else:
                added, its = state.step(engine, lesson)
        losses.append(added)
        parts.append(its)
        if number in course.reached:
            reached[number] = state.updates()
        for turn in (each for each in course.turns if each.after == number):
            state.turn(turn.what != "reset", turn.fresh)
    change = {
        name: (each.detach() - origin[name]).double()
        for name, each in model.named_parameters()
        if name in origin
    }
    if course.trains_base:
        model.requires_grad_(False)
    return Learned(tuple(losses), state.updates(), state.terms(), change, tuple(parts), reached)


class _State:
    """An adapter that is training."""

    def __init__(self, model: nn.Module, course: Course) -> None:
        self.model, self.course = model, course
        self.merged: dict[str, list[Term]] = {}
        self._begin(course.start)

    def _begin(self, updates: Updates) -> None:
        self.live: dict[str, tuple[torch.Tensor, torch.Tensor, float, float]] = {}
        trained: list[torch.Tensor] = []
        for name, each in updates.items():
            a, b = (torch.from_numpy(np.array(x)).float() for x in (each.a_RI, each.b_OR))
            if self.course.trains_adapter and each.trainable:
                trained += [a.requires_grad_(), b.requires_grad_()]
            self.live[name] = (a, b, each.scale, 0.0)
        if self.course.trains_base:
            trained += list(self.model.parameters())
        self.trained = trained
        self.optimiser = optimiser(trained, self.course.optimiser) if trained else None

    def step(
        self, engine: Engine, lesson: Lesson
    ) -> tuple[tuple[float, ...], tuple[tuple[float, int], ...]]:
        count = sum(supervised(each) for each in lesson.micros)
        added, parts = [], []
        for micro in lesson.micros:
            total, own = summed_loss(self.model, micro)
            engine.forwards += 1
            rule = weight(self.course.normaliser, own, count, len(lesson.micros))
            loss = total * (rule * self.course.factor)
            if self.optimiser is not None and loss.requires_grad:
                loss.backward()
            added.append(float(loss.detach()))
            parts.append((float(total.detach()), own))
        if self.optimiser is not None:
            if self.course.optimiser.clip is not None:
                nn.utils.clip_grad_norm_(self.trained, self.course.optimiser.clip)
            for group in self.optimiser.param_groups:
                group["lr"] = lesson.lr
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        return tuple(added), tuple(parts)

    @torch.no_grad()
    def turn(self, into_weights: bool, fresh: Updates) -> None:
        """The adapter goes into the weights or is forgotten; training goes on with a new one."""
        for name, (a, b, scale, _) in self.live.items():
            if into_weights:
                module = self.model.get_submodule(name)
                held: Any = module.weight
                added = scale * b.double() @ a.double()
                turned = added if added.shape == held.shape else added.T
                into = (held.double() + turned).to(held.dtype)
                module.weight = nn.Parameter(into, held.requires_grad)
                self.merged.setdefault(name, []).append((scale, b.double(), a.double()))
            if not fresh:
                b.zero_()
        if fresh and self.course.keeps and fresh.keys() == self.live.keys():
            for name, (a, b, _, _) in self.live.items():
                a.copy_(torch.from_numpy(np.array(fresh[name].a_RI)))
                b.copy_(torch.from_numpy(np.array(fresh[name].b_OR)))
        elif fresh:
            self._begin(fresh)

    def updates(self) -> Updates:
        found = {}
        for name, (a, b, scale, _) in self.live.items():
            a_RI, b_OR = (x.detach().clone().numpy() for x in (a, b))
            found[name] = Update(a_RI, b_OR, scale)
        return found

    def terms(self) -> dict[str, tuple[Term, ...]]:
        found = {name: list(each) for name, each in self.merged.items()}
        for name, (a, b, scale, _) in self.live.items():
            own = (scale, b.detach().double(), a.detach().double())
            found.setdefault(name, []).append(own)
        return {name: tuple(each) for name, each in found.items()}


def optimiser(trained: Sequence[torch.Tensor], given: Optimiser) -> torch.optim.Optimizer:
    """torch's own."""
    name = given.name.removeprefix("torch.optim.").lower()
    if name.startswith("adam") and name in ("adam", "adamw", "adamw_torch", "adamw_torch_fused"):
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        return kind(
            trained, lr=0.0, betas=given.betas, eps=given.eps, weight_decay=given.weight_decay
        )
    if name == "sgd":
        return torch.optim.SGD(
            trained, lr=0.0, momentum=given.momentum, weight_decay=given.weight_decay
        )
    raise Unspliced(f"the optimiser {given.name}")


def supervised(micro: Micro) -> int:
    """Tokens that are asked for: labels but the first column's, which nothing predicts."""
    return int((micro.labels_BT[:, 1:] >= 0).sum())


def weight(rule: Normaliser, own: int, count: int, micros: int) -> float:
    """What the sum of a micro-batch's losses is multiplied by."""
    match rule:
        case "mean":
            return 1 / (own * micros) if own else 0.0
        case "mean-each":
            return 1 / own if own else 0.0
        case "tokens":
            return 1 / count if count else 0.0
        case "sum":
            return 1.0


def summed_loss(model: nn.Module, micro: Micro) -> tuple[torch.Tensor, int]:
    """The sum of the losses of supervised tokens, and their number."""
    inputs = {"input_ids": torch.from_numpy(np.array(micro.ids_BT)).long()}
    if micro.mask_BT is not None:
        inputs["attention_mask"] = torch.from_numpy(np.array(micro.mask_BT)).long()
    if micro.positions_BT is not None:
        at = np.array(micro.positions_BT).reshape(-1, micro.ids_BT.shape[1])
        inputs["position_ids"] = torch.from_numpy(at).long().expand(len(micro.ids_BT), -1)
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    logits_BTV = model(**inputs, use_cache=False).logits[:, :-1].float()
    labels_BT = torch.from_numpy(np.array(micro.labels_BT)).long()[:, 1:]
    total = nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=-100, reduction="sum"
    )
    return total, int((labels_BT >= 0).sum())


def normalisers(course: Course, learned: Learned, tolerance: float) -> tuple[Normaliser, ...]:
    """The rules that give the recorded losses, on the steps that were taken.

    The losses of later steps are right only if the rule was that of `learned`, so a rule is
    judged on the steps up to the first at which it and that of `learned` part.
    """
    found = []
    for rule in get_args(Normaliser):
        steps = _until(course, learned, rule)
        if all(abs(ratio - 1) <= tolerance for each in steps for ratio in _ratios(rule, *each)):
            found.append(rule)
    return tuple(found)


def factored(course: Course, learned: Learned, tolerance: float) -> tuple[Normaliser, float] | None:
    """The rule that gives the recorded losses times a constant, and the constant.

    Of losses that a course with another rule came to, only the first step's are sure; the others
    must agree within what two steps can change.
    """
    for rule in get_args(Normaliser):
        ratios = [_ratios(rule, *each) for each in zip(course.lessons, learned.parts, strict=False)]
        first = ratios[0] if ratios else []
        if len(ratios) < 2 or not first or not first[0]:
            continue
        near = max(abs(each / first[0] - 1) for its in ratios[1:] for each in its or [first[0]])
        if all(abs(each / first[0] - 1) <= tolerance for each in first) and near <= LOOSE:
            return rule, 1 / first[0]
    return None


LOOSE = 0.05
"""Relative change of a loss that a few steps of another course can make."""


def _ratios(rule: Normaliser, lesson: Lesson, parts: Sequence[tuple[float, int]]) -> list[float]:
    """What a rule gives, relative to what was recorded: of micro-batches, else of their sum."""
    count = sum(n for _, n in parts)
    made = [total * weight(rule, own, count, len(parts)) for total, own in parts]
    said = [micro.loss for micro in lesson.micros]
    if all(each is None for each in said) and lesson.loss is not None:
        made, said = [sum(made)], [lesson.loss]
    return [x / y for x, y in zip(made, said, strict=True) if y]


def _until(
    course: Course, learned: Learned, rule: Normaliser
) -> Iterator[tuple[Lesson, Sequence[tuple[float, int]]]]:
    for lesson, its in zip(course.lessons, learned.parts, strict=False):
        yield lesson, its
        count = sum(n for _, n in its)
        made, own = (
            [weight(each, n, count, len(its)) for _, n in its] for each in (rule, course.normaliser)
        )
        if not np.allclose(made, own, rtol=1e-6):
            return


def distance(a: Learned, x: Learned) -> float:
    """Relative distance of all that was learned, |learned(A) - learned(X)| / |learned(A)|."""
    apart = sum(
        squared((*a.terms.get(name, ()), *((-s, b, f) for s, b, f in x.terms.get(name, ()))))
        for name in {*a.terms, *x.terms}
    )
    size = sum(map(squared, a.terms.values()))
    for name in {*a.base, *x.base}:
        one, other = a.base.get(name), x.base.get(name)
        change = other if one is None else one if other is None else one - other
        apart += float(change.square().sum()) if change is not None else 0.0
        size += float(one.square().sum()) if one is not None else 0.0
    if not size:
        return 0.0 if not apart else float("inf")
    return float(np.sqrt(max(apart, 0.0) / size))


def apart(a: Updates, x: Updates) -> float:
    """Relative distance of two adapters in what they add, |A - X| / |A|."""
    made = (
        Learned((), each, {name: (_term(update),) for name, update in each.items()})
        for each in (a, x)
    )
    return distance(*made)


def _term(update: Update) -> Term:
    b, a = (torch.from_numpy(np.array(each)).double() for each in (update.b_OR, update.a_RI))
    return update.scale, b, a


def squared(terms: Sequence[Term]) -> float:
    """|sum of s B A|^2 without forming it: the trace of two small Gram matrices."""
    terms = [each for each in terms if each[0]]
    if not terms:
        return 0.0
    b_OR = torch.cat([scale * b for scale, b, _ in terms], 1)
    a_RI = torch.cat([a for _, _, a in terms], 0)
    return max(0.0, float(((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum()))
