"""The tap of MLX: mlx-lm, or a script with a model, a cache and a loop of its own."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from weft.diagnose.record.mlx.generation import Completions
from weft.diagnose.record.mlx.watched import MlxModelSeen, Watched
from weft.diagnose.record.mlx.weights import snapshot_of, weights_of
from weft.diagnose.record.patching import Undo, replace, together, when_imported
from weft.diagnose.record.recorder import Ending, Recorder
from weft.runs.evidence import Happened, Notice, Seeded


def install(recorder: Recorder) -> Undo:
    """Watch models from when they have weights."""
    watched = Watched(recorder)
    completions = Completions(recorder, watched)
    live: list[MlxModelSeen] = []
    undos = watched.undos

    def seen(signal: MlxModelSeen) -> None:
        live.append(signal)
        recorder.emit(*weights_of(signal.key, signal.model, signal.load))
        if found := snapshot_of(signal.key, signal.model, signal.adapter, "use"):
            recorder.emit(*found)

    def ended(_: Ending) -> None:
        for signal in live:
            if found := snapshot_of(signal.key, signal.model, signal.adapter, "end"):
                recorder.emit(*found)
        if any(signal.model.training for signal in live):
            recorder.emit(Notice(text="training with MLX is seen only before and after it"))

    def of_nn(nn: ModuleType) -> None:
        import mlx.core as mx

        undos.append(replace(nn.Module, "load_weights", lambda f: _loading(recorder, watched, f)))
        undos.append(replace(mx.random, "seed", lambda f: _seeding(recorder, f)))
        undos.append(replace(mx, "argmax", completions.chooser("argmax")))
        undos.append(replace(mx.random, "categorical", completions.chooser("draw")))

    def of_utils(utils: ModuleType) -> None:
        undos.append(replace(utils, "load_model", lambda f: _opening(recorder, watched, f)))
        undos.append(replace(utils, "load_adapters", lambda f: _adapting(recorder, watched, f)))

    def of_generate(generate: ModuleType) -> None:
        undos.append(replace(generate, "generate_step", completions.generate_step))
        undos.append(replace(generate, "stream_generate", completions.stream_generate))

    def of_lora(lora: ModuleType) -> None:
        undos.append(replace(lora.LoRALinear, "fuse", completions.fused))

    def of_samplers(samplers: ModuleType) -> None:
        undos.append(replace(samplers, "make_sampler", completions.make_sampler))

    recorder.listen(MlxModelSeen, seen)
    recorder.listen(Ending, ended)
    for name, act in {
        "mlx.nn": of_nn,
        "mlx_lm.sample_utils": of_samplers,
        "mlx_lm.tuner.lora": of_lora,
        "mlx_lm.utils": of_utils,
        "mlx_lm.generate": of_generate,
    }.items():
        undos.append(when_imported(name, act))
    return together(undos)


Wrapped = Callable[..., Any]


def _loading(recorder: Recorder, watched: Watched, original: Wrapped) -> Wrapped:
    def load_weights(module: Any, file_or_weights: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(module, file_or_weights, *args, **kwargs)
        if recorder.watching:
            with recorder.aside():
                path = file_or_weights if isinstance(file_or_weights, str) else None
                watched.loaded(module, path)
        return made

    return load_weights


def _opening(recorder: Recorder, watched: Watched, original: Wrapped) -> Wrapped:
    def load_model(path: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(path, *args, **kwargs)
        if recorder.watching:
            with recorder.aside():
                model = made[0] if isinstance(made, tuple) else made
                watched.loaded(model, str(path))
        return made

    return load_model


def _adapting(recorder: Recorder, watched: Watched, original: Wrapped) -> Wrapped:
    def load_adapters(model: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(model, path, *args, **kwargs)
        if recorder.watching:
            with recorder.aside():
                watched.loaded(made, adapter=str(path))
                recorder.emit(
                    Happened(what="load", place=str(path), where=recorder.where(), facts={})
                )
        return made

    return load_adapters


def _seeding(recorder: Recorder, original: Wrapped) -> Wrapped:
    def seed(value: int) -> Any:
        if recorder.watching:
            with recorder.aside():
                recorder.emit(Seeded(library="mlx", seed=int(value), where=recorder.where()))
        return original(value)

    return seed
