"""Generated texts on the screen: one as it is made, several under headers, or records."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from weft.cli import screen
from weft.cli.progress import TokensProgress

if TYPE_CHECKING:
    from weft.model.check import CacheCheck, Place
    from weft.training.generate import Generation, Session

HEADER_COLUMNS = 78
"""Most of a prompt that a header shows."""

SHOWN_FLIPS = 5
NO_YES = ("no", "yes")


class Texts:
    """Prints what is generated, and keeps it; a context manager around the generation."""

    def __init__(self, session: Session, *, json: bool) -> None:
        """`json`: print records instead of texts."""
        self.session = session
        self.done: list[Generation] = []
        self._printed = False
        self._json = json
        self._ids: dict[tuple[int, int], list[int]] = {}  # (prompt, member) to its tokens
        count = len(session.prompts) * len(session.members)
        alone = count == 1 and session.rows is None and not json
        self._stream = session.stream(0) if alone else None
        quiet = alone and sys.stdout.isatty()  # the text itself shows how it goes
        self._progress = None if quiet else TokensProgress(count, session.longest * count)
        self._start = time.perf_counter()
        self.seconds = 0.0

    def token(self, member: int, prompt: int, token: int) -> None:
        """Take a token as soon as it is chosen."""
        self._ids.setdefault((prompt, member), []).append(token)
        if self._progress:
            self._progress.add()
        if self._stream:
            self._write(self._stream.add(token))

    def show(self, part: Sequence[Generation]) -> None:
        """Print texts that are complete."""
        self.seconds = time.perf_counter() - self._start
        self._ids = {}
        self.done += part
        if self._progress:
            self._progress.finished(len(part), sum(len(each.ids) for each in part))
        if self._stream:
            self._write(self._stream.rest() + "\n")
        elif self._json:
            for each in part:
                self._write(screen.as_json(self.session.record(each)) + "\n")
        elif self.session.rows is not None:
            members = len(self.session.members)
            for start in range(0, len(part), members):
                self._row(part[start : start + members])
        else:
            for each in part:
                self._headed(each.id, each.prompt, each.member, each.text)

    def show_unfinished(self) -> None:
        """Print what there is of texts that were interrupted."""
        count = sum(map(len, self._ids.values()))
        if self._stream:
            self._write(self._stream.rest() + "\n")
        elif not self._json:
            for (number, member), ids in sorted(self._ids.items()):
                prompt, name = self.session.prompts[number], self.session.members[member]
                self._headed(prompt.id, prompt.text, name, self.session.text(number, ids))
        screen.say(
            f"interrupted: {len(self.done)} complete, {len(self._ids)} unfinished with {count} "
            "tokens, which are not kept"
        )

    def summary(self) -> str:
        """How much, how fast, and why it ended."""
        tokens = sum(len(each.ids) for each in self.done)
        rate = tokens / self.seconds if self.seconds else 0.0
        why = Counter(map(self._why, self.done))
        ends = (why.popitem()[0],) if len(self.done) == 1 else (f"{n} {w}" for w, n in why.items())
        count = f"{len(self.done)} texts, " if len(self.done) > 1 else ""
        return (
            f"{count}{tokens:,} token{'' if tokens == 1 else 's'} in {self.seconds:.2f} s, "
            f"{rate:,.0f} tokens/s; ended {', '.join(ends)}"
        )

    def by_run(self) -> dict[Path, list[Generation]]:
        """Complete texts by the run whose members said them."""
        runs = self.session.runs
        found: dict[Path, list[Generation]] = {}
        for each in self.done:
            if run := runs.get(each.member):
                found.setdefault(run, []).append(each)
        return found

    def _why(self, each: Generation) -> str:
        if each.finish == "stop token":
            name = self.session.subject.engine.tokenizer.convert_ids_to_tokens(each.stopped_by)
            return f"at the stop token {name}"
        if each.finish == "stop text":
            return f"before the stop text {each.stopped_by!r}"
        return "after --max-tokens" if each.finish == "max_tokens" else "where the context is full"

    def _headed(self, prompt_id: str, prompt: str, member: str, text: str) -> None:
        """A text with its prompt and member above it, as far as there are several."""
        several = len(self.session.members) > 1
        line = " ".join(prompt.split())
        if len(line) > HEADER_COLUMNS:
            line = "..." + line[-HEADER_COLUMNS + 3 :]  # the end is what the text goes on from
        first = not several or member == self.session.members[0]
        head = f"== {prompt_id}: {line}\n" if first and len(self.session.prompts) > 1 else ""
        gap = "\n" if self._printed else ""
        self._printed = True
        self._write(gap + head + (f"-- {member}\n" if several else "") + text + "\n")

    def _row(self, said: Sequence[Generation]) -> None:
        """A row of data: prompt, what is expected, and what every member says, with verdicts."""
        first = said[0]
        facts = {"row": first.id, "prompt": first.prompt, "expected": str(first.reference)}
        for place, each in enumerate(said):
            facts["generated" if len(said) == 1 else each.member] = each.text
            for name, value in each.verdict.items():
                shown = screen.number(value) if isinstance(value, float) else NO_YES[value]
                facts[f"  {name.replace('_', ' ')}" + " " * place] = shown
        if self._printed:
            screen.put()
        self._printed = True
        screen.put(screen.pairs(facts))

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.stop()


def report_cache(check: CacheCheck, session: Session) -> bool:
    """Say what the check of the cache found; whether all is well."""
    if not check.tokens:
        screen.notices(["this base is run without a cache: there is nothing to check"])
        return True
    assert check.at is not None
    tokenizer = session.subject.engine.tokenizer

    def where(place: Place) -> str:
        member, prompt = session.members[place.member], session.prompts[place.prompt].id
        return f"token {place.token} of {member} on {prompt}"

    screen.say(
        f"cache: {check.tokens:,} tokens computed again without it; the logits differ by at most "
        f"{check.largest:.2g} ({where(check.at)}); rounding explains {check.bound:.2g}"
    )
    for flip in check.flips[:SHOWN_FLIPS]:
        chosen, instead = (repr(tokenizer.decode([i])) for i in (flip.chosen, flip.instead))
        screen.say(
            f"  {where(flip.place)} is {chosen} and would be {instead}: top-2 margin "
            f"{flip.margin:.2g}"
        )
    if len(check.flips) > SHOWN_FLIPS:
        screen.say(f"  and {len(check.flips) - SHOWN_FLIPS} more")
    if not check.flips:
        screen.say("  no token would be another one")
    if not check.passed:
        screen.complain("the cache changes more than rounding does")
    return check.passed
