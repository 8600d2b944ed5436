"""tables: answer a question about a table with SQL (rows in the text format of WikiSQL)."""

from __future__ import annotations

from weft.data.task import Task, bundled
from weft.data.templates import FORMATS

TABLES = Task("tables", FORMATS["tables"], bundled("tables"))
