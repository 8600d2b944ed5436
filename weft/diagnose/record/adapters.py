"""Adapters as they are at some moments: what was declared, and what modules really compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from weft.diagnose.record.patching import Undo
from weft.diagnose.record.recorder import Changed, Ending, ModelSeen, PassSeen, Recorder, StepTaken
from weft.diagnose.record.weights import whole
from weft.runs.evidence import AdapterModule, Happened, Settings, Snapshot
from weft.runs.sketch import digest

if TYPE_CHECKING:
    from torch import nn

    from weft.diagnose.record.anatomy import Lora

FIRST_PASSES = 4
"""Of passes that train only the first are looked at; optimiser steps tell of the others."""

SWITCHES = {"disable", "enable", "set", "freeze", "unfreeze"}
"""What is done to an adapter that leaves its numbers as they are."""

When = Literal["use", "step", "merge", "end"]


def install(recorder: Recorder) -> Undo:
    """Look at adapters when used, after steps 1, 2, 4, ..., around merges, and at the end."""
    tap = _Tap(recorder)
    recorder.listen(ModelSeen, lambda signal: tap.look(signal.model, signal.module, "use"))
    recorder.listen(PassSeen, tap.after_pass)
    recorder.listen(StepTaken, lambda signal: tap.after_step(signal))
    recorder.listen(Changed, tap.changed)
    recorder.listen(Happened, tap.happened)
    recorder.listen(Ending, lambda signal: tap.end())
    return lambda: None


class _Tap:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._states: dict[str, tuple[Any, ...]] = {}
        self._steps: dict[str, int] = {}
        self._settled: set[str] = set()
        self._loaded: str | None = None

    def after_pass(self, signal: PassSeen) -> None:
        """An adapter may have been attached, switched or merged between two passes."""
        event = signal.event
        self._say_unseen(signal.called)
        if signal.follows or (event.phase == "train" and event.index >= FIRST_PASSES):
            return
        if self._state(signal.module) != self._states.get(event.model):
            self.look(event.model, signal.module, "use")

    def _say_unseen(self, called: nn.Module) -> None:
        """PEFT has other adapters than LoRA."""
        configs = getattr(called, "peft_config", None)
        for config in configs.values() if isinstance(configs, dict) else ():
            kind = str(getattr(config.peft_type, "value", config.peft_type))
            if kind != "LORA":
                self.recorder.notice(f"adapters of the type {kind} were not looked at, only LoRA")

    def after_step(self, signal: StepTaken) -> None:
        """Steps 1, 2, 4, 8, ..."""
        if signal.step & (signal.step - 1) == 0:
            for key, root in self.recorder.models.live().items():
                self.look(key, root, "step")

    def changed(self, signal: Changed) -> None:
        """Something was merged, reset or loaded; what only switches adapters is seen in use."""
        if signal.what not in SWITCHES:
            for key, root in self.recorder.models.live().items():
                self.look(key, root, "merge")

    def happened(self, event: Happened) -> None:
        """Where the newest adapter was read from."""
        if event.what == "load" and "adapter" in event.facts:
            self._loaded = whole(event.place)

    def end(self) -> None:
        """The script is over."""
        for key, root in self.recorder.models.live().items():
            self.look(key, root, "end")

    def _state(self, root: nn.Module) -> tuple[Any, ...]:
        """What of an adapter changes when it is attached, switched, or merged."""
        from weft.diagnose.record.anatomy import loras

        return tuple(
            (lora.name, lora.active, lora.merged, lora.scale, *(id(p) for p in lora.parts))
            for lora in loras(root)
        )

    def look(self, key: str, root: nn.Module, when: When) -> None:
        """Write down the adapter of a model as it is now, if there is one."""
        from weft.diagnose.record.anatomy import loras

        found = loras(root)
        self._states[key] = self._state(root)
        if not found:
            return
        arrays: dict[str, np.ndarray] = {}
        with self.recorder.looking:
            alone = not self.recorder.running
            modules = {lora.name: _module(lora, arrays, alone) for lora in found}
        if not alone:
            self.recorder.notice("scales of adapters were not measured while another thread ran")
        styles = {lora.style for lora in found}
        event = Snapshot(
            model=key,
            when=when,
            step=self.recorder.steps,
            style=styles.pop() if len(styles) == 1 else "hand-written",
            modules=modules,
            trainable=_trainable(root, found),
            declared=_declared(root),
            load=self._loaded,
            where=self.recorder.where(),
        )
        self.recorder.emit(event, arrays)
        if key not in self._settled:
            self._settled.add(key)
            self.recorder.emit(_settings(event))


def _module(lora: Lora, arrays: dict[str, np.ndarray], alone: bool) -> AdapterModule:
    from weft.diagnose.record.probing import base_sketch, seen_scale

    a, b = (factor.float().cpu().numpy().copy() for factor in lora.factors())
    fit = seen_scale(lora) if alone else None
    scale, unexplained = fit if fit is not None else (None, None)
    used = next((value for value in (scale, lora.scale) if value is not None), 1.0)
    arrays[f"{lora.name} a"], arrays[f"{lora.name} b"] = a, b
    sketched = base_sketch(lora.base)
    if sketched is not None:
        arrays[f"{lora.name} base"] = sketched.cpu().numpy()
    return AdapterModule(
        rank=a.shape[0],
        shape=(b.shape[0], a.shape[1]),
        alpha=lora.alpha,
        scale=lora.scale,
        seen_scale=scale,
        unexplained=unexplained,
        dropout=lora.dropout,
        active=lora.active,
        merged=lora.merged,
        trainable=any(part.requires_grad for part in lora.parts),
        norm_a=float(np.linalg.norm(a)),
        norm_b=float(np.linalg.norm(b)),
        norm_update=abs(used) * _norm_of_product(b, a),
        digest_a=digest(a),
        digest_b=digest(b),
        a=f"{lora.name} a",
        b=f"{lora.name} b",
        base_sketch=None if sketched is None else f"{lora.name} base",
    )


def _norm_of_product(b: np.ndarray, a: np.ndarray) -> float:
    """Frobenius norm of B @ A, from matrices of the size of the rank."""
    wide = [factor.astype(np.float64) for factor in (b, a)]
    return float(np.sqrt(max(0.0, ((wide[0].T @ wide[0]) * (wide[1] @ wide[1].T)).sum())))


def _trainable(root: nn.Module, found: list[Lora]) -> dict[str, int]:
    """Parameters that are trained: of adapters, of the base, and all that there are."""
    parts = {id(part) for lora in found for part in lora.parts}
    counts = {"adapter": 0, "base": 0, "total": 0}
    for name, parameter in root.named_parameters():
        counts["total"] += parameter.numel()
        if parameter.requires_grad:
            adapter = id(parameter) in parts or ".lora_" in name
            counts["adapter" if adapter else "base"] += parameter.numel()
    return counts


def _declared(root: nn.Module) -> dict[str, Any]:
    """What a configuration of PEFT says, where there is one."""
    configs = getattr(root, "peft_config", None)
    if not isinstance(configs, dict) or not configs:
        return {}
    config = next(iter(configs.values()))
    facts: dict[str, Any] = {}
    for key, value in config.to_dict().items():
        if isinstance(value, set | frozenset | list | tuple):
            value = sorted(map(str, value))
        if isinstance(value, str | int | float | bool | list) and key != "auto_mapping":
            facts[key] = value
    return facts


def _settings(event: Snapshot) -> Settings:
    """The adapter under Weft's own keys, where it is the same at every module."""
    modules = list(event.modules.values())
    found: dict[str, Any] = {
        "adapter.rank": {module.rank for module in modules},
        "adapter.alpha": {module.alpha for module in modules},
        "adapter.dropout": {module.dropout for module in modules},
        "adapter.scale": {module.scale for module in modules},
    }
    values = {key: each.pop() for key, each in found.items() if len(each) == 1}
    values = {key: value for key, value in values.items() if value is not None}
    values["adapter.targets"] = sorted({name.rpartition(".")[2] for name in event.modules})
    return Settings(values=values, origins=dict.fromkeys(values, "seen"), where=event.where)
