"""What a run's `data` section may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from weft.core.errors import did_you_mean
from weft.data.tasks import TASKS

FormatName = Literal[
    "auto",
    "text",
    "prompt_completion",
    "alpaca",
    "messages",
    "sst2",
    "rte",
    "boolq",
    "cb",
    "tables",
    "countdown",
    "conciseness",
    "tokenized",
]


class DataConfig(BaseModel):
    """Where the rows come from, and how they become tokens and labels."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: str | None = None
    """A bundled task: instruct, tables, reviews, countdown, countdown-easy or conciseness. Give
    this or `path`."""

    path: Path | None = None
    """Your own rows: a .jsonl, .json, .parquet or .tsv file, a folder with train, valid and test
    files, or a dataset folder saved by Hugging Face `datasets`. Give this or `task`."""

    valid_path: Path | None = None
    """Validation rows, where `path` does not hold them."""

    test_path: Path | None = None
    """Test rows, where `path` does not hold them."""

    format: FormatName = "auto"
    """How a row is read. `auto` decides by the fields of the first row, and says what it chose;
    a `text` that is a question about a table makes it `tables`."""

    max_length: int = Field(512, ge=2)
    """Longest example in tokens. Longer ones lose their end; a row that would lose its whole
    response is dropped and counted."""

    on_bad_row: Literal["stop", "skip"] = "stop"
    """What a row that cannot be used does: stop the run before it starts, or be dropped and
    counted."""

    train_on_prompt: bool = False
    """Supervise the prompt as well as the response."""

    pad_target: bool = False
    """Supervise one padding token, id 0, after each row that is shorter than `max_length`, as
    mlx-lm's loss does: to compare losses with it."""

    append_eos: bool = True
    """Put the tokenizer's end-of-sequence token after the response, and supervise it."""

    verbalizers: tuple[str, ...] | None = None
    """The words that are chosen between, in the order of the labels, instead of the format's own
    (`sst2`, `rte`, `boolq`, `cb`). The space before them is the format's."""

    chat: bool = False
    """Put each prompt into words as a user's turn, by the chat template of the tokenizer. Rows of
    format `messages` are conversations anyway."""

    chat_template: Path | None = None
    """A Jinja file to use instead of the tokenizer's own chat template (with `chat`, or for format
    `messages`)."""

    rows: PositiveInt | None = None
    """Use only the first rows of the training split, this many."""

    test_samples: PositiveInt | None = None
    """Use only a random subset of the test split, of this size: always the same one, drawn with
    `split_seed`."""

    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the training rows held out for validation where no validation rows are given.
    0 holds out nothing."""

    split_seed: int = 0
    """Chooses the held-out rows, and those of `test_samples`. Not the run's seed: runs that differ
    in seed validate on the same rows."""

    @field_validator("verbalizers", mode="before")
    @classmethod
    def _no_truth_values(cls, words: Any) -> Any:
        if isinstance(words, list) and any(isinstance(word, bool) for word in words):
            raise ValueError('a bare Yes or No is a truth value in YAML: write "Yes", "No"')
        return words

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.task is None and self.path is None:
            raise ValueError(
                f"give `data.task` (one of {', '.join(TASKS)}) or `data.path` (your own rows)"
            )
        if self.task is not None and self.path is not None:
            raise ValueError(
                f"`data.task` is {self.task!r} and `data.path` is {str(self.path)!r}: give only one"
            )
        if self.task is not None:
            self._check_task(self.task)
        unused = self.format not in ("auto", "messages") and not self.chat
        if self.chat_template is not None and unused:
            raise ValueError(
                f"`data.chat_template` applies to `messages`, and `data.format` is {self.format!r}:"
                " set `data.chat=true` to put its prompts into it"
            )
        if self.verbalizers is not None:
            _check_words(self.verbalizers)
        return self

    def _check_task(self, task: str) -> None:
        if task not in TASKS:
            near = did_you_mean(task, list(TASKS))
            raise ValueError(
                f"there is no task {task!r}; the tasks are {', '.join(TASKS)}"
                + (f" ({near})" if near else "")
            )
        fixed = [
            f"`data.{name}`"
            for name, given in (
                ("valid_path", self.valid_path is not None),
                ("test_path", self.test_path is not None),
                ("format", self.format != "auto"),
                ("chat_template", self.chat_template is not None and not self.chat),
            )
            if given
        ]
        if fixed:
            raise ValueError(f"{' and '.join(fixed)}: only with `data.path`; task {task!r} has it")


def _check_words(words: tuple[str, ...]) -> None:
    for word in words:
        if word != word.strip() or not word:
            raise ValueError(
                f"`data.verbalizers` has {word!r}: give words without space around them; the "
                "format puts a space before them where its prompt needs one"
            )
        if words.count(word) > 1:
            raise ValueError(f"`data.verbalizers` has {word!r} twice")
