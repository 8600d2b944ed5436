"""Training as it goes: a live line in a terminal, a line now and then everywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from weft.cli import screen
from weft.runs.timing import RateMeter

if TYPE_CHECKING:
    from weft.training.advance import Ended
    from weft.training.fit import Progress

QUIET_SECONDS = 20.0
"""Longest silence between two lines where there is no terminal."""
FIRST_ROUNDS = 10
"""Rounds of boosting that are told one by one; of those after them, every tenth is."""


class _Shown:
    """A context manager, so that the line is taken down whatever happens."""

    _line: _LiveLine | None

    def __enter__(self) -> Self:
        if self._line:
            self._line.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._line:
            self._line.stop()


class TrainingProgress(_Shown):
    """Call it with each `Progress`."""

    def __init__(self, start: int, steps: int) -> None:
        """A run that is at step `start` of `steps`."""
        self._rate = RateMeter()
        self._valid_loss: float | None = None
        self._line = _LiveLine(start, steps) if screen.console().is_terminal else None
        self._spoken = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Show a step."""
        self._rate.add(_work(progress), progress.seconds)
        if progress.valid_loss is not None:
            self._valid_loss = progress.valid_loss
        if progress.ended and (text := rounds_line(progress.step, progress.ended)):
            screen.say(text)
        if self._line:
            self._line.show(progress.step, self._words(progress, self._valid_loss))
        elif self._is_worth_a_line(progress):
            self._spoken = time.monotonic()
            words = self._words(progress, progress.valid_loss)
            screen.say(f"step {progress.step:,}/{progress.steps:,}  {words}")

    def _words(self, progress: Progress, valid_loss: float | None) -> str:
        if progress.is_reward:
            return _of_reward(progress, valid_loss, self._rate.recent)
        valid = "" if valid_loss is None else f"  valid {screen.number(valid_loss)}"
        what = "loss" if progress.loss_name == "loss" else "perturbed loss"
        return f"{what} {screen.number(progress.loss)}{valid}  {self._rate.recent:,.0f} tok/s"

    def _is_worth_a_line(self, progress: Progress) -> bool:
        return (
            progress.valid_loss is not None
            or progress.step in (1, progress.steps)
            or time.monotonic() - self._spoken > QUIET_SECONDS
        )


def _work(progress: Progress) -> float:
    """What a speed is of: completions where they are graded, else tokens read."""
    return progress.stats["completions"] if progress.is_reward else progress.tokens


def _of_reward(progress: Progress, valid_loss: float | None, rate: float) -> str:
    """The centre's reward, those of its population, and that of the validation rows."""
    stats = progress.stats
    words = [
        f"reward {screen.number(stats['reward'])}",
        f"members {screen.number(stats['reward_mean'])} ± {screen.number(stats['reward_std'])}",
        f"best {screen.number(stats['reward_best'])}",
    ]
    if valid_loss is not None:
        words.append(f"valid {screen.number(0.0 - valid_loss)}")
    if stats["failed"]:
        words.append(f"{stats['failed']:,.0f} not graded")
    if stats["flat"]:
        words.append("no member differs")
    return "  ".join([*words, f"{rate:,.1f} completions/s"])


def rounds_line(step: int, ended: Sequence[Ended]) -> str:
    """How rounds of boosting ended at a step; empty for rounds that are not told one by one."""
    number = max(each.round for each in ended) + 1
    if number > FIRST_ROUNDS and number % FIRST_ROUNDS:
        return ""
    commits = [each for each in ended if each.committed]
    parts = []
    if commits:
        counts = sorted({each.commits for each in commits})
        span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        steps = sorted({each.of_step for each in commits} - {step})
        of_step = f", of step {', '.join(f'{each:,}' for each in steps)}" if steps else ""
        parts.append(f"commit {span}{_of_several(len(commits), len(ended))}{of_step}")
    if again := len(ended) - len(commits):
        parts.append(f"nothing learnt{_of_several(again, len(ended))}: the round begins anew")
    return f"step {step:,}: {'; '.join(parts)}"


def _of_several(count: int, whole: int) -> str:
    if whole == 1:
        return ""
    return f" ({whole} adapters)" if count == whole else f" ({count} of {whole} adapters)"


class _LiveLine:
    """Bar, step, losses, speed, time so far and time to go, in one line of the terminal."""

    def __init__(self, start: int, steps: int) -> None:
        from rich import progress as rich

        self._bar = rich.Progress(
            rich.BarColumn(bar_width=16),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.description}"),
            rich.TimeElapsedColumn(),
            rich.TextColumn("left"),
            rich.TimeRemainingColumn(),
            console=screen.console(),
        )
        self._task = self._bar.add_task("first evaluation", total=steps, completed=start)
        self.start = self._bar.start
        self.stop = self._bar.stop

    def show(self, step: int, words: str) -> None:
        """Bring the line up to date."""
        self._bar.update(self._task, completed=step, description=words)


@contextmanager
def rows_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A callback for rows done and rows in all; shown in a terminal only."""
    from rich import progress as rich

    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn())
    console = screen.console()
    with rich.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


PATIENCE_SECONDS = 2.0
"""Generation that ends sooner shows no progress."""


class TokensProgress:
    """Tokens, their rate and the time to go at most, when a generation takes its time."""

    def __init__(self, texts: int, most: int) -> None:
        """So many texts, of `most` tokens together at the very most."""
        self._texts, self._most, self._share = texts, most, most // max(texts, 1)
        self._done = self._tokens = 0
        self._start = time.monotonic()
        self._next = self._start + PATIENCE_SECONDS
        self._line: _LiveLine | None = None

    def add(self) -> None:
        """One token more."""
        self._tokens += 1
        now = time.monotonic()
        if self._line is None and now < self._next:
            return
        rate = self._tokens / max(now - self._start, 1e-9)
        words = f"{self._done}/{self._texts} texts, {rate:,.0f} tok/s"
        if self._line:
            self._line.show(self._tokens, words)
        elif screen.console().is_terminal:
            self._line = _LiveLine(self._tokens, self._most)
            self._line.show(self._tokens, words)
            self._line.start()
        else:
            self._next = now + QUIET_SECONDS
            left = max(self._most - self._tokens, 0) / rate
            screen.say(f"{self._tokens:,} tokens, {words}, at most {left:,.0f} s left")

    def finished(self, texts: int, tokens: int) -> None:
        """So many texts are complete; they may be shorter than they could have been."""
        self._done += texts
        self._most -= texts * self._share - tokens
        self.stop()

    def stop(self) -> None:
        """Take the line down: something else is going to be printed."""
        if self._line:
            self._line.stop()
            self._line = None


class ProofProgress(_Shown):
    """Exchanges of a proof, what is exchanged now, and the time to go."""

    def __init__(self) -> None:
        self._line = None
        self._start = self._spoken = time.monotonic()

    def __call__(self, done: int, total: int, words: str) -> None:
        """So many of so many are done, and this one begins."""
        if screen.console().is_terminal:
            if self._line is None:
                self._line = _LiveLine(done, total)
                self._line.show(done, words)
                self._line.start()
            self._line.show(done, words)
        elif time.monotonic() - self._spoken > QUIET_SECONDS:
            self._spoken = time.monotonic()
            seconds = self._spoken - self._start
            left = f", about {seconds / done * (total - done):,.0f} s left" if done else ""
            screen.say(f"exchange {done + 1} of {total}: {words}{left}")
