"""The bundled tasks. A new one is a file here and a line in `TASKS`."""

from __future__ import annotations

from weft.data.task import Task
from weft.data.tasks.conciseness import CONCISENESS
from weft.data.tasks.countdown import COUNTDOWN, COUNTDOWN_EASY
from weft.data.tasks.instruct import INSTRUCT
from weft.data.tasks.reviews import REVIEWS
from weft.data.tasks.tables import TABLES

TASKS: dict[str, Task] = {
    task.name: task for task in (INSTRUCT, TABLES, REVIEWS, COUNTDOWN, COUNTDOWN_EASY, CONCISENESS)
}
