"""Where two sequences part: spans of texts and of token ids."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

LONGEST = 6000
"""Words or tokens beyond which what lies between a common start and end is one span."""

SHOWN = 48
"""Characters of a text that are shown."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """What A has from `start` to `stop`, and what B has in its place."""

    a: Any  # a text or a tuple of ids
    b: Any
    start: int  # in A
    stop: int
    start_b: int
    stop_b: int
    at_start: bool  # nothing that both have comes before
    at_end: bool  # or after

    @property
    def cut(self) -> bool:
        """Whether one side lacks what the other has at an end."""
        return (not self.a or not self.b) and (self.at_start or self.at_end)


def spans(a: Sequence[Any], b: Sequence[Any]) -> list[Span]:
    """The spans in which two sequences differ; of strings, by words."""
    if isinstance(a, str) and isinstance(b, str):
        return _of_texts(a, b)
    return [Span(tuple(a[i:j]), tuple(b[k:m]), i, j, k, m, *ends)
            for i, j, k, m, *ends in _blocks(a, b)]  # fmt: skip


def _of_texts(a: str, b: str) -> list[Span]:
    words_a, words_b = _words(a), _words(b)
    at_a, at_b = _offsets(words_a), _offsets(words_b)
    return [
        Span(a[at_a[i] : at_a[j]], b[at_b[k] : at_b[m]], at_a[i], at_a[j], at_b[k], at_b[m], *ends)
        for i, j, k, m, *ends in _blocks(words_a, words_b)
    ]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def _offsets(words: Sequence[str]) -> list[int]:
    found = [0]
    for word in words:
        found.append(found[-1] + len(word))
    return found


def _blocks(a: Sequence[Any], b: Sequence[Any]) -> list[tuple[int, int, int, int, bool, bool]]:
    """Differing spans as indices in both, and whether each stands at the start or at the end."""
    limit = min(len(a), len(b))
    before = next((i for i in range(limit) if a[i] != b[i]), limit)
    after = next((i for i in range(limit - before) if a[-1 - i] != b[-1 - i]), limit - before)
    mid_a, mid_b = a[before : len(a) - after], b[before : len(b) - after]
    if not mid_a and not mid_b:
        return []
    if not mid_a or not mid_b or max(len(mid_a), len(mid_b)) > LONGEST:
        codes = [("replace", 0, len(mid_a), 0, len(mid_b))]
    else:
        matcher = SequenceMatcher(None, mid_a, mid_b, autojunk=False)
        codes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    shifted = [(i + before, j + before, k + before, m + before) for _, i, j, k, m in codes]
    return [
        (i, j, k, m, i == 0 and k == 0, j == len(a) and m == len(b))
        for i, j, k, m in _near(shifted)
    ]


def _near(found: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Spans with no more than two things in common between them are one."""
    joined: list[tuple[int, int, int, int]] = []
    for span in found:
        if joined and span[0] - joined[-1][1] <= 2 and span[2] - joined[-1][3] <= 2:
            joined[-1] = (joined[-1][0], span[1], joined[-1][2], span[3])
        else:
            joined.append(span)
    return joined


def frame(ids: Ids, special: Collection[int]) -> tuple[Ids, Ids, Ids]:
    """Special ids at the start, what is between, and special ids at the end."""
    start, stop = 0, len(ids)
    while start < stop and ids[start] in special:
        start += 1
    while stop > start and ids[stop - 1] in special:
        stop -= 1
    return ids[:start], ids[start:stop], ids[stop:]


def quoted(value: str | Ids, keep: str = "both") -> str:
    """A text or ids as they are shown: short, in quotes, without control characters."""
    if isinstance(value, str):
        if len(value) > SHOWN:
            half = SHOWN // 2
            value = (
                f"{value[:SHOWN]}..." if keep == "start" else f"{value[:half]}...{value[-half:]}"
            )
        return repr(value)
    if not value:
        return "nothing"
    shown = " ".join(map(str, value[:8])) + (" ..." if len(value) > 8 else "")
    return f"token{'s' if len(value) > 1 else ''} {shown}"
