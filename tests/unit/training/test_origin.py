"""A base is known by the hash of its weights, where both hashes are of the same dtype."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from weft.core.errors import InputError
from weft.engines.local import LocalEngine
from weft.training.origin import Origin, check_origins


@pytest.fixture
def engine(make_base):
    return LocalEngine(make_base("llama"))


@pytest.fixture
def origin(engine):
    return Origin("llama", engine.base.fingerprint(), "float32", Path("manifest.json"))


def test_the_same_weights_pass_and_others_do_not(engine, origin):
    assert check_origins([("mine", origin), ("other", None)], engine) == ()
    moved = replace(origin, sha256="0123456789abcdef")
    with pytest.raises(InputError, match="0123456789ab,.*has " + origin.sha256[:12]) as caught:
        check_origins([("mine", origin), ("theirs", moved)], engine)
    assert caught.value.problem.startswith("theirs belongs to other weights: manifest.json says")
    assert "--base" in caught.value.hint


def test_another_dtype_is_a_notice(engine, origin):
    (said,) = check_origins([("mine", replace(origin, dtype="bfloat16", sha256="0"))], engine)
    assert "taken in bfloat16, and the base is loaded in float32" in said


def test_an_engine_with_weights_of_its_own_form_says_so(origin):
    (said,) = check_origins([("mine", origin)], SimpleNamespace(name="mlx"))
    assert said.startswith("the mlx engine holds the base in a form of its own")


def test_weights_are_hashed_once_and_only_when_needed(engine, origin, monkeypatch):
    calls = []
    digest = origin.sha256
    monkeypatch.setattr(type(engine.base), "fingerprint", lambda base: calls.append(1) or digest)
    check_origins([("a", None), ("b", replace(origin, dtype="float16"))], engine)
    assert calls == []
    check_origins([("a", origin), ("b", origin)], engine)
    assert calls == [1]
