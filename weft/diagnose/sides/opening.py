"""What people point at (a run, a recording, an adapter, a configuration) as evidence.

Nothing here loads torch or a base: what is not in the files stays unknown, and the evidence says
what its kind cannot show.
"""

from __future__ import annotations

from pathlib import Path

from weft.core.errors import InputError, did_you_mean
from weft.data.tokenizer import BUNDLED
from weft.diagnose.sides.evidence import Evidence
from weft.diagnose.sides.from_adapter import adapter_evidence
from weft.diagnose.sides.from_config import config_evidence
from weft.diagnose.sides.from_run import run_evidence
from weft.formats.bundled import ADAPTERS, bundled_adapter
from weft.formats.factors import kinds_at
from weft.formats.folder import contents
from weft.formats.problems import shortened
from weft.runs.layout import ExperimentLayout, RunLayout
from weft.runs.recording import Recording, is_recording
from weft.training.resolve import experiment_paths, recipe_paths

SIDES = "a run, a recording, an adapter or a configuration"
_YAML = (".yaml", ".yml")


def open_evidence(ref: str, base: str | None = None) -> Evidence:
    """One side of a diagnosis: what `ref` is, and all that its files say.

    `ref` is a run directory or a member of one (`RUN/members/NAME`), a recording, an adapter (a
    directory or file, or one that ships with Weft), or a configuration (a file or a recipe's name).
    `base` is the base of an adapter, whatever its files say. Raises `InputError` for anything else.
    """
    path = bundled_adapter(ref) or Path(ref)
    if ref in recipe_paths() and not path.is_dir():
        return config_evidence(ref)
    if RunLayout(path).manifest.is_file():
        return run_evidence(ref, path)
    if (run := _run_of_member(path)) is not None:
        return run_evidence(ref, run, path.name)
    if is_recording(path):
        return _recording(ref, path)
    if path.is_file() and path.suffix in _YAML:
        return config_evidence(ref)
    _refuse_others(ref, path)
    if path.exists() and kinds_at(path):
        return adapter_evidence(ref, path, base)
    if kinds_at(RunLayout(path).adapter):  # a run's directory that only its adapter was copied of
        return adapter_evidence(ref, RunLayout(path).adapter, base)
    raise _unknown(ref, path)


def _run_of_member(path: Path) -> Path | None:
    """The run whose member `path` is."""
    run = path.parent.parent
    return run if path == RunLayout(run).members / path.name and _is_run(run) else None


def _is_run(path: Path) -> bool:
    return RunLayout(path).manifest.is_file()


def _recording(ref: str, path: Path) -> Evidence:
    recording = Recording(path)
    return Evidence(
        ref,
        "recording",
        path,
        recording.events,
        recording.array,
        recording.about.model_dump(mode="json"),
        recording.lacks(ref),
    )


def _refuse_others(ref: str, path: Path) -> None:
    """What Weft knows by name or file, and what is no side of a diagnosis."""
    if ref == "base" or ref in BUNDLED or _is_base(path):
        raise InputError(
            f"{ref} is a base: nothing was trained or said there",
            hint=f"give {SIDES}; a base goes with --base",
        )
    if ref in experiment_paths():
        raise InputError(
            f"{ref} is an experiment, not one configuration",
            hint=f"give one of its runs, once `weft experiment {ref}` has trained them",
        )
    record = ExperimentLayout(path).record
    if record.is_file():
        arms = [str(each) for each in sorted((path / "arms").glob("*")) if _is_run(each)]
        raise InputError(
            f"{ref} is an experiment of several runs",
            hint=f"name one of them: {shortened(arms, ', ')}" if arms else None,
        )


def _is_base(path: Path) -> bool:
    """Whether a directory holds a model; some adapters come with the configuration of theirs."""
    if not (path / "config.json").is_file():
        return False
    return not kinds_at(path) or any(path.glob("model*.safetensors"))


def _unknown(ref: str, path: Path) -> InputError:
    if path.exists():
        inside = sorted(path.iterdir()) if path.is_dir() else []
        near = [str(e) for e in inside if _is_run(e) or is_recording(e) or kinds_at(e)]
        hint = f"name one of them: {shortened(near, ', ')}" if near else None
        if len(near) == 1:
            hint = f"did you mean {near[0]}?"
        return InputError(
            f"{ref} is not {SIDES}: {contents(path)}",
            hint=hint
            or "a run holds manifest.json, a recording recording.json, an adapter its tensors "
            "(PEFT, mlx-lm, mlx-examples); a configuration is a .yaml file",
        )
    known = [*recipe_paths(), *ADAPTERS]
    if path.parent.is_dir():
        known += [str(entry) for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    return InputError(
        f"there is no {ref}",
        hint=did_you_mean(ref, known) or f"give {SIDES}",
    )
