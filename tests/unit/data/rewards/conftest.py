"""The tokenizer of the bundled base."""

from __future__ import annotations

from typing import Any

import pytest

from weft.data.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """The tokenizer of `weft/tiny`."""
    return load_tokenizer("weft/tiny")
