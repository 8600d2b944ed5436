from __future__ import annotations

from weft.core.errors import CheckFailed, InputError, NumericError, WeftError, did_you_mean


def test_hint_follows_after_a_blank_line():
    assert str(WeftError("it broke")) == "it broke"
    assert str(WeftError("it broke", "mend it")) == "it broke\n\nhint: mend it"


def test_exit_codes_tell_wrong_input_from_a_failed_check():
    assert (InputError("x").exit_code, CheckFailed("x").exit_code) == (2, 1)
    assert NumericError("x").exit_code == 1


def test_library_users_can_catch_builtin_kinds():
    assert isinstance(InputError("x"), ValueError)
    assert isinstance(NumericError("x"), ArithmeticError)


def test_only_near_words_are_suggested():
    assert did_you_mean("optimizer", ["optimiser", "steps"]) == "did you mean `optimiser`?"
    assert did_you_mean("zzz", ["optimiser", "steps"]) is None
