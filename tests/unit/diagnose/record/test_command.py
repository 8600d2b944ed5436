"""`weft record`: the program runs as Python would run it, and leaves a recording."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import weft
from weft.core.errors import InputError
from weft.diagnose.record.launch import understand
from weft.runs.recording import Recording

TELL = """
import json, os, sys
print(json.dumps([sys.argv, sys.path[0], __name__, __file__, sys.stdin.read()]))
print(sorted(key for key in os.environ if "HF_" in key or "TRANSFORMERS" in key), file=sys.stderr)
"""

END = """
import sys, signal, os, time
how = sys.argv[1]
def below(x):
    return 1 / x
if how == "raises": below(0)
if how == "says": sys.exit("that is enough")
if how == "code": sys.exit(3)
if how == "ctrl-c": raise KeyboardInterrupt
if how == "killed": os.kill(os.getpid(), signal.SIGKILL)
if how == "hook":
    sys.excepthook = lambda kind, error, trace: print("mine:", error, trace.tb_lineno)
    below(0)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "tell.py").write_text(TELL)
    (tmp_path / "work" / "end.py").write_text(END)
    (tmp_path / "work" / "syntax.py").write_text("def f(:\n    pass\n")
    return tmp_path


def python(place: Path, *words: str, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, **more)


def recorded(place: Path, *words: str, **more) -> subprocess.CompletedProcess[str]:
    return python(place, "-m", "weft", "record", "--out", "rec", "--", "python", *words, **more)


def split(said: str) -> tuple[str, str]:
    """What the program said, and the line of the recording."""
    lines = said.splitlines(keepends=True)
    assert lines[-1].startswith("recorded: rec (")
    return "".join(lines[:-1]), lines[-1]


@pytest.mark.parametrize(
    "words",
    [["work/tell.py", "--out", "x", "a b"], ["-m", "work.tell", "-v"], ["-u", "work/tell.py"]],
    ids=["a script", "a module", "options of Python"],
)
def test_a_program_sees_what_it_would_see_alone(place, words):
    alone = python(place, *words, input="typed")
    seen = recorded(place, *words, input="typed")
    assert seen.stdout == alone.stdout
    assert split(seen.stderr)[0] == alone.stderr
    assert (seen.returncode, alone.returncode) == (0, 0)
    about = Recording(place / "rec").about
    assert (about.status, about.exit_code) == ("finished", 0)
    assert about.command == "python " + " ".join(w if " " not in w else f"'{w}'" for w in words)


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("raises", "failed", 1),
        ("says", "failed", 1),
        ("code", "failed", 3),
        ("hook", "failed", 1),
        ("ctrl-c", "interrupted", 130),
        ("killed", "recording", None),
    ],
)
def test_a_program_ends_as_it_would_alone(place, how, status, code):
    alone, seen = python(place, "work/end.py", how), recorded(place, "work/end.py", how)
    assert seen.stdout == alone.stdout
    assert split(seen.stderr)[0] == alone.stderr
    expected = 137 if how == "killed" else alone.returncode
    assert seen.returncode == expected
    about = Recording(place / "rec").about
    assert (about.status, about.exit_code) == (status, code)
    if how == "raises":
        assert about.error == "ZeroDivisionError: division by zero"
        assert list(about.files) == ["end.py"]


def test_a_script_that_is_no_python_is_told_as_python_tells_it(place):
    alone, seen = python(place, "work/syntax.py"), recorded(place, "work/syntax.py")
    assert split(seen.stderr)[0] == alone.stderr and seen.returncode == 1


def test_signals_are_the_programs(place):
    code = """
import signal, sys, time
def stop(number, frame):
    print("stopping", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(30)
"""
    (place / "waits.py").write_text(code)
    command = [sys.executable, "-m", "weft", "record", "--out", "rec", "--", "python", "waits.py"]
    child = subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=30)
    assert (out, child.returncode) == ("stopping\n", 7)


def test_a_program_that_is_killed_while_it_computes_leaves_what_it_had(place, small_base):
    (place / "long.py").write_text(
        "import sys, time\nfrom transformers import AutoTokenizer\n"
        "AutoTokenizer.from_pretrained(sys.argv[1])('the cat')\nprint('go', flush=True)\n"
        "time.sleep(60)\n"
    )
    words = ["record", "--out", "rec", "--", "python", "long.py", small_base]
    command = [sys.executable, "-m", "weft", *words]
    child = subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None and child.stdout.readline() == "go\n"
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    left = Recording(place / "rec")
    assert left.about.status == "recording"
    assert [event.kind for event in left.events] == ["tokenizer", "encoded"]


