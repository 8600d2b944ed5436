"""`weft generate`: texts on stdout and nothing else there, records in files."""

from __future__ import annotations

import io
import json
import re
import shutil

import pytest

from weft.cli.generate import NAMES, _unescaped, generate
from weft.model.decoding import Decoding
from weft.runs.layout import RunLayout
from weft.runs.reader import RunReader


@pytest.fixture
def mine(run, tmp_path):
    """A copy of the run, to write into."""
    return shutil.copytree(run, tmp_path / "mine")


@pytest.fixture
def typed(monkeypatch):
    """Put something on standard input."""

    def put(text: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))

    return put


def one(cli, *arguments):
    """The record of the only completion."""
    said = cli("generate", *arguments, "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)


def test_one_text_is_all_there_is_on_stdout(cli, small_base):
    options = (small_base, "--prompt", "the cat", "--max-tokens", 20, "--temp", 1, "--seed", 4)
    record = one(cli, *options)
    said = cli("generate", *options)
    assert said.out == record["text"] + "\n"
    count = len(record["ids"])
    summary = rf"{count} tokens in [\d.]+ s, [\d,]+ tokens/s; ended after --max-tokens\n"
    assert re.search(summary, said.err)


@pytest.mark.parametrize("seed", range(4))
def test_what_streams_is_the_text_with_characters_and_stops_across_tokens(cli, small_base, seed):
    """A random base with a byte-level tokenizer says parts of characters most of the time."""
    options = [small_base, "--prompt", "the", "--max-tokens", 40, "--temp", 3, "--seed", seed]
    free = one(cli, *options)
    assert "\ufffd" in free["text"]
    stop = free["text"][6:9]
    for more in ([], ["--stop", stop, "--stop", "never said"]):
        record = one(cli, *options, *more)
        assert cli("generate", *options, *more).out == record["text"] + "\n"
    assert record["stopped_by"] == stop
    assert record["text"] == free["text"].partition(stop)[0]


def test_tokens_are_printed_as_they_are_made(cli, small_base, monkeypatch):
    pieces = []
    monkeypatch.setattr("weft.cli.texts.Texts._write", lambda self, text: pieces.append(text))
    options = ("--prompt", "the cat", "--max-tokens", 6, "--ignore-eos")
    cli("generate", small_base, *options)
    assert len(pieces) == 6 + 1  # and what was held back, with the line break


def test_the_same_seed_says_the_same_and_another_something_else(cli, mine):
    options = (mine, "--prompt", "the cat", "--temp", 0.8, "--max-tokens", 20)
    first = cli("generate", *options, "--seed", 1).out
    assert cli("generate", *options, "--seed", 1).out == first
    with_mates = cli("generate", *options, "--seed", 1, "--prompt", "the dog", "--json").out
    assert json.loads(with_mates.splitlines()[0])["text"] + "\n" == first
    assert cli("generate", *options, "--seed", 2).out != first
    assert cli("generate", *options).out == cli("generate", *options, "--seed", 0).out


def test_several_texts_have_headers(cli, small_base, mine):
    said = cli("generate", small_base, mine, *("--prompt", "the cat"), *("--prompt", "a\nmat" * 40))
    lines = said.out.splitlines()
    assert lines[:2] == ["== prompt:1: the cat", f"-- {small_base}"]
    assert lines.count(f"-- {mine}") == 2
    (second,) = [line for line in lines if line.startswith("== prompt:2")]
    assert second.startswith("== prompt:2: ...") and second.endswith("mata mat")
    assert "4 texts, " in said.err


def test_a_run_keeps_what_it_says(cli, mine, small_base):
    prompts = ("--prompt", "the cat", "--prompt", "the dog", "--max-tokens", 5)
    said = cli("generate", mine, small_base, *prompts, "--json", "--out", "all.jsonl")
    assert f"stored: {mine}/samples.jsonl" in said.err
    printed = [json.loads(line) for line in said.out.splitlines()]
    with open("all.jsonl", encoding="utf-8") as file:
        written = [json.loads(line) for line in file]
    kept = RunReader(mine).samples()
    assert printed == written
    assert kept == [record for record in printed if record["member"] == str(mine)]
    promised = {"id", "member", "prompt", "prompt_ids", "text", "ids", "finish", "stopped_by"}
    promised |= {"parameters", "fingerprints", "engine", "versions", "base", "scale"}
    assert promised <= kept[0].keys()
    cli("generate", mine, *prompts)
    assert len(RunReader(mine).samples()) == 4


def test_a_base_or_an_adapter_keeps_nothing_unasked(cli, mine, tmp_path):
    before = set(tmp_path.rglob("*"))
    assert cli("generate", mine / "adapter", "--prompt", "the cat", "--max-tokens", 3).code == 0
    assert set(tmp_path.rglob("*")) == before


def test_a_run_that_is_being_written_is_not_touched(cli, mine):
    from filelock import FileLock

    with FileLock(RunLayout(mine).lock):
        said = cli("generate", mine, "--prompt", "the cat", "--max-tokens", 3)
    assert said.code == 0 and said.out
    assert "note: another process is writing the run" in said.err
    assert not RunLayout(mine).samples.exists()


def test_standard_input_is_one_prompt(cli, small_base, typed):
    typed("the cat\nsät\n".encode())
    assert one(cli, small_base, "--max-tokens", 3)["prompt"] == "the cat\nsät"


def test_a_file_of_prompts_and_a_conversation(cli, small_base, tmp_path):
    rows = [{"prompt": "the cat"}, {"messages": [{"role": "user", "content": "the dog"}]}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own.jinja").write_text("<{{ messages[0]['content'] }}>")
    options = ("--prompts", "p.jsonl", "--chat-template", "own.jinja", "--max-tokens", 3)
    said = cli("generate", small_base, *options, "--json")
    records = [json.loads(line) for line in said.out.splitlines()]
    assert [r["prompt"] for r in records] == ["the cat", "<the dog>"]
    assert [r["parameters"]["prompt_mode"] for r in records] == ["raw", "chat"]


def test_a_line_break_can_be_written_in_a_shell(cli, small_base):
    assert _unescaped(r"\n\n") == "\n\n"
    assert _unescaped(r"a\tb\\n\d") == "a\tb" + r"\n\d"
    options = (small_base, "--prompt", "the", "--max-tokens", 2, "--stop", r"\n#", "--stop", "é")
    assert one(cli, *options)["parameters"]["stop"] == ["\n#", "é"]


def test_a_row_is_shown_with_what_is_expected(cli, mine):
    said = cli("generate", mine, "--row", 3, "--max-tokens", 4)
    assert said.code == 0, said.err
    lines = [re.split(r" {2,}", line.strip()) for line in said.out.splitlines()]
    labels = {line[0]: line[-1] for line in lines}
    (record,) = RunReader(mine).samples()
    assert labels["row"] == record["id"] == "valid:3"
    assert labels["expected"].strip() == record["reference"].strip()
    assert record["verdict"].keys() == {"token_accuracy"}
    assert labels["prompt"].startswith("the ")
    assert {"generated", "token accuracy"} <= labels.keys()


def test_verbose_says_everything_that_determines_the_text(cli, mine, small_base):
    said = cli("generate", mine, small_base, "--prompt", "the\ncat", "--max-tokens", 3, "--verbose")
    lines = said.err.partition("\n\n")[0].splitlines()
    pairs = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)
    assert {"temperature", "order", "seed", "stop_ids", "prompt_mode"} <= pairs.keys()
    assert pairs[f"member {mine}"].startswith("scale 2 (")
    assert pairs[f"member {small_base}"] == "the base itself"
    assert pairs["stop tokens"] == "<eos>"
    assert re.fullmatch(r"\d+ tokens: 'the\\ncat'", pairs["prompt:1"])
    assert {"engine name", "engine dtype", "version torch", "base"} <= pairs.keys()


def test_the_cache_is_checked(cli, mine, monkeypatch):
    options = ("generate", mine, "--prompt", "the cat", "--prompt", "a", "--max-tokens", 6)
    good = cli(*options, "--check-cache")
    assert good.code == 0
    assert re.search(r"differ by at most \S+ \(token \d of .* on prompt:\d\)", good.err)
    assert "no token would be another one" in good.err
    monkeypatch.setattr("weft.model.check.ROUNDING", dict.fromkeys(_dtypes(), -1.0))
    bad = cli(*options, "--check-cache")
    assert bad.code == 1
    assert "error: the cache changes more than rounding does" in bad.err
    assert bad.out == good.out


def _dtypes():
    import torch

    return (torch.float32, torch.bfloat16, torch.float16)


def test_ctrl_c_prints_what_there_is_and_keeps_what_is_complete(cli, mine, monkeypatch):
    from weft.engines.local import LocalEngine

    whole = LocalEngine.generate

    def interrupted(self, bank, prompts, decoding, on_token=None, copies=None):
        calls.append(prompts)
        if len(calls) < 3:
            return whole(self, bank, prompts, decoding, on_token, copies)
        for token in (40, 41):
            on_token(0, 0, token)
        raise KeyboardInterrupt

    calls: list = []
    monkeypatch.setattr(LocalEngine, "generate", interrupted)
    prompts = [word for text in ("the cat", "a mat", "the dog") for word in ("--prompt", text)]
    said = cli("generate", mine, *prompts, "--max-tokens", 4, "--batch-size", 1)
    assert said.code == 130
    assert "== prompt:3: the dog" in said.out
    assert "interrupted: 2 complete, 1 unfinished with 2 tokens, which are not kept" in said.err
    assert len(RunReader(mine).samples()) == 2
    calls[:] = [0, 0]
    said = cli("generate", mine, "--prompt", "the dog")
    assert said.code == 130 and said.out.endswith("\n") and len(said.out) > 1
    assert "Traceback" not in said.err


def test_what_is_complete_is_kept_when_an_error_or_a_closed_pipe_ends_it(cli, mine, monkeypatch):
    from weft.cli.texts import Texts
    from weft.core.errors import NumericError
    from weft.engines.local import LocalEngine

    whole, write = LocalEngine.generate, Texts._write
    done: list = []

    def fails_third(self, *arguments):
        done.append(arguments)
        if len(done) == 3:
            raise NumericError("member on prompt")
        return whole(self, *arguments)

    def closed_at_the_second(self, text):
        done.append(text)
        if len(done) == 2:
            raise BrokenPipeError(32, "Broken pipe")
        write(self, text)

    prompts = [word for text in ("the cat", "a mat", "the dog") for word in ("--prompt", text)]
    options = ("generate", mine, *prompts, "--max-tokens", 4, "--batch-size", 1)
    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "generate", fails_third)
        said = cli(*options, "--out", "o.jsonl")
    assert said.code == 1 and "error: member on prompt" in said.err
    with open("o.jsonl", encoding="utf-8") as file:
        assert len(file.readlines()) == len(RunReader(mine).samples()) == 2
    done.clear()
    monkeypatch.setattr(Texts, "_write", closed_at_the_second)
    with pytest.raises(SystemExit) as ended:
        cli(*options)
    assert ended.value.code == 1
    assert [record["id"] for record in RunReader(mine).samples()][2:] == ["prompt:1", "prompt:2"]


