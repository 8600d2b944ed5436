"""countdown: make a target of some numbers. countdown-easy is for the bundled base."""

from __future__ import annotations

from weft.data.task import Task, bundled
from weft.data.templates import FORMATS

COUNTDOWN = Task("countdown", FORMATS["countdown"], bundled("countdown"))
COUNTDOWN_EASY = Task("countdown-easy", FORMATS["countdown"], bundled("countdown-easy"))
