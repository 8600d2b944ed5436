"""Numbers in sentences."""

from __future__ import annotations

from weft.diagnose.words import counted


def test_one_is_one_and_several_are_several() -> None:
    assert [counted(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert counted(2, "pass", "passes") == "2 passes"
    assert counted(1234567, "token") == "1,234,567 tokens"
