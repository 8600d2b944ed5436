"""What a user can get wrong, said so that they can mend it.

A `WeftError` carries the problem (what is wrong, where, what was given) and a hint (what to do).
The command line prints both and exits with the class's `exit_code`; nothing else in Weft prints
errors. Invariants of our own code are plain `assert`s: they are bugs, not input.
"""

from __future__ import annotations


class WeftError(Exception):
    """Base of every error that a user can cause or act on."""

    exit_code = 2

    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return self.problem if self.hint is None else f"{self.problem}\n\nhint: {self.hint}"


class InputError(WeftError, ValueError):
    """The configuration, a file, an argument or the data is wrong; nothing was started."""


class NumericError(WeftError, ArithmeticError):
    """A number that should be finite is not: says which, where, and what was kept."""

    exit_code = 1


class EngineError(WeftError):
    """What computes has failed: it is gone, or does not do what it says. What was made is kept."""

    exit_code = 1


class CheckFailed(WeftError):
    """The command ran as asked and its answer is no."""

    exit_code = 1


def did_you_mean(word: str, known: list[str]) -> str | None:
    """The nearest known word as a hint, or None when nothing is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else None
