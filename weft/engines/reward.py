"""Rewards: sample a completion of every prompt under every member, and have it graded.

Shapes: N members, E prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from weft.core.batch import IGNORE, Batch, Example, Goal
from weft.core.errors import InputError
from weft.core.keys import Key
from weft.data.rewards.grade import Grade, Grader
from weft.data.tokens import decode_completion
from weft.engines.engine import Engine
from weft.methods.estimate import Graded
from weft.model.bank import Bank
from weft.model.decode import NotFinite
from weft.model.decoding import Completion, Decoding
from weft.model.objectives import Objective
from weft.runs.timing import Stopwatch

LENGTH, CUT = "length", "cut"
"""Parts of every reward: tokens of the completion, and whether the limit ended it."""


@dataclass(frozen=True, eq=False)
class Reward:
    """The objective of completions that somebody grades; as a loss it is minus the reward."""

    grader: Grader
    decoding: Decoding
    name: str = "reward"
    hits: Literal["reward"] = "reward"

    def counts(self, batch: Batch) -> np.ndarray:
        """1 each."""
        return np.ones(len(batch.examples), dtype=np.int64)

    def rows(self, batch: Batch) -> Batch:
        """The prompts."""
        return Batch(tuple(map(_asked, batch.examples)))

    def grade(
        self,
        engine: Engine,
        bank: Bank,
        batch: Batch,
        key: Key | None = None,
        clock: Stopwatch | None = None,
        copies: Sequence[int] | None = None,
    ) -> Graded:
        """Every member on every example.

        `key` draws the completions, for all members alike; None: the same way in every call.
        `copies` numbers equal prompts, where some of them are in other calls.
        """
        clock = clock or Stopwatch()
        goals = [_goal(example) for example in batch.examples]
        seed = 0 if key is None else key.value >> 1
        decoding = self.decoding.model_copy(update={"seed": seed})
        with clock("evaluation"):
            prompts = [goal.prompt_T for goal in goals]
            said, silent = _generate(engine, bank, prompts, decoding, copies)
        with clock("grading"):
            texts = {
                member: tuple(
                    decode_completion(engine.tokenizer, goal.prompt_T, completion.ids)
                    for goal, completion in zip(goals, completions, strict=True)
                )
                for member, completions in said.items()
            }
            table, failures = self._table(bank.members, goals, texts, silent)
        return Graded(
            np.array([[grade.reward for grade in own] for own in table]),
            _parts(table) | _measures(bank.members, said, len(goals)),
            dict(failures),
            tuple(texts.get(member, ("",) * len(goals)) for member in bank.members),
            tuple(
                tuple(tuple(completion.ids) for completion in said[member])
                if member in said
                else ((),) * len(goals)
                for member in bank.members
            ),
        )

    def _table(
        self,
        members: Sequence[str],
        goals: Sequence[Goal],
        texts: Mapping[str, Sequence[str]],
        silent: Mapping[str, str],
    ) -> tuple[list[list[Grade]], Counter[str]]:
        """Grades [N][E] of members, in one call of the grader; and why some failed, how often."""
        rows = [goal.row for goal in goals]
        grades = iter(self.grader(rows * len(texts), [t for own in texts.values() for t in own]))
        table = [
            [next(grades) if member in texts else Grade.failed(silent[member]) for _ in goals]
            for member in members
        ]
        return table, Counter(g.failure for own in table for g in own if g.failure is not None)


def graded(
    engine: Engine,
    bank: Bank,
    batch: Batch,
    objective: Objective | Reward,
    key: Key | None = None,
    clock: Stopwatch | None = None,
) -> Graded:
    """Every member's rewards; of a loss they are minus its shares, whose mean is the mean loss."""
    if isinstance(objective, Reward):
        return objective.grade(engine, bank, batch, key, clock)
    with (clock or Stopwatch())("evaluation"):
        found = engine.score(bank, batch, objective)
    usual = found.count_E.mean()
    finite_NE = np.isfinite(found.loss_NE)
    odd = int((~finite_NE).sum())
    return Graded(
        np.where(finite_NE, -found.loss_NE / usual, np.nan),
        {objective.hits: found.correct_NE / usual},
        {"loss that is not finite": odd} if odd else {},
    )


def _generate(
    engine: Engine,
    bank: Bank,
    prompts: Sequence[np.ndarray],
    decoding: Decoding,
    copies: Sequence[int] | None,
) -> tuple[dict[str, list[Completion]], dict[str, str]]:
    """Completions by member; and the members that can say nothing, with why.

    Logits that are not finite stop a decode: it is then done again without that member.
    """
    silent: dict[str, str] = {}
    live = list(range(len(bank.members)))
    while live:
        here = bank if not silent else bank.only(live)
        try:
            said = engine.generate(here, prompts, decoding, copies=copies)
        except NotFinite as found:
            silent[found.member] = "logits that are not finite"
            live = [number for number in live if bank.members[number] not in silent]
            continue
        return dict(zip(here.members, said, strict=True)), silent
    return {}, silent


def _parts(table: Sequence[Sequence[Grade]]) -> dict[str, np.ndarray]:
    """What the grades are made of, [N, E]; NaN where a grade does not say."""
    names = dict.fromkeys(name for own in table for grade in own for name in grade.parts)
    return {
        name: np.array([[grade.parts.get(name, np.nan) for grade in own] for own in table])
        for name in names
    }


def _measures(
    members: Sequence[str], said: dict[str, list[Completion]], count: int
) -> dict[str, np.ndarray]:
    """Length of the completions, and whether they were cut."""
    length_NE = np.full((len(members), count), np.nan)
    cut_NE = length_NE.copy()
    for row, member in enumerate(members):
        for column, completion in enumerate(said.get(member, ())):
            length_NE[row, column] = len(completion.ids)
            cut_NE[row, column] = completion.finish in ("max_tokens", "context")
    return {LENGTH: length_NE, CUT: cut_NE}


def _asked(example: Example) -> Example:
    prompt_T = _goal(example).prompt_T
    return Example(example.id, prompt_T, np.full(len(prompt_T), IGNORE), goal=example.goal)


def _goal(example: Example) -> Goal:
    if example.goal is None:
        raise InputError(f"{example.id} has no prompt of its own to complete")
    return example.goal