def test_json_is_json_whatever_standard_output_can_show(cli, small_base, monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", narrow)
    assert cli("generate", small_base, "--prompt", "é😀", "--max-tokens", 3, "--json").code == 0
    narrow.seek(0)
    assert json.loads(narrow.read())["prompt"] == "é😀"


def test_defaults_in_the_help_are_those_of_decoding(cli):
    import typing

    hints = typing.get_type_hints(generate, include_extras=True)
    for field, option in NAMES.items():
        (info,) = hints[option[2:].replace("-", "_")].__metadata__
        default = Decoding.model_fields[field].default
        if default not in ((), False, None):
            shown = default if isinstance(default, str) else f"{default:g}"
            assert f"[default: {shown}" in info.help, option
    assert NAMES.keys() == Decoding.model_fields.keys() - {"stop_ids"}


def test_every_engine_is_named_in_the_help():
    import typing

    from weft.engines.registry import ENGINES

    (info,) = typing.get_type_hints(generate, include_extras=True)["engine"].__metadata__
    assert info.metavar == "|".join(ENGINES)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_server_generates_what_the_local_engine_does(engine, cli, small_base, mine):
    from tests.support.servers import Contract
    from weft.engines.local import LocalEngine
    from weft.model.base import load_base

    asked = ("generate", mine, "base", "--prompt", "the cat", "--max-tokens", 6, "--json")
    local = [json.loads(line) for line in cli(*asked).out.splitlines()]
    with Contract(LocalEngine(load_base(small_base)), engine) as server:
        said = cli(*asked, "--engine", engine, "--url", server.url)
    found = [json.loads(line) for line in said.out.splitlines()]
    assert [line["ids"] for line in found] == [line["ids"] for line in local]
    assert found[0]["engine"]["url"] == server.url and not server.adapters


def test_a_server_that_is_not_there_is_said_and_nothing_is_written(cli, mine):
    said = cli("generate", mine, "--prompt", "x", "--engine", "vllm", "--url", "http://127.0.0.1:9")
    assert (said.code, said.out) == (1, "")
    assert "there is no vllm server at http://127.0.0.1:9" in said.err and "--url" in said.err
    assert not RunLayout(mine).samples.exists()


def test_empty_standard_input_is_no_prompt(cli, small_base, typed):
    for text, problem in ((b" \n", "there is no prompt"), (b"\xff", "is not UTF-8 text")):
        typed(text)
        said = cli("generate", small_base)
        assert (said.code, said.out) == (2, "")
        assert problem in said.err


MISTAKES = [
    ("nowhere --prompt x", "there is no nowhere"),
    ("{run} --prompt", "requires an argument"),
    ("{run} --prompt x --prompts p.txt", "--prompt and --prompts are both given"),
    ("{run} --prompts nofile.txt", "cannot read nofile.txt: No such file"),
    ("{run} --prompts {rows}/train.jsonl --raw --system x", "--system is for conversations"),
    ("{run} --prompt x --temp -0.5", "--temp is -0.5: must be at least 0"),
    ("{run} --prompt x --temp warm", "invalid value for '--temp'"),
    ("{run} --prompt x --top-p 0", "--top-p is 0.0: must be more than 0 and at most 1"),
    ("{run} --prompt x --max-tokens 0", "--max-tokens is 0: must be at least 1"),
    ("{run} --prompt x --order vllm", "--order is 'vllm': must be 'hf' or 'mlx'"),
    ("{run} --prompt x --stop-token <|im_end|>", "no token '<|im_end|>'"),
    ("{run} --prompt x --tokenizer-option truncate", "is not KEY=VALUE"),
    ("{run} --prompt x --tokenizer-option truncate=1", "no tokenizer option `truncate`"),
    ("{run} --prompt x --chat", "the tokenizer has none"),
    ("{run} --prompt x --dtype int8", "--dtype is 'int8'"),
    ("{run} --prompt x --device gpu", "device: 'gpu' is none of cpu, cuda"),
    ("{run} --prompt x --engine tgi", "no engine 'tgi'"),
    ("{run} --prompt x --engine mlx --check-cache", "--check-cache is for the local engine"),
    ("{run} --prompt x --task tables", "--task says which data --row is of"),
    ("{run} --prompt x --split test", "--split says which data --row is of"),
    ("{run} --prompt \udcff", "prompt:1 is not text: character 1"),
    ("{run} --prompt x --stop \udcff", "which is not UTF-8 text"),
    ("{run} --prompt x --out {rows}", "is a directory"),
    ("{run} --prompt x --out {rows}/valid.jsonl/x", "valid.jsonl is not a directory"),
    ("{run} --prompt x --out /dev/full", "/dev/full is a device or a pipe"),
    ("{run} --row 9999", "the valid rows have none on line 9999"),
    ("{run} --row 1 --split tset", "no tset rows"),
    ("{run} --row 1 --raw", "exactly as training read it"),
    ("base --row 1", "nothing says on which data"),
    ("base --prompt x --base weft/tny", "no bundled base 'weft/tny'"),
]


@pytest.mark.parametrize(("command", "problem"), MISTAKES, ids=[case[0] for case in MISTAKES])
def test_a_mistake_is_explained_and_nothing_is_written(
    cli, run, rows_dir, tmp_path, command, problem
):
    before = set(tmp_path.rglob("*")), set(run.rglob("*"))
    more = () if command.endswith("--prompt") or "--out" in command else ("--out", "o.jsonl")
    said = cli("generate", *command.format(run=run, rows=rows_dir).split(), *more)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ") and problem in said.err
    assert "Traceback" not in said.err
    assert (set(tmp_path.rglob("*")), set(run.rglob("*"))) == before


@pytest.mark.parametrize(("prompt", "problem"), [("", "is empty"), ("cat " * 300, "no room")])
def test_a_prompt_that_nothing_can_follow_is_refused(cli, mine, prompt, problem):
    said = cli("generate", mine, "--prompt", prompt)
    assert (said.code, said.out) == (2, "")
    assert problem in said.err
    assert not RunLayout(mine).samples.exists()


def test_a_long_generation_says_how_fast_it_is_and_how_long_it_may_take(monkeypatch, capsys):
    from weft.cli import progress

    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = progress.TokensProgress(texts=4, most=400)
    for _ in range(50):
        shown.add()
    assert capsys.readouterr().err == ""  # two seconds are not over
    now = 105.0
    shown.add()
    assert capsys.readouterr().err == ("51 tokens, 0/4 texts, 10 tok/s, at most 34 s left\n")
    shown.finished(2, 20)  # shorter than they could have been
    now = 106.0
    shown.add()
    assert capsys.readouterr().err == ""  # not every second
    now = 130.0
    shown.add()
    assert capsys.readouterr().err == ("53 tokens, 2/4 texts, 2 tok/s, at most 95 s left\n")
