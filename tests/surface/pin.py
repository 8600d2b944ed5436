"""The public surface of Weft as text: what the commands say of themselves, and the functions.

    python tests/surface/pin.py

writes it to `commands.txt` and `functions.txt`; the tests compare. A change shows as a diff.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
from pathlib import Path

HERE = Path(__file__).parent


def commands() -> str:
    """The help of `weft` and of every verb, 80 columns wide."""
    from weft.cli.main import VERBS

    return "\n".join(f"$ weft {line}\n{_help(line)}" for line in ("", *VERBS))


def functions() -> str:
    """The signatures of the Python functions."""
    import weft

    public = {name: getattr(weft, name) for name in weft.__all__}
    return "".join(
        f"{name}{inspect.signature(value)}\n" for name, value in public.items() if callable(value)
    )


def _help(line: str) -> str:
    from weft.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*line.split(), "--help"]) == 0
    return printed.getvalue()


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
    (HERE / "commands.txt").write_text(commands())
    (HERE / "functions.txt").write_text(functions())
