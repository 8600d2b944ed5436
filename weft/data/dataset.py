"""A configuration and a tokenizer to the splits of a run: examples with what they came from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import batched
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.core.batch import Example
from weft.core.errors import InputError
from weft.core.keys import Key
from weft.data.config import DataConfig
from weft.data.readers import read_rows
from weft.data.rows import BadRow, Reading, Row, RowProblem
from weft.data.sources import find_sources
from weft.data.task import Task, task_of_format
from weft.data.tasks import TASKS
from weft.data.templates import FORMATS, detect
from weft.data.tokens import Encoded, Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
