"""The recorded process: it runs a script or a module as Python itself would."""

from __future__ import annotations

import builtins
import os
import runpy
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from weft.core.errors import WeftError
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
        with recording(Path(root), name=name, command=command, home=home):
            try:
                if kind == "module":
                    runpy.run_module(target, run_name="__main__", alter_sys=True)
                else:
                    _run_script(os.path.abspath(target))
            except BaseException:
                _hide_us()
                raise
            finally:
                for stream in (sys.stdout, sys.stderr):
                    if stream is not None and not stream.closed:
                        stream.flush()
    except WeftError as error:
        if _is_ours(error):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        raise


class _Loader(SourceFileLoader):
    """Reads a script, and leaves no bytecode beside it, as Python does with the main one."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile it."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _run_script(path: str) -> None:
    """Run a file as `__main__`."""
    loader = _Loader("__main__", path)
    module = ModuleType("__main__")
    facts = {"__file__": path, "__loader__": loader, "__builtins__": builtins, "__cached__": None}
    vars(module).update(facts | {"__annotations__": {}})
    sys.modules["__main__"] = module
    loader.exec_module(module)


def _is_ours(error: WeftError) -> bool:
    """Whether the recording itself could not begin; the script may use Weft and raise, too."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith("<frozen"):  # runpy, or a loader
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
    if file.startswith("<frozen") or file == "<string>":
        return True
    return _module_of(trace) == "contextlib" or Path(file).is_relative_to(PACKAGE)


def _module_of(trace: TracebackType) -> str | None:
    return trace.tb_frame.f_globals.get("__name__")
