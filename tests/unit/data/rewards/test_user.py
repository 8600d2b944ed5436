"""A reward of the user's own: whatever it does, the run goes on."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.core.errors import InputError
from weft.data.rewards import grader_for
from weft.data.rewards.user import UserReward
from weft.data.task import task_of_format
from weft.data.templates import FORMATS

Make = Callable[..., UserReward]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A reward whose function has this body, or whose file this text."""
    made: list[UserReward] = []

    def make(body: str = "", *, text: str | None = None, **options: Any) -> UserReward:
        file = tmp_path / f"mine{len(made)}.py"
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        file.write_text(text or f"def reward(row, completion):\n{lines}", encoding="utf-8")
        made.append(UserReward(file, **options))
        return made[-1]

    yield make
    for reward in made:
        reward.close()


def test_it_sees_the_row_and_the_completion(make: Make) -> None:
    grade = make("return len(completion) * row['weight']")
    rows, texts = [{"weight": 2}, {"weight": 0.5}, {"weight": 1}], ["ab", "\u00e9\n", ""]
    assert [each.reward for each in grade(rows, texts)] == [4, 1, 0]


@pytest.mark.parametrize(
    ("value", "reward"),
    [("3", 3), ("True", 1), ("-0.5", -0.5), ("__import__('numpy').ones(())", 1)],
)
def test_whatever_is_a_number_is_a_reward(make: Make, value: str, reward: float) -> None:
    assert make(f"return {value}")([{}], ["x"])[0].reward == reward


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("raise KeyError('a' * 5000)", "KeyError: 'aaa"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(): return f()\nreturn f()", "RecursionError"),
        ("return None", "returned NoneType, not a number"),
        ("return '1.0'", "returned str, not a number"),
        ("return 1j", "returned complex, not a number"),
        ("return float('nan')", "returned nan"),
        ("return float('inf')", "returned inf"),
        ("return 10**400", "OverflowError"),
        ("import os\nos._exit(5)", "its process ended with exit status 5"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "its process ended by SIGSEGV"),
    ],
)
def test_what_goes_wrong_is_a_failed_grade_and_the_next_is_graded(
    make: Make, body: str, why: str
) -> None:
    guarded = "\n".join(f"    {line}" for line in body.splitlines())
    grade = make(f"if completion == 'bad':\n{guarded}\nreturn 1")
    before, bad, after = grade([{}] * 3, ["good", "bad", "good"])
    assert (before.reward, after.reward) == (1, 1)
    assert math.isnan(bad.reward)
    assert bad.failure is not None
    assert bad.failure.startswith(why)
    assert len(bad.failure) <= 300
    assert grade.restarts == ("process ended" in why)


@pytest.mark.parametrize(
    "hang",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import re; re.match('(a+)+$', 'a' * 40 + 'b')",  # holds Python's lock
    ],
)
def test_a_hang_ends_after_its_time_and_the_next_is_graded(make: Make, hang: str) -> None:
    grade = make(f"if completion == 'bad':\n    {hang}\nreturn 1", timeout=1)
    start = time.monotonic()
    bad, after = grade([{}] * 2, ["bad", "good"])
    assert time.monotonic() - start < 10
    assert bad.failure == "took longer than 1 s"
    assert after.reward == 1
    assert grade.restarts == 1


def test_what_it_prints_and_reads_disturbs_nothing(make: Make) -> None:
    grade = make(
        "import os, sys\nprint('{\"reward\": 7}')\nos.write(1, b'more')\n"
        "return len(sys.stdin.read())"
    )
    assert [each.reward for each in grade([{}] * 3, ["x"] * 3)] == [0, 0, 0]


def test_long_and_odd_texts_arrive_as_they_are(make: Make) -> None:
    odd = "\x00\u2028\ud800\U0001f98a\r\n" + "x" * 3_000_000
    grade = make(f"return completion == {odd[:6]!r} + 'x' * 3_000_000")
    assert grade([{}], [odd])[0].reward == 1


