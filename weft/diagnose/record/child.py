"""The recorded process: it runs a script or a module as Python itself would."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from types import TracebackType

from weft.core.errors import WeftError
from weft.core.files import sha256_file
from weft.diagnose.record.recorder import PACKAGE
from weft.diagnose.record.session import recording


def main() -> None:
    """Record what `launch.run` asks for: directory, kind, target, command, and its arguments.

    What the script raises goes on to Python, which does with it what it always does.
    """
    root, kind, target, command, *arguments = sys.argv[1:]
    sys.argv = [target, *arguments]
    home = Path.cwd() if kind == "module" else Path(target).resolve().parent
    first = os.getcwd() if kind == "module" else str(home)
    if not sys.flags.isolated:
        sys.path.insert(0, first)
    name = target if kind == "module" else Path(target).stem
    try:
        with recording(Path(root), name=name, command=command, home=home) as recorder:
            try:
                if kind == "module":
                    runpy.run_module(target, run_name="__main__", alter_sys=True)
                else:
                    script = os.path.abspath(target)
                    recorder.files[Path(target).name] = sha256_file(Path(script))
                    runpy.run_path(script, run_name="__main__")
            except BaseException:
                _hide_us()
                raise
            finally:
                for stream in (sys.stdout, sys.stderr):
                    if stream is not None and not stream.closed:
                        stream.flush()
    except WeftError as error:
        if _is_ours(error):
            sys.exit(f"error: {error}")
        raise


def _is_ours(error: WeftError) -> bool:
    """Whether the recording itself could not begin; the script may use Weft and raise, too."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == runpy.__file__ or _module_of(trace) == "runpy":
            return False
        trace = trace.tb_next
    return True


def _hide_us() -> None:
    """Have a traceback begin where the script does; the script's own hook is asked as before."""
    show = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        trace = error.__traceback__
        while trace is not None and _is_before_script(trace):
            trace = trace.tb_next
        show(kind, error.with_traceback(trace), trace)

    sys.excepthook = hook


def _is_before_script(trace: TracebackType) -> bool:
    file = trace.tb_frame.f_code.co_filename
    return file == "<string>" or _module_of(trace) in {"runpy", "contextlib"} or _in_package(file)


def _in_package(file: str) -> bool:
    return Path(file).is_relative_to(PACKAGE)


def _module_of(trace: TracebackType) -> str | None:
    return trace.tb_frame.f_globals.get("__name__")
