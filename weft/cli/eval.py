"""`weft eval`: loss, perplexity and the task's own metrics of a run, an adapter or a base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.cli import options, screen
from weft.cli.progress import rows_progress

if TYPE_CHECKING:
    from weft.training.refs import Place


SAME = ("split", "objective", "num_examples", "supervised_tokens", "metric")
"""What two records of one measurement have in common."""


def evaluate(
    subject: options.Subject,
    base: options.Base = None,
    task: options.Task = None,
    data: options.Data = None,
    split: options.Split = "valid",
    rows: options.Rows = None,
    batch_size: options.BatchSize = 32,
    engine: options.Engine = "local",
    out: options.Out = None,
    json: options.Json = False,
) -> None:
    """Score a run, an adapter or the base.

    Prints loss, perplexity and the task's own metrics on the data that the run was trained with,
    unless --task or --data says otherwise. What is measured of a run also goes to its results/.
    """
    from weft import evaluate as score
    from weft.core.files import write_json
    from weft.training.refs import locate

    place = locate(subject)
    notices: list[str] = []
    with rows_progress("scoring") as watch:
        records = score(
            subject,
            base=base,
            task=task,
            data=data,
            split=split,
            rows=rows,
            batch_size=batch_size,
            engine=engine,
            watch=watch,
            notice=notices.append,
        )
    screen.notices(notices)
    written = []
    if place.run is not None and base is None:
        written = _write_results(place, records, _suffix(task, data, split, rows, engine))
    if out is not None:
        write_json(out, _unwrapped(records))
        written.append(out)
    if json:
        screen.put_json(_unwrapped(records))
        return
    screen.put(_table(records))
    first = next(iter(records.values()))
    screen.say()
    tokens = f", {first['supervised_tokens']:,} supervised tokens" if _of_tokens(first) else ""
    screen.say(f"{split}: {first['num_examples']:,} rows{tokens}")
    for why, count in first.get("failures", {}).items():
        screen.say(f"not graded: {count:,} ({why})")
    if engine != "local":
        screen.say(f"engine: {engine}")
    for path in written:
        screen.say(f"written: {path}")


def _table(records: Mapping[str, Mapping[str, Any]]) -> Any:
    first = next(iter(records.values()))
    if first["objective"] == "reward":
        reward, *parts = first["metrics"]
        names = [reward, "standard_error", *parts]
    else:
        names = ["eval_loss", *["perplexity"] * _of_tokens(first), *first["metrics"]]
    rows = [(ref, *(screen.number(r[name]) for name in names)) for ref, r in records.items()]
    header = [name.removeprefix("eval_").replace("_", " ") for name in names]
    return screen.table(("", *header), rows)


def _of_tokens(record: Mapping[str, Any]) -> bool:
    """Whether a loss is a mean over tokens, and has a perplexity; a choice is one of rows."""
    return "token_accuracy" in record["metrics"]


def _unwrapped(records: Mapping[str, Any]) -> Any:
    """The record itself when there is one, as in eval.json; several by member."""
    return next(iter(records.values())) if len(records) == 1 else dict(records)


def _suffix(task: str | None, data: Path | None, split: str, rows: int | None, engine: str) -> str:
    """What tells this measurement from the run's own validation, which is `eval` alone."""
    parts = [task, data.stem if data else None, split if split != "valid" else None]
    parts += [f"first-{rows}" if rows else None, engine if engine != "local" else None]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "".join(f"-{part}" for part in parts if part))


def _write_results(place: Place, records: Mapping[str, Any], suffix: str) -> list[Path]:
    """One file a member; which adapter was kept, and of which step, stays in `eval.json`."""
    from weft.core.files import write_json
    from weft.runs.reader import RunReader

    assert place.run is not None
    reader = RunReader(place.run)
    written = []
    for member, record in records.items():
        name = f"eval{suffix}" if len(records) == 1 else f"eval-{member}{suffix}"
        known = reader.results(name) if name in reader.result_names() else {}
        if "kept" in known and any(known.get(key) != record[key] for key in SAME):
            # the run's own evaluation, of something else: it stays as it is
            name = f"{name}-{record['split']}-{record['num_examples']}-rows-{record['metric']}"
            known = {}
        kept = {key: known[key] for key in ("kept", "step", "commits") if key in known}
        path = reader.layout.result(name)
        write_json(path, {**record, **kept})
        written.append(path)
    return written
