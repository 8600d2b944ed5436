"""reviews: is a review good or bad (SST-2 rows)?"""

from __future__ import annotations

from weft.data.task import Task, bundled
from weft.data.templates import FORMATS

REVIEWS = Task("reviews", FORMATS["sst2"], bundled("reviews"))
