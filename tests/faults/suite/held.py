"""Faults of the held-out types inside runs of Weft."""

from __future__ import annotations

from tests.faults.suite.case import Case

HELD: tuple[Case, ...] = ()
