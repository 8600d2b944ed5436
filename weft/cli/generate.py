"""`weft generate`: text from a base, an adapter, a run, or several members at once."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import options, screen
from weft.core.errors import InputError

if TYPE_CHECKING:
    from weft.cli.texts import Texts
    from weft.training.generate import Session, Source

NAMES = {
    "temperature": "--temp",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "min_p": "--min-p",
    "repetition_penalty": "--repetition-penalty",
    "repetition_window": "--repetition-window",
    "order": "--order",
    "max_tokens": "--max-tokens",
    "stop": "--stop",
    "ignore_eos": "--ignore-eos",
    "seed": "--seed",
}
"""Parameters of decoding, and how the command line calls them."""

ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}
"""What a shell cannot write easily, in --stop."""


def generate(
    subjects: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|ADAPTER|base...",
            help="A run, an adapter directory, `base` or the name of a base; several are members "
            "of one batch.",
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Go on from this text [default: standard input]."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts: .jsonl with `prompt` or `messages`, or plain text, one a line.",
        ),
    ] = None,
    row: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="The row on this line of the data, with what is expected of it."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="--row is of a bundled task.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="--row is of your own data.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="--row is of this split: train, valid or test [default: valid]."
        ),
    ] = None,
    temp: Annotated[
        float | None, typer.Option(metavar="T", help="Temperature; 0 is greedy [default: 0].")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="Draw from the fewest tokens with this probability [default: 1]."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Draw from the K likeliest tokens [default: 0, which is all]."
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Draw from tokens of at least this share of the best one's probability "
            "[default: 0].",
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(metavar="X", help="Make seen tokens less likely [default: 1, which is off]."),
    ] = None,
    repetition_window: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Last tokens that the penalty sees [default: as --order says]."
        ),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            metavar="hf|mlx", help="Whose order of temperature and filters [default: hf]."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Longest completion [default: 128].")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help=r"End before this text; \n, \t, \r and \\ are read."),
    ] = None,
    stop_token: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKEN", help="End at this token, too: its exact name, or its id."),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the base's own stop tokens.")
    ] = False,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of draws [default: 0].")] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Put prompts into the chat template, or go on from them as they are [default: "
            "the template for `messages` only].",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message of conversations.")
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Jinja, instead of the tokenizer's own.")
    ] = None,
    tokenizer_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="add_special_tokens, split_special_tokens, or a variable of the chat template.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="local|mlx|vllm|sglang", help="What computes.")
    ] = "local",
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of the vllm or sglang server [default: its usual port]."),
    ] = None,
    base: options.Base = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="Of the base [default: the run's, else float32]."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="[default: the run's, else cpu]")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Prompts at once, for every member.")
    ] = 32,
    check_cache: Annotated[
        bool,
        typer.Option(
            "--check-cache", help="Compute every step again without the cache, and compare."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say everything that determines the text.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the records here (JSON lines).")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also leave a recording there, for `weft diff` and `weft doctor`."
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print records, one JSON object a line.")
    ] = False,
) -> None:
    """Generate text.

    Texts go to standard output, a single one as it is made; all else goes to standard error. What
    members of a run say is also appended to its samples.jsonl, with all that determined it.
    """
    from weft.cli.texts import Texts, report_cache
    from weft.core.files import check_place
    from weft.diagnose.record.own import OwnRecording, command_line
    from weft.engines.registry import engine_config
    from weft.model.check import CacheCheck
    from weft.runs.recording import refuse_to_mix
    from weft.training.generate import open_generation

    given = {
        "temperature": temp,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "repetition_window": repetition_window,
        "order": order,
        "max_tokens": max_tokens,
        "stop": tuple(map(_unescaped, stop)) if stop else None,
        "ignore_eos": ignore_eos or None,
        "seed": seed,
    }
    style = {
        "chat": chat,
        "system": system,
        "chat_template": chat_template,
        "options": _key_values(tokenizer_option or []),
    }
    if check_cache and engine != "local":
        raise InputError(
            f"--check-cache is for the local engine, and --engine is {engine}",
            hint="leave one of them out",
        )
    if out is not None:
        check_place(out, "--out")
    if record is not None:
        refuse_to_mix(record)
    source = _source(prompt, prompts, row, task, data, split, style)
    with screen.console().status("loading"):
        session = open_generation(
            subjects,
            source,
            {name: value for name, value in given.items() if value is not None},
            stop_tokens=stop_token or (),
            base=base,
            dtype=_dtype(dtype),
            device=device,
            engine=engine_config(engine, **({"url": url} if url is not None else {})),
            names=NAMES,
        )
    screen.notices(session.notices)
    if verbose:
        _show_parameters(session)
    check = CacheCheck() if check_cache else None
    texts = Texts(session, json=json)
    recording = None if record is None else OwnRecording(session, record, command_line())
    witness = recording.witness if recording else None
    run = session.run(batch_size=batch_size, on_token=texts.token, check=check, witness=witness)
    try:
        with texts, recording or nullcontext():
            for part in run:
                texts.show(part)
                if recording is not None:
                    recording.add(part)
        screen.say(texts.summary())
    except KeyboardInterrupt:
        texts.show_unfinished()
        raise typer.Exit(130) from None
    finally:
        _keep(session, texts, out)
        if recording is not None:
            screen.say(f"recorded: {recording.root}")
        session.subject.engine.close()
    if check is not None and not report_cache(check, session):
        raise typer.Exit(1)


def _source(
    prompt: list[str] | None,
    prompts: Path | None,
    row: list[int] | None,
    task: str | None,
    data: Path | None,
    split: str | None,
    style: dict[str, Any],
) -> Source:
    """The one source of prompts that was given; standard input where none was."""
    from weft.data.prompts import Style, asked
    from weft.training.generate import Source

    named = {"--prompt": prompt, "--prompts": prompts, "--row": row}
    given = [name for name, value in named.items() if value]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are both given", hint="give one of them")
    of_rows = {"--task": task, "--data": data, "--split": split}
    if not row and (said := [name for name, value in of_rows.items() if value is not None]):
        raise InputError(
            f"{said[0]} says which data --row is of, and there is no --row",
            hint="add --row N; a file of prompts is given with --prompts",
        )
    if row and any(value not in (None, {}) for value in style.values()):
        raise InputError(
            "--row is put to the model exactly as training read it: --chat, --raw, --system, "
            "--chat-template and --tokenizer-option cannot change it",
            hint="leave them out, or give the text with --prompt",
        )
    if not given:
        prompt = [_standard_input()]
    where = (task, data, split or "valid")
    return Source(asked(prompt or ()), prompts, row or (), *where, Style(**style))


def _standard_input() -> str:
    """All of it, without the line break at its end: one prompt."""
    hint = 'give --prompt "TEXT", --prompts FILE or --row N, or pipe a text into the command'
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("there is no prompt", hint=hint)
    try:
        said = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: {error}") from None
    if not said.strip():
        raise InputError("there is no prompt: standard input is empty", hint=hint)
    return said.removesuffix("\n").removesuffix("\r")


def _unescaped(text: str) -> str:
    r"""`\n`, `\t`, `\r` and `\\` as the characters they stand for; any other backslash stays."""
    import re

    return re.sub(r"\\[ntr\\]", lambda match: ESCAPES[match[0]], text)


def _key_values(settings: list[str]) -> dict[str, Any]:
    """key=value with JSON values; what is no JSON is text."""
    from json import loads

    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(
                f"--tokenizer-option {setting!r} is not KEY=VALUE",
                hint="such as --tokenizer-option add_special_tokens=false",
            )
        try:
            found[key] = loads(value)
        except ValueError:
            found[key] = value
    return found


def _dtype(name: str | None) -> Any:
    from typing import get_args

    from weft.model.config import DType

    known = get_args(DType)
    if name is not None and name not in known:
        raise InputError(f"--dtype is {name!r}", hint=f"there are {', '.join(known)}")
    return name


def _show_parameters(session: Session) -> None:
    """Everything that determines the texts, to stderr."""
    from weft.training.generate import scales_of

    engine, prints = session.subject.engine, session.origin["fingerprints"]
    facts = {"base": engine.ref + (f" ({prints['base'][:12]})" if "base" in prints else "")}
    for name, adapter in session.subject.adapters.items():
        scales = ", ".join(f"{scale:g}" for scale in scales_of(adapter))
        sha = prints["adapters"].get(name, "")[:12]
        facts[f"member {name}"] = f"scale {scales} ({sha})" if adapter else "the base itself"
    facts |= {f"engine {key}": value for key, value in engine.record().items()}
    facts |= {f"version {key}": value for key, value in session.origin["versions"].items()}
    facts |= screen.leaves(session.parameters(session.prompts[0]))
    if len({asked.mode for asked in session.prompts}) > 1:
        facts["prompt_mode"] = "the template for conversations, raw for the others"
    names = engine.tokenizer.convert_ids_to_tokens(list(session.stop_ids))
    facts["stop tokens"] = ", ".join(map(str, names)) or "none"
    for asked in session.prompts:
        facts[asked.id] = f"{len(asked.ids_T)} tokens: {asked.text!r}"
    screen.say(screen.pairs(facts))
    screen.say()


def _keep(session: Session, texts: Texts, out: Path | None) -> None:
    """Store what is complete: where --out says, and in the runs that said it."""
    from json import dumps

    from weft.core.files import write_atomic
    from weft.runs.samples import add_samples

    if out is not None and texts.done:
        lines = (screen.finite(session.record(each)) for each in texts.done)
        write_atomic(out, "".join(dumps(line, ensure_ascii=False) + "\n" for line in lines))
        screen.say(f"written: {out}")
    for run, said in texts.by_run().items():
        records = [session.record(each) for each in said]
        if add_samples(run, records):
            screen.say(f"stored: {run / 'samples.jsonl'}")
        else:
            screen.notices(
                [f"another process is writing the run {run}: the texts are not stored in it"]
            )
