"""`weft check` and `weft recipes`: a configuration as it is understood, without weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from weft.training.resolve import experiment_paths, recipe_paths

SHIPPED = {**recipe_paths(), **experiment_paths()}


def test_check_prints_what_would_be_used(cli, settings, tmp_path):
    said = cli("check", "instruct", *settings)
    assert said.code == 0
    assert "adapter     rank 2, alpha 4, scale 2, dropout 0.1\n" in said.out
    counts = [line.split() for line in said.out.splitlines() if line.startswith(("train", "valid"))]
    assert [row[:3] for row in counts] == [["train", "40", "40"], ["valid", "12", "12"]]
    assert "note: data.path=" in said.err
    assert "next: weft train instruct base=" in said.err
    assert list(tmp_path.iterdir()) == []


def test_check_loads_no_weights(cli, settings, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    assert cli("check", "instruct", *settings).code == 0


def test_check_of_bundled_recipes_loads_neither_pytorch_nor_transformers():
    """In a process of its own, whose modules are those of the command."""
    tiny = [name for name, path in recipe_paths().items() if "base: weft/tiny" in path.read_text()]
    assert len(tiny) > 5
    code = (
        "import sys\n"
        "from weft.cli.main import main\n"
        f"assert not any(main(['check', name, '--show', '1']) for name in {tiny})\n"
        "heavy = {'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_check_shows_origins(cli, settings):
    lines = cli("check", "instruct", *settings, "--origins").out.splitlines()
    found = {line.split()[0]: line for line in lines if line}
    assert found["adapter.rank"].endswith("command line")
    assert found["optimiser.lr"].endswith("file instruct.yaml")
    assert found["optimiser.eps"].endswith("default")


def test_check_shows_examples_token_by_token(cli, settings):
    said = cli("check", "instruct", *settings, "--show", 2)
    assert "* supervised" in said.out
    assert said.out.count("---- response ----") == 2


def test_of_a_choice_only_the_candidate_is_marked(cli):
    said = cli("check", "reviews-mezo", "--show", 3)
    assert "the right one of the candidates ' terrible', ' great'" in said.out
    marked = [line.split(maxsplit=3)[3] for line in said.out.splitlines() if line[6:7] == "*"]
    assert len(marked) == 3 and set(marked) <= {"' terrible'", "' great'"}
    assert said.out.count("(end of sequence)") == 3
    assert "supervised" not in said.out


def test_check_as_json(cli, settings):
    found = json.loads(cli("check", "instruct", *settings, "--json").out)
    assert found["config"]["adapter"]["rank"] == 2
    assert found["origins"]["adapter.rank"] == "command line"
    assert found["data"]["train"]["kept"] == 40
    assert any("clears data.task" in notice for notice in found["notices"])


def test_recipes_are_listed_with_their_descriptions(cli):
    runs, _, several = cli("recipes").out.partition("\n\n")
    for shown, paths in ((runs, recipe_paths()), (several, experiment_paths())):
        assert [line.split()[0] for line in shown.splitlines()[1:]] == sorted(paths)
    found = json.loads(cli("recipes", "--json").out)
    assert found["recipes"].keys() == recipe_paths().keys()
    assert found["experiments"].keys() == experiment_paths().keys()


def test_the_list_of_recipes_fits_a_terminal_of_a_hundred_columns(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert all(len(line.rstrip()) <= 100 for line in cli("recipes").out.splitlines())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_is_printed_as_it_is(cli, name):
    assert cli("recipes", name).out.strip() == SHIPPED[name].read_text().strip()
