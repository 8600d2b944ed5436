"""Rules about the source that no type checker knows. DESIGN: imports go down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "weft"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    "core",
    "runs",
    "data",
    "model",
    "formats",
    "methods",
    "engines",
    "training",
    "analysis",
    "diagnose",
    "report",
    "cli",
]
TORCH_FREE = {"core", "runs", "analysis"}
GENERATOR_MAKERS = {"weft/core/keys.py", "weft/model/noise.py"}
RUNS_CODE = {"eval", "exec", "torch.load", "torch.save", "yaml.unsafe_load", "yaml.full_load"}
UNSAFE_LOADERS = {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"}
MAX_LINES = 400

Imports = Iterator[tuple[int, str]]


def layer_of(module: str) -> str | None:
    """The layer of a dotted module of Weft; None for Weft itself, which offers the verbs of all."""
    parts = module.split(".")
    return parts[1] if parts[0] == "weft" and len(parts) > 1 else None


def imports(tree: ast.AST, package: str) -> Imports:
    """Line and dotted name of every import, also inside functions and `if TYPE_CHECKING`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:  # relative
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*base, *origin.split(".")] if origin else base)
            # `from weft.core import keys` names a module, `from weft.core.keys import Key` does not
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def calls(tree: ast.AST) -> Imports:
    """Line and dotted name of every call of a plain dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def layer_problems(source: str, name: str) -> Iterator[str]:
    module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    package = module if name.endswith("__init__.py") else module.rpartition(".")[0]
    own = layer_of(module)
    for line, imported in imports(ast.parse(source), package):
        other = layer_of(imported)
        if own in TORCH_FREE and imported.split(".")[0] in {"torch", "transformers"}:
            yield f"{name}:{line}: {own} is torch-free and imports {imported}"
        if own not in LAYERS or other not in LAYERS:  # `weft` and `python -m weft` see all
            continue
        if LAYERS.index(other) > LAYERS.index(own):
            yield f"{name}:{line}: {own} may not import {other} ({imported})"


def random_problems(source: str, name: str) -> Iterator[str]:
    tree = ast.parse(source)
    for line, imported in imports(tree, "weft"):
        if imported.split(".")[0] == "random":
            yield f"{name}:{line}: the global generator of `random`: fold a Key"
    for line, call in calls(tree):
        last = call.rpartition(".")[2]
        if last in {"manual_seed", "manual_seed_all"} and name != "weft/model/noise.py":
            yield f"{name}:{line}: {call}(: only weft.model.noise seeds"
        elif last in {"Generator", "default_rng", "RandomState", "PCG64", "Philox"}:
            if name not in GENERATOR_MAKERS:
                yield f"{name}:{line}: {call}(: generators are made from keys"
        elif call.startswith(("np.random.", "numpy.random.")):
            yield f"{name}:{line}: {call}(: the global generator of NumPy"


def unsafe_problems(source: str, name: str) -> Iterator[str]:
    """Reading a file must never run what is in it."""
    tree = ast.parse(source)
    for line, imported in imports(tree, "weft"):
        if imported.split(".")[0] in {
            "pickle",
            "cloudpickle",
            "dill",
            "joblib",
            "marshal",
            "shelve",
        }:
            yield f"{name}:{line}: imports {imported}"
    for line, call in calls(tree):
        if call in RUNS_CODE:
            yield f"{name}:{line}: {call}("
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "trust_remote_code"}:
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield f"{name}:{node.value.lineno}: {node.arg} is not False"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_LOADERS:
            yield f"{name}:{node.lineno}: {ast.unparse(node)}: only a SafeLoader"


def length_problems(source: str, name: str) -> Iterator[str]:
    lines = source.count("\n")
    if lines > MAX_LINES:
        yield f"{name}: {lines} lines: is this two files?"


RULES = [layer_problems, random_problems, unsafe_problems, length_problems]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_keeps_the_rule(rule: Callable[[str, str], Iterator[str]]) -> None:
    problems = [
        problem
        for path in MODULES
        for problem in rule(path.read_text("utf-8"), path.relative_to(PACKAGE.parent).as_posix())
    ]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (layer_problems, "weft/core/x.py", "from weft.runs.layout import RunLayout"),
        (layer_problems, "weft/core/x.py", "from weft import runs"),
        (layer_problems, "weft/core/x.py", "import weft.cli.main"),
        (layer_problems, "weft/core/x.py", "from ..runs import layout"),
        (layer_problems, "weft/model/x.py", "def f():\n    from weft.training import fit"),
        (layer_problems, "weft/analysis/x.py", "import torch.nn as nn"),
        (random_problems, "weft/data/x.py", "import random"),
        (random_problems, "weft/data/x.py", "torch.manual_seed(0)"),
        (random_problems, "weft/data/x.py", "rng = np.random.default_rng(0)"),
        (random_problems, "weft/core/keys.py", "np.random.shuffle(x)"),
        (unsafe_problems, "weft/data/x.py", "import pickle"),
        (unsafe_problems, "weft/data/x.py", "torch.load(path)"),
        (unsafe_problems, "weft/data/x.py", "eval(text)"),
        (unsafe_problems, "weft/data/x.py", "np.load(path, allow_pickle=True)"),
        (unsafe_problems, "weft/data/x.py", "yaml.load(text, Loader=yaml.Loader)"),
        (length_problems, "weft/data/x.py", "x = 1\n" * (MAX_LINES + 1)),
    ],
)
def test_rule_catches(rule: Callable[[str, str], Iterator[str]], name: str, source: str) -> None:
    assert len(list(rule(source, name))) == 1


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (layer_problems, "weft/runs/x.py", "from weft.core.files import write_json"),
        (layer_problems, "weft/__init__.py", "from weft.training import fit"),
        (layer_problems, "weft/cli/x.py", "import torch"),
        (random_problems, "weft/core/keys.py", "np.random.Generator(np.random.PCG64(1))"),
        (random_problems, "weft/data/x.py", "def f(g: np.random.Generator): ..."),
        (unsafe_problems, "weft/model/x.py", "model.eval()"),
        (unsafe_problems, "weft/model/x.py", "load(ref, trust_remote_code=False)"),
    ],
)
def test_rule_allows(rule: Callable[[str, str], Iterator[str]], name: str, source: str) -> None:
    assert list(rule(source, name)) == []


def test_every_directory_is_a_layer() -> None:
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"assets"}
    assert found <= set(LAYERS)


def test_torch_free_layers_load_no_torch() -> None:
    names = [
        path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
        for path in MODULES
        if path.parent.name in TORCH_FREE
    ]
    code = f"import sys, {', '.join(['weft', *names])}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
