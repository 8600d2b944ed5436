"""instruct: follow an instruction (Alpaca rows)."""

from __future__ import annotations

from weft.data.task import Task, bundled
from weft.data.templates import FORMATS

INSTRUCT = Task("instruct", FORMATS["alpaca"], bundled("instruct"))
