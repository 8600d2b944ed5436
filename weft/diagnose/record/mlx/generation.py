"""Completions of MLX scripts: of mlx-lm's `generate_step`, and of loops written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.special import logsumexp

from weft.diagnose.record.mlx.watched import MlxPass, Watched, numbers
from weft.diagnose.record.recorder import Ending, Recorder
from weft.runs.evidence import Draw, Generation, Happened

How = Literal["argmax", "draw", "unknown"]

SAMPLER = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
"""What mlx-lm's make_sampler calls the settings of a draw."""


@dataclass
class _Text:
    """A completion in the making."""

    prompt: list[int]
    fed: list[int]  # all tokens that the model was given
    tokens: list[int] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    where: str | None = None
    model: str = ""
    feeding: str = "all"  # the text again, its last token beside a cache, or that alone


class Completions:
    """Watches `generate_step`, and passes that follow one another outside of it."""

    def __init__(self, recorder: Recorder, watched: Watched) -> None:
        """Listen to passes."""
        self._recorder, self._watched = recorder, watched
        self._samplers: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._eos: list[frozenset[int]] = []  # of the calls of stream_generate that are going on
        self._steps = 0  # calls of generate_step that are going on
        self._loop: _Text | None = None
        self._chosen: tuple[int, How] | None = None  # since the last pass
        recorder.listen(MlxPass, self._passed)
        recorder.listen(Ending, lambda _: self._close())

    def make_sampler(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Remember what a sampler was made of."""

        def make(*args: Any, **kwargs: Any) -> Any:
            sampler = original(*args, **kwargs)
            with self._recorder.aside():
                given = dict(zip(("temp", "top_p", "min_p"), args, strict=False)) | kwargs
                named = {SAMPLER[key]: x for key, x in given.items() if key in SAMPLER}
                self._samplers[id(sampler)] = sampler, named
            return sampler

        return make

    def stream_generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Know which tokens end a text."""

        def stream(model: Any, tokenizer: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
            ends = getattr(tokenizer, "eos_token_ids", None) or ()
            self._eos.append(frozenset(ends))
            try:
                yield from original(model, tokenizer, *args, **kwargs)
            finally:
                self._eos.pop()

        return stream

    def generate_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """One completion a call, with the settings that it was given."""

        def step(prompt: Any, model: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
            if not self._recorder.watching:
                yield from original(prompt, model, *args, **kwargs)
                return
            text = _Text([], [])
            with self._recorder.aside():
                self._close()
                text.prompt = np.asarray(numbers(prompt)).tolist()
                text.where = self._recorder.where()
                text.model = self._watched.key(model)
            first, eos = self._watched.passes, self._eos[-1] if self._eos else frozenset()
            settings = self._settings(kwargs)
            self._steps += 1
            try:
                for token, log_probabilities in original(prompt, model, *args, **kwargs):
                    with self._recorder.aside():
                        text.tokens.append(int(token))
                        text.draws.append(_draw(text, settings, numbers(log_probabilities)))
                    yield token, log_probabilities
            finally:
                self._steps -= 1
                with self._recorder.aside():
                    text.passes = list(range(first, self._watched.passes))
                    most = settings.get("max_tokens")
                    ended = "eos" if text.tokens and text.tokens[-1] in eos else "unknown"
                    ended = "length" if ended == "unknown" and len(text.tokens) == most else ended
                    self._emit(text, "mlx", settings | {"eos": sorted(eos)}, ended)

        return step

    def _settings(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        sampler = kwargs.get("sampler")
        known = self._samplers.get(id(sampler))
        drawn: dict[str, Any] = {"temperature": 0.0} if sampler is None else {}
        if known is not None and known[0] is sampler:
            drawn = {"temperature": 0.0, **known[1]}
        settings = {"max_tokens": kwargs.get("max_tokens", 256), **drawn}
        if "temperature" in drawn:
            settings["greedy"] = drawn["temperature"] == 0
        return settings

    def chooser(self, how: How) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """For a function that makes one token of logits: `argmax` or `draw`."""

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def choose(logits: Any, *args: Any, **kwargs: Any) -> Any:
                found = original(logits, *args, **kwargs)
                if self._recorder.watching and not self._steps and self._loop is not None:
                    with self._recorder.aside():
                        token = numbers(found)
                        if token is not None and token.size == 1:
                            self._chosen = int(token.reshape(-1)[0]), how
                return found

            return choose

        return make

    def _passed(self, seen: MlxPass) -> None:
        """Go on with the loop that is going on, or see whether one begins."""
        if self._steps or seen.event.training or seen.ids is None or seen.ids.shape[0] != 1:
            return
        ids, loop = seen.ids[0].tolist(), self._loop
        if loop is not None and self._goes_on(loop, ids, seen.event.past):
            chosen = self._chosen is not None and self._chosen[0] == ids[-1]
            how: How = self._chosen[1] if chosen and self._chosen else "unknown"
            loop.tokens.append(ids[-1])
            loop.draws.append(Draw(row=0, step=len(loop.tokens), token=ids[-1], how=how))
            loop.fed.append(ids[-1])
            lone = "cache" if seen.event.past else "last token"
            loop.feeding = lone if len(ids) == 1 else "all"
        elif loop is not None and not loop.tokens and seen.event.past == len(loop.fed):
            loop.prompt += ids  # a prompt in pieces
            loop.fed += ids
        else:
            self._close()
            loop = self._loop = _Text(list(ids), list(ids))
            loop.where, loop.model = self._recorder.where(), seen.event.model
        loop.passes.append(seen.event.index)
        self._chosen = None

    def _goes_on(self, loop: _Text, ids: Sequence[int], past: int) -> bool:
        """Whether a pass continues a text by one token: all of it again, or only that one."""
        if ids[:-1] == loop.fed and past == 0:
            return True
        is_chosen = self._chosen is not None and len(ids) == 1 and ids[0] == self._chosen[0]
        return is_chosen or (len(ids) == 1 and past == len(loop.fed))

    def _close(self) -> None:
        """The loop that was going on is over: what was chosen last was not fed again."""
        loop, self._loop = self._loop, None
        if loop is None or not (loop.tokens or self._chosen):
            return
        if self._chosen is not None:
            token, how = self._chosen
            loop.tokens.append(token)
            loop.draws.append(Draw(row=0, step=len(loop.tokens), token=token, how=how))
            self._chosen = None
        greedy = all(draw.how == "argmax" for draw in loop.draws)
        settings = {"feeding": loop.feeding} | ({"greedy": True} if greedy else {})
        self._emit(loop, "loop", settings, "unknown")

    def _emit(self, text: _Text, driver: str, settings: dict[str, Any], ended: str) -> None:
        self._recorder.emit(
            Generation(
                model=text.model,
                driver=driver,
                settings=settings,
                prompts=(tuple(text.prompt),),
                tokens=(tuple(text.tokens),),
                ended=(ended,),
                passes=tuple(text.passes),
                draws=tuple(text.draws),
                where=text.where,
            )
        )

    def fused(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """An adapter was merged into the weights of a module."""

        def fuse(module: Any, *args: Any, **kwargs: Any) -> Any:
            made = original(module, *args, **kwargs)
            with self._recorder.aside():
                self._recorder.emit(Happened(what="merge", where=self._recorder.where()))
            return made

        return fuse


def _draw(text: _Text, settings: dict[str, Any], log_probabilities: np.ndarray | None) -> Draw:
    """How the newest token was chosen."""
    token, greedy = text.tokens[-1], settings.get("greedy")
    probability = None
    if log_probabilities is not None:
        flat = log_probabilities.reshape(-1).astype(np.float64)
        probability = float(np.exp(flat[token] - logsumexp(flat)))
    return Draw(
        row=0,
        step=len(text.tokens),
        token=token,
        how="unknown" if greedy is None else "argmax" if greedy else "draw",
        temperature=settings.get("temperature") or None,
        probability=probability,
    )
