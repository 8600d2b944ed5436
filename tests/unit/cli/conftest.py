"""The command line in this process, and one finished run to look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import weft
from weft.cli.main import main


@dataclass(frozen=True)
class Said:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Run a command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    # `main` silences transformers before it is imported: too late in this process
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)

    def run(*arguments: object) -> Said:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def rows_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with train and validation rows that are short, and so quick."""
    directory = tmp_path_factory.mktemp("short_rows")
    nouns, verbs = ("cat", "dog", "mat", "house"), ("sat", "ran", "is red", "is small", "is near")
    facts = [(f"the {noun}", f" {verb} {verb}") for noun in nouns for verb in verbs] * 2
    for split, part in (("train", facts), ("valid", facts[::3][:12])):
        lines = [json.dumps({"prompt": p, "completion": c}) for p, c in part]
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return str(directory)


@pytest.fixture(scope="session")
def settings(small_base: str, rows_dir: str) -> list[str]:
    """Overrides that make the recipe `instruct` a run of a second."""
    return [
        f"base={small_base}",
        f"data.path={rows_dir}",
        "adapter.rank=2",
        "adapter.alpha=4",
        "steps=6",
        "batch_size=4",
        "eval.every=3",
        "checkpoint_every=2",
    ]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Path:
    """A finished run. Tests that write into it use a copy."""
    root = tmp_path_factory.mktemp("runs") / "finished"
    weft.train("instruct", settings, root)
    return root
