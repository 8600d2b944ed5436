"""The process in which a reward function of a user runs: `python worker.py FILE FUNCTION SECONDS`.

It reads one JSON object a line, {"row": ..., "completion": ...}, and answers each with a line:
{"reward": number} or {"failure": why}. Its first line is {"ready": true} or {"problem": what is
wrong with the file}. It needs the standard library only, and what the user's file imports.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import inspect
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

LONGEST_SAID = 300
"""Characters of an exception that are passed on."""
GRACE = 2.0
"""Seconds after the time limit until the process ends itself; whoever started it is faster."""


class Unusable(Exception):
    """Why a file is of no use."""


def main(file: str, function: str, seconds: float) -> None:
    """Load the function, then grade until nothing more comes."""
    asked, said = _own_pipes()
    try:
        reward = load(Path(file), function)
    except BaseException as error:
        _say(said, {"problem": describe(error)})
        return
    _say(said, {"ready": True})
    with open(os.devnull, "w") as nowhere:
        for line in asked:
            # a thread of C, which runs even while Python's lock is held: no orphan stays
            faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=nowhere)
            answer = grade(reward, json.loads(line))
            faulthandler.cancel_dump_traceback_later()
            _say(said, answer)


def load(file: Path, function: str) -> Callable[..., Any]:
    """The function of a file, which is run for that as Python runs a script's imports."""
    sys.path[0] = str(file.resolve().parent)
    name = f"{file.stem} (reward)"  # no module of that name can be imported by accident
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise Unusable("it is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        own = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        raise Unusable(f"it has no function `{function}` (functions: {', '.join(own) or 'none'})")
    inspect.signature(found).bind({}, "")
    return found


def grade(reward: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    """What the function makes of a completion: {"reward": number} or {"failure": why}."""
    try:
        value = reward(request["row"], request["completion"])
        if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
            return {"failure": f"returned {type(value).__name__}, not a number"}
        number = float(value)
    except BaseException as error:
        return {"failure": describe(error)}
    return {"reward": number} if math.isfinite(number) else {"failure": f"returned {number}"}


def describe(error: BaseException) -> str:
    """An exception in one short line."""
    try:
        said = " ".join(str(error).split())
    except BaseException:
        said = ""
    if isinstance(error, Unusable):
        return said
    return f"{type(error).__name__}: {said}"[:LONGEST_SAID].rstrip(": ")


def _own_pipes() -> tuple[IO[str], IO[str]]:
    """The two pipes, out of reach of what the function reads and prints (it prints as errors)."""
    asked = os.fdopen(os.dup(0), encoding="utf-8")
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return asked, said


def _say(said: IO[str], answer: dict[str, Any]) -> None:
    said.write(json.dumps(answer) + "\n")
    said.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
