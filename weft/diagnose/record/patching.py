"""Functions of libraries replaced for a while, also of libraries that are imported only later."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Undo = Callable[[], None]
"""Puts back what was there."""


def replace(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> Undo:
    """Put `make(original)` in the place of a function of a class or module.

    Class and static methods stay such. What somebody else has put there since is left alone when
    this is undone; a replacement must therefore look only while `recorder.watching`.
    """
    inherited = name not in vars(owner)
    raw = inspect.getattr_static(owner, name)
    kind = type(raw) if isinstance(raw, classmethod | staticmethod) else None
    original = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
    made = make(original)
    functools.update_wrapper(made, original)
    placed: Any = made if kind is None else kind(made)
    setattr(owner, name, placed)

    def undo() -> None:
        if inspect.getattr_static(owner, name, None) is not placed:
            return
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, raw)

    return undo


def together(undos: Sequence[Undo]) -> Undo:
    """One that does all, newest first. It reads the sequence when called: more may be added."""

    def undo() -> None:
        for each in reversed(undos):
            each()

    return undo


def when_imported(name: str, act: Callable[[ModuleType], None]) -> Undo:
    """Call `act` with a module: now if it is there, else as soon as somebody has imported it."""
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        act(module)
        return lambda: None
    finder = _finder()
    waiting = finder.waiting.setdefault(name, [])
    waiting.append(act)

    def undo() -> None:
        if act in waiting:
            waiting.remove(act)
        if not any(finder.waiting.values()) and finder in sys.meta_path:
            sys.meta_path.remove(finder)

    return undo


class _Finder(MetaPathFinder):
    """Finds nothing itself: it has the loader that is found say when the module is complete."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Callable[[ModuleType], None]]] = {}
        self._asking: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self.waiting.get(fullname) or fullname in self._asking:
            return None
        self._asking.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)  # by all finders
        finally:
            self._asking.discard(fullname)
        loader: Any = spec.loader if spec else None
        if loader is None or not hasattr(loader, "exec_module"):
            return None
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            run(module)
            for act in tuple(self.waiting.get(fullname, ())):
                act(sys.modules.get(fullname, module))

        loader.exec_module = exec_module
        return spec


def _finder() -> _Finder:
    for each in sys.meta_path:
        if isinstance(each, _Finder):
            return each
    made = _Finder()
    sys.meta_path.insert(0, made)
    return made