def test_what_becomes_of_the_recording_is_not_the_programs_end(place):
    """A program that spoils its own recording and is killed."""
    (place / "spoils.py").write_text(
        "import os, pathlib, signal\n"
        "pathlib.Path('rec/events.jsonl').write_text('{\"kind\": \"sneeze\"}\\n')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    seen = recorded(place, "spoils.py")
    assert seen.returncode == 137
    assert "recorded: rec, which cannot be read: rec/events.jsonl, line 1" in seen.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "nothing to record"),
        (["python"], "python was given no script"),
        (["python", "nowhere.py"], "there is no script nowhere.py"),
        (["python", "-c", "print(1)"], "no file that a recording could name"),
        (["python", "-m"], "was given no module"),
        (["python", "-m", "no_such_module_here"], "there is no module no_such_module_here"),
        (["train.py", "--x"], "train.py is a script and not a command"),
        (["no-such-command-here"], "there is no command no-such-command-here"),
        (["ls"], "is not written in Python"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_a_hint(words, problem):
    with pytest.raises(InputError, match=problem) as refused:
        understand(words)
    assert refused.value.hint


def test_a_command_line_is_understood():
    program = understand(["python3.11", "-W", "ignore", "-m", "json.tool", "-h"])
    assert (program.kind, program.target) == ("module", "json.tool")
    assert (program.options, program.arguments) == (("-W", "ignore"), ("-h",))
    assert program.command == "python -W ignore -m json.tool -h"
    assert understand(["python", "-mjson.tool"]).target == "json.tool"
    tool = understand(["pytest", "-q"])
    assert (tool.kind, tool.name, tool.arguments) == ("script", "pytest", ("-q",))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["python", "x.py"], "comes after `--`"),
        (["--out", "rec", "--", "python", "x.py"], "rec is there already"),
    ],
)
def test_the_verb_refuses_before_anything_runs(tmp_path, monkeypatch, capsys, words, problem):
    from weft.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "mine").touch()
    (tmp_path / "x.py").write_text("open('ran', 'w')")
    assert main(["record", *words]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_recording_inside_of_another_is_refused(tmp_path):
    with weft.record(tmp_path / "one"):
        second = weft.record(tmp_path / "two")
        with pytest.raises(InputError, match="being recorded already"):
            second.__enter__()
    with weft.record(tmp_path / "three"):
        pass
    assert Recording(tmp_path / "three").about.status == "finished"


def test_a_block_that_raises_raises_and_says_so(tmp_path):
    with pytest.raises(ValueError, match="mine"), weft.record(tmp_path / "one"):
        raise ValueError("mine")
    about = Recording(tmp_path / "one").about
    assert (about.status, about.error) == ("failed", "ValueError: mine")
    with pytest.raises(InputError, match="there already"), weft.record(tmp_path / "one"):
        pytest.fail("it began")


FORK = """
import os, sys
child = os.fork()
if child == 0:
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(os.path.exists("rec/recording.json") and '"recording"' in open("rec/recording.json").read())
"""


def test_a_process_that_the_program_forks_does_not_end_the_recording(place):
    (place / "fork.py").write_text(FORK)
    made = recorded(place, "fork.py")
    assert (made.returncode, made.stdout) == (0, "3\nTrue\n")
    assert Recording(place / "rec").about.status == "finished"


def test_a_directory_that_cannot_be_made_is_refused_before_the_program_runs(place):
    (place / "file").write_text("")
    words = ["--out", "file/rec", "--", "python", "work/tell.py"]
    made = python(place, "-m", "weft", "record", *words)
    assert (made.returncode, made.stdout) == (2, "")
    assert "error: file/rec cannot be written: Not a directory" in made.stderr
    assert "Traceback" not in made.stderr


def test_a_generator_that_is_closed_in_a_recording_has_finished(tmp_path):
    def steps():
        with weft.record(tmp_path / "rec"):
            yield 1

    generator = steps()
    next(generator)
    generator.close()
    assert Recording(tmp_path / "rec").about.status == "finished"
