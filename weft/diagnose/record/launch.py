"""A command line of Python, understood and started again in a process that is recorded.

The process is Weft's own interpreter. It sets up `sys.argv`, `sys.path` and `__main__` as Python
would, and has its input, output, signals and exit code to itself.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from weft.core.errors import InputError

SOURCE = Path(__file__).parents[3]
"""From where Weft is imported."""

WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
"""Options of Python that have a value of their own."""

EXAMPLE = "weft record -- python train.py --steps 100"


@dataclass(frozen=True)
class Program:
    """What is to be run, and with which options of Python."""

    kind: Literal["script", "module"]
    target: str
    arguments: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A short name: of the script without its ending, or of the module."""
        return Path(self.target).stem if self.kind == "script" else self.target

    @property
    def command(self) -> str:
        """The command line that it stands for."""
        what = [self.target] if self.kind == "script" else ["-m", self.target]
        return shlex.join(["python", *self.options, *what, *self.arguments])


def understand(words: Sequence[str]) -> Program:
    """The program of a command line: `python ...` or the name of a command written in Python.

    Raises `InputError` for one that is none, or is not there.
    """
    if not words:
        raise InputError("there is nothing to record", hint=f"`{EXAMPLE}`")
    first, rest = words[0], words[1:]
    if re.fullmatch(r"python[\d.]*(\.exe)?", Path(first).name):
        return _python(rest)
    if first.endswith(".py"):
        raise InputError(
            f"{first} is a script and not a command",
            hint=f"`weft record -- {shlex.join(['python', *words])}`",
        )
    return Program("script", _console_script(first), tuple(rest))


def _python(words: Sequence[str]) -> Program:
    options: list[str] = []
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word.startswith("-m"):
            target = word[2:] or (rest.pop(0) if rest else "")
            return Program("module", _module(target), tuple(rest), tuple(options))
        if word.startswith("-c") or word == "-":
            raise InputError(
                f"python {word} has no file that a recording could name",
                hint="put the code into a script",
            )
        options.append(word)
        if word in WITH_VALUE and rest:
            options.append(rest.pop(0))
    if not rest:
        raise InputError("python was given no script", hint=f"`{EXAMPLE}`")
    script = Path(rest[0])
    if not script.is_file():
        raise InputError(f"there is no script {script}", hint="name a file, or `-m` and a module")
    return Program("script", rest[0], tuple(rest[1:]), tuple(options))


def _module(name: str) -> str:
    if not name:
        raise InputError("python -m was given no module", hint="`weft record -- python -m NAME`")
    top = name.partition(".")[0]
    here = Path(top)
    if not (here.is_dir() or here.with_suffix(".py").is_file()):
        try:
            found = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise InputError(
                f"there is no module {top} here or in {sys.prefix}",
                hint="scripts are recorded by the interpreter that has Weft: install it there",
            )
    return name


def _console_script(word: str) -> str:
    """The file of a command that is written in Python."""
    beside = sysconfig.get_path("scripts")
    file = shutil.which(word, path=beside) or shutil.which(word)
    if file is None:
        raise InputError(
            f"there is no command {word}", hint=f"is it installed in {sys.prefix}? or: `{EXAMPLE}`"
        )
    with open(file, "rb") as opened:
        head = opened.read(256)
    if not (head.startswith(b"#!") and b"python" in head):
        raise InputError(
            f"{word} ({file}) is not written in Python, and only Python can be recorded",
            hint=f"`{EXAMPLE}`",
        )
    return file


def run(program: Program, root: Path, environment: Mapping[str, str]) -> int:
    """Run it, recorded into `root`; its exit code, or minus the signal that ended it."""
    start = (
        f"import sys; sys.path += [p for p in [{str(SOURCE)!r}] if p not in sys.path]; "
        "from weft.diagnose.record.child import main; main()"
    )
    command = [sys.executable, "-P", *program.options, "-c", start]
    told = [str(root), program.kind, program.target, program.command]
    child = subprocess.Popen([*command, *told, *program.arguments], env=dict(environment))
    with _passed_on(child):
        return child.wait()


def end_like(code: int) -> int:
    """The exit code for what `run` returned; a signal that ended the script ends this, too."""
    if code >= 0:
        return code
    if -code in (signal.SIGINT, signal.SIGTERM):
        signal.signal(-code, signal.SIG_DFL)
        sys.stdout.flush()
        sys.stderr.flush()
        os.kill(os.getpid(), -code)
    return 128 - code


@contextmanager
def _passed_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals are the script's: Ctrl-C reaches it by itself, others are passed on."""

    def pass_on(number: int, frame: Any) -> None:
        child.send_signal(number)

    before = {signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None)}
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        number = getattr(signal, name, None)
        if number is not None:
            before[number] = signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
