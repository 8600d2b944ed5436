"""conciseness: answer with as many characters as the answer has."""

from __future__ import annotations

from weft.data.task import Task, bundled
from weft.data.templates import FORMATS

CONCISENESS = Task("conciseness", FORMATS["conciseness"], bundled("conciseness"))
