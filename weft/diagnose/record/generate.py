"""Calls of transformers' `generate`: what they resolved their settings to, and what came out.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.diagnose.record.draws import Chosen, draw_of
from weft.diagnose.record.loops import FITTED_ROWS, FITTED_STEPS, last_of, unpadded
from weft.diagnose.record.patching import Undo, replace, together, when_imported
from weft.diagnose.record.recorder import PassSeen, Recorder
from weft.diagnose.record.seeds import random_digest, random_state
from weft.runs.evidence import Draw, Generation

if TYPE_CHECKING:
    import torch

NAMES = {"min_new_tokens": "min_tokens", "stop_strings": "stop", "eos_token_id": "eos"}
"""Names of settings where they are not those of transformers."""

ALWAYS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "num_beams",
    "num_return_sequences",
    "use_cache",
)
"""Settings that are told whatever they are; others where they do something."""

OTHERS = (
    "min_new_tokens",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "encoder_repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "guidance_scale",
    "early_stopping",
    "max_time",
    "stop_strings",
    "penalty_alpha",
    "cache_implementation",
)
NEUTRAL: tuple[Any, ...] = (None, False, 0, 1, [], {})


@dataclass(eq=False)
class Call:
    """A call of `generate` that is going on."""

    random: str | None
    state: np.ndarray | None = None  # of the generator, for the first call
    config: Any = None  # the resolved one
    first: PassSeen | None = None
    passes: list[int] = field(default_factory=list)
    logits: torch.Tensor | None = None  # [B, V] of the last pass
    chosen: list[Chosen] = field(default_factory=list)  # since the last pass
    draws: list[list[Draw]] = field(default_factory=list)  # by step

    def passed(self, seen: PassSeen) -> None:
        """One of its passes."""
        self.settle()
        if self.first is None:
            self.first = seen
        self.passes.append(seen.event.index)
        self.logits = None if seen.logits is None else seen.logits.float().clone()

    def settle(self) -> None:
        """Keep how the tokens after the last pass were chosen, one a row."""
        logits, self.logits = self.logits, None
        chosen, self.chosen = self.chosen, []
        if logits is None or not chosen:
            return
        picked = next((each for each in reversed(chosen) if each.how == "draw"), chosen[-1])
        tokens = last_of(picked, len(logits))
        if tokens is None or len(tokens) != picked.tokens.numel():
            return
        step = len(self.draws)
        self.draws.append(
            [
                draw_of(
                    row,
                    step,
                    token,
                    picked,
                    logits,
                    step < FITTED_STEPS and row < FITTED_ROWS,
                )[0]
                for row, token in enumerate(tokens)
            ]
        )


def settings_of(config: Any, prompt: int) -> dict[str, Any]:
    """What a resolved configuration says, for prompts of that many positions."""
    found: dict[str, Any] = {
        "max_tokens": None if config.max_length is None else config.max_length - prompt,
        "greedy": not config.do_sample,
    }
    for name in ALWAYS:
        found[NAMES.get(name, name)] = getattr(config, name, None)
    for name in OTHERS:
        value = getattr(config, name, None)
        if value not in NEUTRAL:
            found[NAMES.get(name, name)] = _plain(value)
    eos = getattr(config, "eos_token_id", None)
    found["eos"] = sorted(_ids(eos))
    found["pad"] = next(iter(_ids(getattr(config, "pad_token_id", None))), None)
    return found


def completions(
    sequences: Sequence[Sequence[int]], prompt: int, settings: Mapping[str, Any], stops: bool
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """New tokens of each row without the filling after its end, and why it ended.

    `stops` says that there was a rule that can end a row besides tokens and length.
    """
    eos, pad, limit = set(settings["eos"]), settings["pad"], settings["max_tokens"]
    tokens: list[tuple[int, ...]] = []
    ended: list[str] = []
    for sequence in sequences:
        row = list(sequence[prompt:])
        end = next((i for i, token in enumerate(row, 1) if token in eos), None)
        if end is not None:
            row, why = row[:end], "eos"
        else:
            full = limit is not None and len(row) >= limit
            while stops and row and row[-1] == pad:  # a rule ends rows one by one
                row.pop()
                full = False
            why = "length" if full else "stop" if stops else "unknown"
        tokens.append(tuple(row))
        ended.append(why)
    return tuple(tokens), tuple(ended)


def _ids(value: Any) -> list[int]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | set) else [value]


def _plain(value: Any) -> Any:
    """Something that JSON can hold."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class _Tap(threading.local):  # every thread has a call of its own
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.call: Call | None = None
        self.told = False  # a call was written, with the state that it drew from

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        recorder = self.recorder

        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            if not recorder.watching or recorder.generating:
                return original(model, *args, **kwargs)
            with recorder.aside():
                self.call = Call(random_digest(), None if self.told else random_state())
            recorder.generating += 1
            try:
                made = original(model, *args, **kwargs)
            finally:
                recorder.generating -= 1
                call, self.call = self.call, None
            with recorder.aside():
                if call is not None:
                    self._made(call, model, args, kwargs, made)
            return made

        return generate

    def prepare(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _prepare_generation_config(model: Any, *args: Any, **kwargs: Any) -> Any:
            made = original(model, *args, **kwargs)
            if self.call is not None and self.call.config is None:
                self.call.config = made[0]
            return made

        return _prepare_generation_config

    def passed(self, seen: PassSeen) -> None:
        if self.call is not None:
            self.call.passed(seen)

    def chose(self, chosen: Chosen) -> None:
        if self.call is not None:
            self.call.chosen.append(chosen)

    def _made(self, call: Call, model: Any, args: Any, kwargs: Any, made: Any) -> None:
        call.settle()
        if getattr(model.config, "is_encoder_decoder", False):
            self.recorder.notice("generate() of a model with an encoder was not recorded")
            return
        if call.config is None or call.first is None:
            self.recorder.notice("a call of generate() decoded in a way that was not seen")
            return
        sequences = (made if hasattr(made, "shape") else made.sequences).tolist()
        ids = args[0] if args else kwargs.get("inputs")
        ids = kwargs.get("input_ids") if ids is None else ids
        ids = ids if ids is not None or "inputs_embeds" in kwargs else call.first.ids
        mask = kwargs.get("attention_mask")
        if mask is None and ids is not None and call.first.mask is not None:
            mask = call.first.mask[:: max(1, len(call.first.mask) // len(ids))]  # one a beam
        rows = [[]] if ids is None else unpadded(ids, mask)
        length = 0 if ids is None else ids.shape[-1]
        copies = max(1, len(sequences) // len(rows))
        settings = settings_of(call.config, length)
        stops = bool(kwargs.get("stopping_criteria") or settings.get("stop"))
        settings |= {
            key: [type(each).__name__ for each in kwargs[name]]
            for key, name in (("processors", "logits_processor"), ("rules", "stopping_criteria"))
            if kwargs.get(name)
        }
        tokens, ended = completions(sequences, length, settings, stops)
        self.recorder.emit(
            Generation(
                model=self.recorder.models.key(model),
                driver="generate",
                settings=settings,
                prompts=tuple(tuple(row) for row in rows for _ in range(copies)),
                tokens=tokens,
                texts=self.recorder.data.texts(tokens),
                ended=ended,
                passes=tuple(call.passes),
                draws=tuple(
                    draw
                    for step, draws in enumerate(call.draws)
                    for draw, row in zip(draws, tokens, strict=False)
                    if step < len(row) and row[step] == draw.token
                ),
                random=call.random,
                state=None if call.state is None else "state",
                where=self.recorder.where(),
            ),
            None if call.state is None else {"state": call.state},
        )
        self.told = True


def install(recorder: Recorder) -> Undo:
    """Look at calls of `generate`."""
    tap = _Tap(recorder)
    undos: list[Undo] = []

    def imported(module: Any) -> None:
        undos.append(replace(module.GenerationMixin, "generate", tap.generate))
        undos.append(replace(module.GenerationMixin, "_prepare_generation_config", tap.prepare))

    recorder.listen(PassSeen, tap.passed)
    recorder.listen(Chosen, tap.chose)
    undos.append(when_imported("transformers.generation.utils", imported))
    return together(undos)
