"""What a newcomer gets wrong: the problem, a hint, exit code 2, nothing written, no traceback."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CASES = [
    # command, what the problem says, what the hint says
    ("trian", "no such command 'trian'", "weft --help"),
    ("--nonsense", "no such option: --nonsense", "weft --help"),
    ("train", "give a recipe or a file", "weft train instruct"),
    ("train --steps 3", "no such option: --steps", "key=value, such as steps=100"),
    ("train instrct", "no recipe and no file 'instrct'", "did you mean `instruct`?"),
    ("train nowhere.yaml", "no recipe and no file 'nowhere.yaml'", "weft recipes"),
    ("train instruct adapter.rnk=4", "adapter.rnk: no such key (did you mean `rank`?)", "check"),
    ("train instruct steps", "'steps' is not key=value", "steps=100"),
    ("train instruct adapter.rank=0 batch_size=x", "has 2 problems", "weft check"),
    ("train instruct steps=-1", "steps: input should be greater than", "weft check"),
    ("train instruct data.task=instrct", "no task 'instrct'", "weft check"),
    ("train instruct data.path=no.jsonl base={base}", "no file or folder no.jsonl", None),
    ("train instruct base=./nowhere", "no such directory: './nowhere'", None),
    ("train instruct base=weft/tny", "no bundled base 'weft/tny'", None),
    ("train instruct {small} adapter.targets=[q_prj]", "'q_prj' matches no module", "q_proj"),
    ("train instruct --run-dir {run}", "holds a run", "--resume"),
    ("train instruct --run-dir {rows}", "is not empty", "--run-dir"),
    ("train instruct --run-dir {file}", "is a file", "--run-dir"),
    ("train --resume nowhere", "there is no run directory nowhere", "weft train"),
    ("train --resume {run}", "is finished", "another directory"),
    ("train --resume {run} --run-dir x", "leave out --run-dir", None),
    ("train --resume {run} steps=9", "keeps its configuration", "config.yaml steps=9"),
    ("train --resume {run} steps=9 seed=1", "cannot take steps=9 seed=1", "start a new run"),
    ("train instruct steps=1 epochs=1", "`steps` and `epochs` are both", "one of the two"),
    ("demo seeds=[0,1]", "train 2: seed-0, seed-1", "weft train instruct 'seeds=[0,1]'"),
    ("demo data.path={rows}", "none: only train, valid", "data.test_path"),
    ("train instruct --resume {run}", "one of the two", "weft recipes"),
    ("eval nowhere", "there is no nowhere", "run directory"),
    ("eval {rows}", "is not an adapter, a run or a base", "manifest.json"),
    ("eval base", "nothing says on which data", "one of instruct, tables"),
    ("eval base --task instrct", "no task 'instrct'", None),
    ("eval {run} --split tset", "no tset rows", None),
    ("eval {run} --rows 0", "invalid value for '--rows'", "weft eval --help"),
    ("eval {run} --task instruct --data x.jsonl", "give only one", None),
    ("eval {pickle} --task instruct", "a pickle file", "Weft opens no pickles"),
    ("eval {torn} --task instruct", "cannot read", "fetch it again"),
    ("compare base", "missing argument 'B'", "weft compare --help"),
    ("compare base nowhere", "there is no nowhere", "`base`"),
    ("compare base weft/nothing", "there is no weft/nothing", "weft/tiny, weft/countdown-easy"),
    ("compare base {run} --base weft/tiny", "does not fit the base", "trained on"),
    ("inspect nowhere", "there is no nowhere", "run directory"),
    ("inspect {pickle}", "a pickle file", "Weft opens no pickles"),
    ("inspect {run} --base weft/tny", "no bundled base 'weft/tny'", "weft/tiny"),
    ("check", "missing argument 'RECIPE|FILE'", "weft check --help"),
    ("check {file}", "must hold keys and values, and is one value", "steps: 100"),
    ("check {empty}", "must hold keys and values, and is empty", "steps: 100"),
    ("diff {empty} instruct", "must hold keys and values, and is empty", "steps: 100"),
    ("doctor {run} --base weft/tiny", "the base weft/tiny is not read", "leave --base out"),
    ("check {twice}", "`base` stands twice", None),
    ("check instruct {bad}", "rows.jsonl:2: ", "data.on_bad_row=skip"),
    ("recipes instrct", "there is no recipe 'instrct'", "did you mean `instruct`?"),
    ("report nowhere", "there is no run directory nowhere", "weft train"),
]  # fmt: skip


@pytest.fixture
def places(
    tmp_path: Path, run: Path, rows_dir: str, small_base: str, settings: list[str]
) -> dict[str, object]:
    """What the cases name: a run, broken files, rows."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "file").write_text("just words")
    (inputs / "empty.yaml").write_text("# nothing\n")
    (inputs / "twice.yaml").write_text("base: gpt2\nbase: gpt2\n")
    good = json.dumps({"instruction": "the cat", "input": "", "output": "sat"})
    (inputs / "rows.jsonl").write_text(f"{good}\nnot json\n{good}\n")
    shutil.copytree(run / "adapter", inputs / "pickle")
    (inputs / "pickle" / "adapter_model.safetensors").rename(inputs / "pickle/adapter_model.bin")
    shutil.copytree(run / "adapter", inputs / "torn")
    tensors = inputs / "torn" / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    return {
        "run": run,
        "rows": rows_dir,
        "base": small_base,
        "small": f"base={small_base}",
        "file": inputs / "file",
        "empty": inputs / "empty.yaml",
        "twice": inputs / "twice.yaml",
        "pickle": inputs / "pickle",
        "torn": inputs / "torn",
        "bad": f"base={small_base} data.path={inputs / 'rows.jsonl'}",
    }


@pytest.mark.parametrize(("command", "problem", "hint"), CASES, ids=[case[0] for case in CASES])
def test_a_mistake_is_explained(cli, places, tmp_path, command, problem, hint):
    before = set(tmp_path.rglob("*"))
    said = cli(*command.format(**places).split())
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    told, _, hinted = said.err.partition("\n\nhint: ")
    assert problem in told
    assert (hint or "") in hinted
    assert set(tmp_path.rglob("*")) == before


def test_a_bug_shows_its_traceback(cli, monkeypatch):
    def broken() -> dict:
        raise RuntimeError("a bug")

    monkeypatch.setattr("weft.training.resolve.recipe_paths", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli("recipes")


def test_ctrl_c_ends_with_130(cli, monkeypatch):
    def interrupted() -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr("weft.training.resolve.recipe_paths", interrupted)
    assert cli("recipes").code == 130


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_standard_output_that_is_full_or_closed_is_no_traceback():
    code = "import sys; from weft.cli.main import main; sys.exit(main(['recipes']))"
    words = [sys.executable, "-c", code]
    with open("/dev/full", "w") as full:
        said = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert said.returncode == 2
    assert said.stderr == "error: cannot write to standard output: No space left on device\n"
    for closed in (">&-", "2>&-", ">&- 2>&-", "| true"):
        shell = f"{shlex.join(words)} {closed}"
        said = subprocess.run(shell, shell=True, capture_output=True, text=True, check=False)
        assert said.returncode == 0
        assert "Error" not in said.stderr and "error" not in said.stderr
