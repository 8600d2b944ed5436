"""A configuration and a tokenizer to the splits of a run.

    splits = load_splits(config, tokenizer, ("train", "valid"), limit_context=1024)

Files are read, rows rendered and encoded, and what is wrong in any split is reported at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weft.core.batch import Choice, Example, Goal
from weft.core.errors import InputError
from weft.core.keys import Key
from weft.data.config import DataConfig
from weft.data.readers import read_rows
from weft.data.rows import BadRow, Reading, Row, RowProblem
from weft.data.show import token_text
from weft.data.sources import SPLITS, find_sources
from weft.data.split import Candidate, Item, Split
from weft.data.task import Task, task_of_format
from weft.data.tasks import TASKS
from weft.data.templates import FORMATS, Chat, Format, Made, Rendered, detect
from weft.data.tokens import Encoded, Encoder, encode_completions

if TYPE_CHECKING:
    from weft.data.plain import RowTokenizer

SHOWN_PROBLEMS = 5
CHUNK = 2000
"""Rows tokenised together."""
NO_PROMPT = ("text", "messages", "tokenized")
"""Formats that have no plain prompt to put into a chat template."""


def load_splits(
    config: DataConfig,
    tokenizer: RowTokenizer,
    splits: tuple[str, ...] = ("train", "valid"),
    limit_context: int | None = None,
    *,
    responses: bool = True,
) -> dict[str, Split]:
    """The asked splits. `limit_context` is the model's context, which no example may exceed.

    Without `responses` examples are prompts, with nothing supervised, and rows need no more than
    their prompt; a prompt that leaves no room for a completion is dropped and counted.
    Each notice stands in one split only: together they hold every fact once.
    """
    readings, notices = _read(config, splits)
    task, how = _task(config, readings, responses)
    notices += how
    if responses and config.train_on_prompt and task.format.name == "tokenized":
        notices.append("`data.train_on_prompt` has no effect: `labels` are used as they are")
    max_length = config.max_length
    if limit_context is not None and limit_context < max_length:
        max_length = limit_context
        notices.append(
            f"`data.max_length` is {config.max_length} and the model's context is "
            f"{limit_context} tokens: {limit_context} is used"
        )
    if not responses:
        given = {"train_on_prompt": config.train_on_prompt, "pad_target": config.pad_target}
        notices += [
            f"`data.{name}` has no effect: nothing is supervised"
            for name, on in given.items()
            if on
        ]
        config = config.model_copy(update={**dict.fromkeys(given, False), "append_eos": False})
    encoder = Encoder.of(tokenizer, config)
    encoded = {
        name: _encode(reading, task.format, encoder, config.chat, responses)
        for name, reading in readings.items()
    }
    bad = sorted(problem for _, problems in encoded.values() for problem in problems)
    if bad and config.on_bad_row == "stop":
        raise _bad_rows(bad, how)
    made_of = _Making(
        task,
        max_length,
        config.pad_target,
        responses,
        _candidates(tokenizer, task.candidates) if responses else (),
    )
    made = {name: _split(name, made_of, readings[name], *encoded[name]) for name in readings}
    first = made[splits[0]]
    return made | {first.name: replace(first, notices=(*notices, *first.notices))}


def available_splits(config: DataConfig) -> tuple[str, ...]:
    """The splits that can be asked for, a held-out validation split included."""
    sources = find_sources(config)
    held = ("valid",) if _holds_out(config, sources) else ()
    return tuple(name for name in SPLITS if name in (*sources, *held))


def can_chat(row_format: Format) -> bool:
    """Whether rows of a format are plain prompts, which a chat template can put into words."""
    return not row_format.candidates and row_format.name not in NO_PROMPT


def held_out(key: Key, n: int, fraction: float) -> frozenset[int]:
    """Which of `n` rows are held out: at least one, and never all."""
    count = min(max(1, round(n * fraction)), max(n - 1, 0))
    return frozenset(key.fold("held out").numpy().permutation(n)[:count].tolist())


def _read(config: DataConfig, splits: tuple[str, ...]) -> tuple[dict[str, Reading], list[str]]:
    """The rows of every asked split, before any is looked at."""
    sources = find_sources(config)
    holds_out = _holds_out(config, sources)
    known = available_splits(config)
    for name in splits:
        if name not in known:
            raise InputError(
                f"there are no {name} rows: the data has {', '.join(known)}",
                hint=f"give them as `data.{name}_path`" if name != "train" else None,
            )
    needed = {"train" if name == "valid" and holds_out else name for name in splits}
    readings = {name: read_rows(sources[name], name) for name in sources if name in needed}
    notices = []
    if holds_out and "train" in readings:
        whole = readings["train"]
        readings["train"], readings["valid"] = _hold_out(config, whole)
        notices.append(
            f"{len(readings['valid'].rows)} of {len(whole.rows)} training rows are held out for "
            f"validation (`data.valid_fraction` {config.valid_fraction}, `data.split_seed` "
            f"{config.split_seed})"
        )
    if config.rows is not None and "train" in readings:
        readings["train"] = replace(readings["train"], rows=readings["train"].rows[: config.rows])
    if config.test_samples is not None and "test" in readings:
        readings["test"], notice = _sampled(config, config.test_samples, readings["test"])
        notices.append(notice)
    return {name: readings[name] for name in splits}, notices


def _holds_out(config: DataConfig, sources: Iterable[str]) -> bool:
    return "train" in sources and "valid" not in sources and config.valid_fraction > 0


def _hold_out(config: DataConfig, whole: Reading) -> tuple[Reading, Reading]:
    """Training and validation rows; what is bad or blank in the file counts as training."""
    out = held_out(Key.of(config.split_seed), len(whole.rows), config.valid_fraction)
    train = [row for i, row in enumerate(whole.rows) if i not in out]
    valid = [row for i, row in enumerate(whole.rows) if i in out]
    return replace(whole, rows=train), Reading(whole.origin, valid)


def _sampled(config: DataConfig, size: int, whole: Reading) -> tuple[Reading, str]:
    """A random subset of the test rows in their order, and a notice that says so."""
    n = len(whole.rows)
    if size >= n:
        return whole, f"`data.test_samples` is {size}, and there are {n} test rows: all are used"
    drawn = Key.of(config.split_seed).fold("test samples").numpy().permutation(n)[:size]
    notice = (
        f"{size} of {n} test rows are used (`data.test_samples`, drawn with `data.split_seed` "
        f"{config.split_seed})"
    )
    return replace(whole, rows=[whole.rows[i] for i in sorted(drawn)]), notice


def _task(
    config: DataConfig, readings: dict[str, Reading], responses: bool
) -> tuple[Task, list[str]]:
    """The task, and a notice where its format was guessed."""
    task, how = _guessed_task(config, readings, responses)
    if config.chat and not can_chat(task.format):
        raise InputError(
            f"`data.chat` puts plain prompts into a chat template, and rows of format "
            f"{task.format.name} are not such prompts",
            hint="leave `data.chat` out",
        )
    if config.verbalizers is None:
        return task, how
    return replace(task, format=task.format.choosing(config.verbalizers)), how


def _guessed_task(
    config: DataConfig, readings: dict[str, Reading], responses: bool
) -> tuple[Task, list[str]]:
    if config.task is not None:
        return TASKS[config.task], []
    if config.format != "auto":
        return task_of_format(FORMATS[config.format]), []
    rows = [row for reading in readings.values() for row in reading.rows]
    if not rows:
        bad = [problem for reading in readings.values() for problem in reading.bad]
        raise _bad_rows(bad) if bad else InputError(f"{config.path} has no rows")
    found, row = detect(rows, responses=responses)
    shown = "label" if found.telling else "text" if found.recognises else "fields"
    notice = f"format {found.name}, by the {shown} of {row.file}:{row.line}"
    if config.chat_template is not None and found.name != "messages" and not config.chat:
        raise InputError(f"`data.chat_template` applies to `messages`, and this is {notice}")
    return task_of_format(found), [notice]


def _encode(
    reading: Reading, row_format: Format, encoder: Encoder, chat: bool, responses: bool
) -> tuple[list[tuple[Row, Encoded]], list[BadRow]]:
    """Every row of a reading, not cut yet, and all that cannot be used."""
    good: list[tuple[Row, Encoded]] = []
    bad = list(reading.bad)
    render = row_format.render if responses or row_format.pose is None else row_format.pose
    encode = encoder.encode if responses else encoder.pose
    for start in range(0, len(reading.rows), CHUNK):
        rendered: list[tuple[Row, Made]] = []
        for row in reading.rows[start : start + CHUNK]:
            try:
                made = render(row.value)
            except RowProblem as problem:
                bad.append(row.bad(problem))
                continue
            rendered.append((row, _asked_by_a_user(made) if chat else made))
        encoded = encode([each for _, each in rendered])
        for (row, _), result in zip(rendered, encoded, strict=True):
            if isinstance(result, RowProblem):
                bad.append(row.bad(result))
            elif responses and not result.has_response:
                bad.append(row.bad("no token is supervised: there is no response to learn"))
            else:
                good.append((row, result))
    return good, bad


def _asked_by_a_user(made: Made) -> Chat:
    assert isinstance(made, Rendered)  # other formats are refused
    return Chat(
        (
            {"role": "user", "content": made.prompt},
            {"role": "assistant", "content": made.completion},
        )
    )


@dataclass(frozen=True)
class _Making:
    """How encoded rows become the items of a split."""

    task: Task
    max_length: int
    pad_target: bool
    responses: bool
    candidates: tuple[Candidate, ...]

    @property
    def room(self) -> int:
        """Tokens that there must be after a prompt, whatever follows it."""
        if not self.responses:
            return 1
        return max((len(candidate.ids) for candidate in self.candidates), default=0)

    @property
    def lost(self) -> str:
        """What a row lacks that is dropped."""
        if not self.responses:
            return "room for a completion"
        return "room for every candidate" if self.candidates else "response"


def _split(
    name: str,
    making: _Making,
    reading: Reading,
    encoded: list[tuple[Row, Encoded]],
    bad: list[BadRow],
) -> Split:
    """Cut the rows to length, drop those that lose their whole response, and count.

    Between candidates, no row stays of which one would be cut.
    """
    task, max_length, candidates = making.task, making.max_length, making.candidates
    lost = making.lost
    cut = ((row, whole, whole.cut(max_length)) for row, whole in encoded)
    items = tuple(
        Item(
            Example(
                f"{reading.origin}:{row.line}",
                used.ids_T,
                used.labels_T,
                _choice(whole, candidates) if candidates else None,
                Goal(used.ids_T[: whole.prompt_length], row.value),
            ),
            row.value,
            whole.prompt,
            whole.response,
            whole.prompt_length,
            truncated=short is not whole,
            full_length=None if short is whole else len(whole.ids_T),
        )
        for row, whole, short in cut
        if short is whole or short.has_response or not making.responses
        if whole.prompt_length + making.room <= max_length
        for used in (short.padded(max_length) if making.pad_target else short,)
    )
    counts = {
        "read": len(encoded) + len(bad),
        "blank": reading.blank,
        "bad": len(bad),
        "dropped_truncated": len(encoded) - len(items),
        "truncated": sum(item.truncated for item in items),
        "kept": len(items),
        "tokens": sum(item.example.tokens for item in items),
        "supervised_tokens": sum(item.example.supervised for item in items),
        "longest": max((item.example.tokens for item in items), default=0),
    }
    if not items:
        raise InputError(
            f"no {name} rows are left: {counts['read']} read, {counts['bad']} bad, "
            f"{counts['dropped_truncated']} without {lost} within {max_length} tokens",
            hint=_hint_when_empty(counts, bad),
        )
    notices = _notices(name, counts, bad, lost, max_length)
    return Split(name, task, items, max_length, counts, notices, candidates)


def _candidates(tokenizer: RowTokenizer, texts: Sequence[str]) -> tuple[Candidate, ...]:
    """Candidates as they go on from a prompt; an error where their tokens tell no two apart."""
    made: list[Candidate] = []
    for text, ids in zip(texts, encode_completions(tokenizer, texts), strict=True):
        if not ids:
            raise InputError(f"the tokenizer has no tokens for the candidate {text!r}")
        pieces = tuple(token_text(tokenizer, token) for token in ids)
        candidate = Candidate(text, tuple(ids), pieces)
        for other in made:
            if other.ids == candidate.ids:
                raise InputError(
                    f"the candidates {other.text!r} and {text!r} are the same tokens: "
                    f"{other.shown}",
                    hint="choose other words: `data.verbalizers`",
                )
        made.append(candidate)
    return tuple(made)


def _choice(whole: Encoded, candidates: Sequence[Candidate]) -> Choice:
    texts = [candidate.text for candidate in candidates]
    return Choice(
        whole.ids_T[: whole.prompt_length],
        tuple(candidate.ids for candidate in candidates),
        texts.index(whole.response),
    )


def _notices(
    name: str, counts: dict[str, int], bad: list[BadRow], lost: str, limit: int
) -> tuple[str, ...]:
    dropped, truncated = counts["dropped_truncated"], counts["truncated"]
    notices = []
    if bad:
        notices.append(f"{name}: bad rows skipped: {len(bad)}, the first: {min(bad)}")
    if dropped:
        notices.append(f"{name}: rows dropped, with no {lost} within {limit} tokens: {dropped}")
    if truncated:
        notices.append(f"{name}: rows cut to {limit} tokens: {truncated}")
    return tuple(notices)


def _hint_when_empty(counts: dict[str, int], bad: list[BadRow]) -> str:
    if counts["dropped_truncated"]:
        return "raise `data.max_length`"
    if bad:
        return f"the first bad row: {min(bad)}"
    return "add rows, or give validation rows as `data.valid_path`"


def _bad_rows(bad: list[BadRow], guesses: Sequence[str] = ()) -> InputError:
    """All that cannot be used as one error; what was guessed of the rows may be the reason."""
    lines = [f"  {problem}" for problem in bad[:SHOWN_PROBLEMS]]
    if len(bad) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(bad) - SHOWN_PROBLEMS} more")
    rows = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
    hint = "mend the data, or set `data.on_bad_row=skip` to drop and count such rows"
    for guess in guesses:
        hint += f"; this is {guess}, and `data.format` can say otherwise"
    return InputError("\n".join([f"{rows} cannot be used:", *lines]), hint)
