"""Weft trains, runs and explains LoRA adapters. The commands are functions here, too.

    import weft

    run = weft.train("instruct", ["steps=100"], run_dir="runs/mine")
    comparison = weft.compare("base", run.root)

Importing this module loads nothing else: a function brings what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from weft.analysis.compare import Comparison
    from weft.analysis.experiment import Findings
    from weft.diagnose.doctor import Checkup
    from weft.diagnose.finding import Diagnosis
    from weft.formats.certificate import Certificate
    from weft.model.config import DType
    from weft.training.ending import Outcome
    from weft.training.generate import Generation
    from weft.training.inspect import Inspection

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "compare",
    "diff",
    "doctor",
    "evaluate",
    "experiment",
    "export_adapter",
    "generate",
    "import_adapter",
    "inspect",
    "record",
    "train",
]

Watch = Callable[[int, int], None]
"""Called with rows done and rows in all."""


def train(
    config: str | Path, overrides: Sequence[str] = (), run_dir: str | Path | None = None
) -> Outcome:
    """Train what a recipe or a YAML file says, with `key=value` overrides.

    Without `run_dir` a new directory below `runs/` is made. Its figures are drawn, too. Several
    processes of one launch (such as torchrun's) divide the examples of every step; the first of
    them writes the run, and alone has its results.
    """
    from weft.core.launch import place
    from weft.engines.ranks import joined
    from weft.report.figures import draw_figures
    from weft.runs.reader import RunReader
    from weft.training.resolve import resolve
    from weft.training.train import train as start

    directory = None if run_dir is None else Path(run_dir)
    with joined(place()) as ranks:
        outcome = start(resolve(str(config), overrides), directory, ranks=ranks)
    if ranks.rank == 0:
        draw_figures(RunReader(outcome.root))
    return outcome


def diff(
    a: str | Path,
    b: str | Path,
    *,
    prove: bool = False,
    base: str | Path | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Say where two runs, recordings, adapters or configurations part, and why.

    With `prove`, suspected causes are exchanged between the two, on `base` where neither says on
    what they stand. The answer's `verdict` is same, unsure or different; `causes` come strongest
    first.
    """
    from weft.diagnose.diff import diff as compare_sides

    where = None if base is None else str(base)
    return compare_sides(str(a), str(b), prove=prove, base=where, seed=seed)


def doctor(thing: str | Path, *, base: str | None = None) -> Checkup:
    """Look at a run, a recording or an adapter by itself; loads no weights.

    `lints` of the answer are problems, warnings and what is fine, each with value and remedy.
    """
    from weft.diagnose.doctor import doctor as look

    return look(str(thing), base)


def experiment(
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
) -> Findings:
    """Train and compare what an experiment (its name or YAML file) says: arms x seeds.

    Without `out` a new directory below `runs/` is made. `resume` is the directory of one that was
    interrupted; then `config` may be left out, and must be the same where it is given. Tables, a
    figure and a page are in the directory; `Findings` holds curves, scores and differences.
    """
    from weft.core.errors import InputError
    from weft.report.experiment import write_experiment
    from weft.training import experiment as training
    from weft.training.experiment_config import read_design

    planned = None if config is None else training.plan(read_design(str(config), overrides))
    if resume is not None:
        return write_experiment(training.resume(Path(resume), planned))
    if planned is None:
        raise InputError("give the file of an experiment, or `resume` with its directory")
    return write_experiment(training.start(planned, None if out is None else Path(out)))


def evaluate(
    subject: str | Path,
    *,
    base: str | None = None,
    task: str | None = None,
    data: str | Path | None = None,
    split: str = "valid",
    rows: int | None = None,
    batch_size: int = 32,
    engine: str = "local",
    watch: Watch | None = None,
    notice: Callable[[str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Loss, perplexity and metric, or the reward, of every adapter that `subject` means, by name.

    `subject` is a run, an adapter directory, or `base`. Without `task` or `data` the rows are
    those that the run was trained with, and the loss is that of the run's objective. `engine` is
    `local` or `mlx`. `notice` is told what happened to rows: cut, dropped.
    """
    from weft.engines.reward import Reward
    from weft.training.completions import with_kl
    from weft.training.evaluate import evaluate as score
    from weft.training.objective import judging
    from weft.training.refs import data_for, load_split, locate, open_subject

    place = locate(str(subject))
    wanted = data_for([place], task=task, path=None if data is None else Path(data))
    opened = open_subject([str(subject)], base=base, engine=engine)
    goal = place.config.objective if place.config else None
    found = load_split(opened, wanted, split, goal)
    with judging(place.config, found) as (objective, more):
        if notice is not None:
            for text in (*opened.notices, *found.notices, *more):
                notice(text)
        scored = score(
            opened.engine,
            opened.bank,
            found,
            batch_size=batch_size,
            rows=rows,
            objective=objective,
            watch=watch,
        )
    if isinstance(objective, Reward) and engine == "local":
        scored = with_kl(scored, opened.local, opened.adapters, found)
    return {member: scored.record(member) for member in opened.bank.members}


def compare(
    a: str | Path,
    b: str | Path,
    *,
    base: str | None = None,
    task: str | None = None,
    data: str | Path | None = None,
    split: str = "valid",
    rows: int | None = None,
    batch_size: int = 8,
    prompts: int = 4,
    max_tokens: int = 64,
    watch: Watch | None = None,
) -> Comparison:
    """Losses, divergences on the same tokens, and texts of two runs, adapters or the base."""
    from weft.analysis.compare import compare as compared

    return compared(
        str(a),
        str(b),
        base=base,
        task=task,
        data=None if data is None else Path(data),
        split=split,
        rows=rows,
        batch_size=batch_size,
        prompts=prompts,
        max_tokens=max_tokens,
        watch=watch,
    )


def generate(
    *subjects: str | Path,
    prompts: str | Sequence[str] = (),
    messages: Sequence[Sequence[Mapping[str, str]]] = (),
    chat: bool | None = None,
    system: str | None = None,
    chat_template: str | Path | None = None,
    tokenizer_options: Mapping[str, Any] | None = None,
    stop_tokens: Sequence[str | int] = (),
    base: str | None = None,
    dtype: DType | None = None,
    device: str | None = None,
    engine: str | Mapping[str, Any] = "local",
    batch_size: int = 32,
    notice: Callable[[str], None] | None = None,
    record: str | Path | None = None,
    **parameters: Any,
) -> list[Generation]:
    """What runs, adapters and bases say on prompts: prompt by prompt, in it member by member.

    All members are decoded in one batch. A text of `prompts` is gone on from as it is, or is a
    user's turn with `chat=True`; an item of `messages` is a conversation for the chat template.
    `parameters` are the fields of `weft.model.decoding.Decoding`: `temperature` (0, which is
    greedy), `max_tokens`, `stop`, `seed` and so on. `engine` is a name, or a name with settings:
    `{"name": "vllm", "url": ...}`. Nothing is written but a recording for `diff`, in `record`,
    where that is given. Raises `InputError` for whatever is wrong, before the first token.
    """
    from weft.data.prompts import Style, asked, conversations
    from weft.engines.registry import engine_config
    from weft.training.generate import Source, open_generation

    texts = [prompts] if isinstance(prompts, str) else prompts
    template = None if chat_template is None else Path(chat_template)
    session = open_generation(
        [str(subject) for subject in subjects or ("base",)],
        Source(
            (*asked(texts), *conversations(messages)),
            style=Style(chat, system, template, tokenizer_options or {}),
        ),
        parameters,
        stop_tokens=stop_tokens,
        base=base,
        dtype=dtype,
        device=device,
        engine=engine if isinstance(engine, str) else engine_config(**{"name": "", **engine}),
    )
    if notice is not None:
        for text in session.notices:
            notice(text)
    if record is None:
        return [said for part in session.run(batch_size=batch_size) for said in part]
    from weft.diagnose.record.own import OwnRecording

    found = []
    with OwnRecording(session, Path(record), "weft.generate") as recording:
        for part in session.run(batch_size=batch_size, witness=recording.witness):
            recording.add(part)
            found += part
    return found


def inspect(subject: str | Path, *, base: str | None = None, replay: bool = False) -> Inspection:
    """What an adapter is: its sites, scales and norms, whether it acts, and what is odd.

    `replay` makes the adapters of a run again from its evidence, and compares bit for bit.
    """
    from weft.training.inspect import inspect as look

    return look(str(subject), base=base, replay=replay)


def export_adapter(
    subject: str | Path,
    to: str,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
) -> Certificate:
    """Write an adapter, or the one of a run, to `out` as `peft`, `mlx`, `npz` or `merged`.

    `merged` is a full model in `dtype` (default: that of the base's files). Source and result are
    both read back and run; where they are not the same function, `CheckFailed` is raised and
    nothing is left. The certificate also lies in `out`.
    """
    from weft.training.convert import carry_out, prepare

    job = prepare(str(subject), to, Path(out), base=base, dtype=dtype)
    return carry_out(job, job.read())


def import_adapter(
    source: str | Path,
    out: str | Path,
    *,
    from_format: str | None = None,
    base: str | None = None,
    scale: float | Literal["auto"] | None = None,
    task: str | None = None,
    data: str | Path | None = None,
    watch: Watch | None = None,
) -> Certificate:
    """Read an adapter in any format and write it to `out` in Weft's own, which is PEFT's.

    The format is told by the tensors; `from_format` only insists on one. `scale` goes before what
    the files say. Where they leave it open it must be given, or be "auto": then every scale that
    they may mean is scored on `data` or `task`, and `CheckFailed` is raised where the rows do not
    tell the best two apart. The certificate is as for `export_adapter`.
    """
    from weft.analysis.scale import import_adapter as bring

    return bring(
        str(source),
        Path(out),
        insist=from_format,
        base=base,
        scale=scale,
        task=task,
        data=None if data is None else Path(data),
        watch=watch,
    )


@contextmanager
def record(out: str | Path) -> Iterator[None]:
    """Record what PyTorch code in this block computes into the directory `out`, for `diff`.

    Results are those without it. What was computed before the block is not known, and functions
    that were imported by name before it (`from torch import argmax`) are not seen; `weft record`
    sees a whole program. Raises `InputError` where `out` is not empty.
    """
    import sys

    from weft.diagnose.record.session import recording

    script = Path(sys.argv[0])
    home = script.parent if script.is_file() else Path.cwd()
    with recording(Path(out), name=Path(out).name, command=" ".join(sys.argv), home=home):
        yield
