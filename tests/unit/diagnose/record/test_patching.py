from __future__ import annotations

import sys
from pathlib import Path

import pytest

from weft.diagnose.record.patching import replace, together, when_imported


class Owner:
    def method(self):
        return "method"

    @classmethod
    def maker(cls):
        return cls.__name__

    @staticmethod
    def helper():
        return "helper"


class Heir(Owner):
    pass


def shout(original):
    def loud(*args, **kwargs):
        return original(*args, **kwargs).upper()

    return loud


@pytest.mark.parametrize("name", ["method", "maker", "helper"])
@pytest.mark.parametrize("owner", [Owner, Heir])
def test_a_replacement_keeps_the_kind_of_a_function_and_is_undone(owner, name):
    before = vars(owner).get(name)
    plain = getattr(owner(), name)()
    undo = replace(owner, name, shout)
    assert getattr(owner(), name)() == plain.upper()
    assert getattr(owner, name).__name__ == name
    undo()
    assert vars(owner).get(name) is before


def test_what_somebody_else_has_put_there_since_stays():
    undo = replace(Heir, "method", shout)
    later = Heir.method = lambda self: "later"
    undo()
    assert Heir.method is later
    del Heir.method


def test_replacements_are_undone_newest_first():
    undos = [replace(Owner, "method", shout)]
    undo = together(undos)
    undos.append(replace(Owner, "method", lambda original: lambda self: "second"))
    undo()
    assert Owner().method() == "method"


def test_a_module_is_told_of_as_soon_as_it_is_complete(tmp_path: Path, monkeypatch):
    (tmp_path / "later_on.py").write_text("value = 1\nfinished = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    undo = when_imported("later_on", lambda module: seen.append(module.finished))
    assert seen == []
    import later_on

    assert seen == [True]
    assert "exec_module" not in vars(later_on.__spec__.loader)
    undo()
    del sys.modules["later_on"]
    import later_on

    assert seen == [True]
    del sys.modules["later_on"]


def test_a_module_that_is_there_is_told_of_at_once():
    seen = []
    when_imported("json", seen.append)
    assert seen == [sys.modules["json"]]


def test_an_import_that_fails_fails_as_ever(tmp_path: Path, monkeypatch):
    (tmp_path / "broken_on.py").write_text("raise ValueError('mine')\n")
    monkeypatch.syspath_prepend(tmp_path)
    undo = when_imported("broken_on", lambda module: pytest.fail("it is not complete"))
    with pytest.raises(ValueError, match="mine"):
        import broken_on  # noqa: F401
    undo()


def test_nothing_is_left_among_the_finders():
    before = list(sys.meta_path)
    undo = when_imported("no_such_module_at_all", lambda module: None)
    assert len(sys.meta_path) == len(before) + 1
    undo()
    assert sys.meta_path == before