def test_a_file_may_import_its_neighbours(make: Make, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def score(text): return 5\n")
    text = "from helper import score\ndef mine(row, completion): return score(completion)\n"
    assert make(text=text, function="mine")([{}], ["x"])[0].reward == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def reward(row, completion) return 1", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit", "SystemExit"),
        ("import os; os._exit(4)", "its process ended with exit status 4"),
        ("def grade(row, text): return 1", "it has no function `reward` (functions: grade)"),
        ("reward = 3", "it has no function `reward` (functions: none)"),
        ("def reward(row): return 1", "TypeError: too many positional arguments"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_at_once(make: Make, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        make(text=text)
    assert "mine0.py, function `reward`: " + said in caught.value.problem
    assert "objective.function" in str(caught.value.hint)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*nowhere\.py: No such file"):
        UserReward(tmp_path / "nowhere.py")
    (tmp_path / "reward.txt").write_text("def reward(row, completion): return 1\n")
    with pytest.raises(InputError, match=r"its name must end in \.py"):
        UserReward(tmp_path / "reward.txt")


def test_a_file_that_vanishes_fails_the_grades_only(make: Make, tmp_path: Path) -> None:
    grade = make("import os\nos._exit(1)")
    (tmp_path / "mine0.py").unlink()
    first, second = grade([{}] * 2, ["x"] * 2)
    assert math.isnan(first.reward)
    assert "cannot read" in str(second.failure)


def test_a_file_that_changes_does_not_change_the_reward_in_silence(
    make: Make, tmp_path: Path
) -> None:
    grade = make("import os\nif completion == 'bad': os._exit(1)\nreturn 1")
    (tmp_path / "mine0.py").write_text("def reward(row, completion): return 2\n")
    same, _, other = grade([{}] * 3, ["x", "bad", "x"])
    assert same.reward == 1
    assert other.failure == "its file has changed since grading began"


def test_it_travels_without_its_process_and_starts_one_where_it_arrives(
    make: Make, tmp_path: Path
) -> None:
    arrived = pickle.loads(pickle.dumps(make("import os\nreturn os.getppid()")))
    arrived.ready()
    assert arrived([{}], ["x"])[0].reward == os.getpid()
    arrived.close()
    arrived.file.write_text("def reward(row, completion): return 2\n")
    with pytest.raises(InputError, match="is not here what it is where the run began"):
        arrived.ready()


def test_the_record_tells_one_function_from_another(make: Make) -> None:
    one, other = make("return 1"), make("return 2")
    assert one.record()["sha256"] != other.record()["sha256"]
    assert one.record()["reward"] == "reward"


def test_closing_ends_the_process_and_what_it_started(make: Make) -> None:
    grade = make(
        "import os, subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
        "return os.getpid() * 10**7 + child.pid"
    )
    own, child = divmod(int(grade([{}], ["x"])[0].reward), 10**7)
    grade.close()
    assert gone(own)
    assert gone(child)


@pytest.mark.parametrize("doing", ["pass", "while True: pass"])
def test_it_does_not_outlive_a_killed_parent(tmp_path: Path, doing: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import os, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        f"def reward(row, completion):\n    {doing}\n    return 1\n"
    )
    code = (
        "import pathlib, time; from weft.data.rewards.user import UserReward\n"
        f"grade = UserReward(pathlib.Path({str(file)!r}), timeout=1)\n"
        "print('up', flush=True); grade([{}], ['x']); time.sleep(60)"
    )
    root = Path(__file__).parents[4]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        time.sleep(0.2)
        parent.send_signal(signal.SIGKILL)
    assert gone(int((tmp_path / "pid").read_text()))


def gone(pid: int, within: float = 6) -> bool:
    """Whether a process ends in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_task_without_a_reward_needs_a_function(make: Make) -> None:
    settings = SimpleNamespace(mode="strict", file=None, function="reward", timeout=5.0)
    alpaca = task_of_format(FORMATS["alpaca"])
    with pytest.raises(InputError, match="rows of format alpaca have no reward") as caught:
        grader_for(settings, alpaca)
    assert "countdown, conciseness" in str(caught.value.hint)
    settings.file = make("return 1").file
    grade = grader_for(settings, alpaca)
    assert grade([{}], ["x"])[0].reward == 1
    grade.close()
    settings.file = None
    assert grader_for(settings, task_of_format(FORMATS["countdown"])).name == "countdown"


def test_the_example_of_the_documentation(make: Make) -> None:
    page = (Path(__file__).parents[4] / "docs" / "rewards.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    row = {"prompt": "Name some birds:", "words": 3}
    assert json.dumps(row) in page
    grades = make(text=text)([row] * 3, ["crow owl jay", "owl owl owl", ""])
    assert [grade.reward for grade in grades] == [0, -2, -3]
