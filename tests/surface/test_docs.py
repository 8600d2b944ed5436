"""What the documentation tells people to type exists, and the Python in it runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from weft.cli.main import app
from weft.training.experiment import plan
from weft.training.experiment_config import read_design
from weft.training.resolve import resolve

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / "tools/README.md", ROOT / "examples/README.md"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *FOLDERS]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of a language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, text) for page in PAGES for text in fence.findall(page.read_text())]


def lines(first_word: str) -> list[str]:
    text = "\n".join(text for _, text in blocks("(?:console|sh)"))
    typed = [line.split("  #")[0].removeprefix("$ ").strip() for line in text.splitlines()]
    return sorted({line for line in typed if line.split(" ")[0] == first_word})


@pytest.mark.parametrize("line", lines("weft"))
def test_weft_commands_parse(line):
    """Verb, options and settings are accepted; nothing is run."""
    command = typer.main.get_command(app)
    verb, *arguments = shlex.split(line)[1:]
    assert verb in command.commands, line
    command.commands[verb].make_context(verb, arguments)  # raises on what it does not know


@pytest.mark.parametrize("line", lines("make"))
def test_make_targets_exist(line):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split()[1] in targets


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_yaml_is_a_configuration(page, text, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    if "arms:" in text:
        assert plan(read_design(str(path))).record.arms
    else:
        assert resolve(str(path)).config.data


@pytest.mark.slow
@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_runs(page, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(text, page, "exec"), {})


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_file_of_the_documentation_says_nothing_of_this_machine():
    for page in PAGES:
        assert not re.search(r"/(home|root|tmp|work|Users)/", page.read_text()), page.name
