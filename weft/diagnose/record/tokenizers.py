"""Texts that become token ids, and the tokenizers of transformers that do it."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from weft.diagnose.record.patching import Undo, replace, together, when_imported
from weft.diagnose.record.recorder import Recorder
from weft.runs.evidence import Encoded

MAX_TEXTS = 2_000
"""Texts that are kept; what a model is given is seen in its passes, too."""

REMEMBERED = 64
"""Texts of chat templates, of which an encoded one may be made."""


def install(recorder: Recorder) -> Undo:
    """Look at calls of tokenizers and at chat templates."""
    undos: list[Undo] = []
    tap = _Tap(recorder)

    def patch(module: ModuleType) -> None:
        base = module.PreTrainedTokenizerBase
        undos.append(replace(base, "__call__", tap.encoder))
        undos.append(replace(base, "encode", tap.encoder))
        undos.append(replace(base, "apply_chat_template", tap.template))

    undos.append(when_imported("transformers.tokenization_utils_base", patch))
    return together(undos)


class _Tap:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._nested = False  # encode calls __call__, a template may call both
        self._templated = False
        self._texts: deque[str] = deque(maxlen=REMEMBERED)
        self._count = 0
        self._seen: dict[int, tuple[Any, tuple[Any, ...]]] = {}

    def encoder(self, original: Any) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def encoder(tokenizer: Any, *args: Any, **kwargs: Any) -> Any:
            if self._nested or not self.recorder.watching:
                return original(tokenizer, *args, **kwargs)
            self._nested = True
            try:
                result = original(tokenizer, *args, **kwargs)
            finally:
                self._nested = False
            with self.recorder.aside():
                given = signature.bind(tokenizer, *args, **kwargs).arguments
                self._encoded(tokenizer, given | given.get("kwargs", {}), result)
            return result

        return encoder

    def template(self, original: Any) -> Callable[..., Any]:
        def template(tokenizer: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.recorder.watching:
                return original(tokenizer, *args, **kwargs)
            before, self._templated = self._templated, True
            try:
                result = original(tokenizer, *args, **kwargs)
            finally:
                self._templated = before
            with self.recorder.aside():
                texts = [result] if isinstance(result, str) else result
                if isinstance(texts, list) and all(isinstance(each, str) for each in texts):
                    self._texts.extend(texts)
            return result

        return template

    def _encoded(self, tokenizer: Any, given: dict[str, Any], result: Any) -> None:
        self._seen_now(tokenizer)
        texts = _texts(given)
        where = self.recorder.where()
        for text, (ids, full) in zip(texts, _ids(result, given, tokenizer), strict=True):
            self._count += 1
            if self._count > MAX_TEXTS:
                self.recorder.notice(f"texts after the first {MAX_TEXTS:,} were not kept")
                return
            self.recorder.emit(
                Encoded(
                    text=text,
                    ids=ids,
                    special=bool(given.get("add_special_tokens", True)),
                    full_length=full,
                    truncation_side=None if full is None else tokenizer.truncation_side,
                    templated=self._templated or any(text.startswith(t) for t in self._texts),
                    slots=self.recorder.slots(text),
                    where=where,
                )
            )

    def _seen_now(self, tokenizer: Any) -> None:
        """Write down a tokenizer that is new, or not as it was."""
        self.recorder.data.decode = tokenizer.decode
        now = (
            len(tokenizer),
            str(getattr(tokenizer, "chat_template", None)),
            tokenizer.padding_side,
            tokenizer.truncation_side,
            str(tokenizer.special_tokens_map),
        )
        _, before = self._seen.get(id(tokenizer), (None, None))
        if before != now:
            from weft.data.tokenizer import tokenizer_seen

            self._seen[id(tokenizer)] = (tokenizer, now)  # kept, so that its id stays its own
            where = self.recorder.where()
            self.recorder.emit(tokenizer_seen(tokenizer).model_copy(update={"where": where}))


def _texts(given: dict[str, Any]) -> list[str]:
    """The texts of one call, pairs joined, words of a text that came split joined by spaces."""
    text = given.get("text")
    if text is None:
        text, pair = given.get("text_target"), given.get("text_pair_target")
    else:
        pair = given.get("text_pair")
    split = bool(given.get("is_split_into_words"))
    single = isinstance(text, str) or (split and text and isinstance(text[0], str))
    texts: list[Any] = [text] if single else list(text or ())
    pairs: list[Any] = [None] * len(texts) if pair is None else [pair] if single else list(pair)
    return [_joined(one, two) for one, two in zip(texts, pairs, strict=True)]


def _joined(text: Any, pair: Any) -> str:
    if isinstance(text, list | tuple) and len(text) == 2 and pair is None:  # pairs in a batch
        text, pair = text if all(isinstance(each, str) for each in text) else (text, None)
    parts = [part if isinstance(part, str) else " ".join(part) for part in (text, pair) if part]
    return "\n".join(parts)


def _ids(
    result: Any, given: dict[str, Any], tokenizer: Any
) -> Iterator[tuple[tuple[int, ...], int | None]]:
    """Ids of each text without padding, with their number before truncation where some were cut."""
    encodings = getattr(result, "encodings", None)
    if encodings and not given.get("return_overflowing_tokens"):
        for each in encodings:
            ids = tuple(_unpadded(each.ids, each.attention_mask))
            cut = sum(sum(not s for s in more.special_tokens_mask) for more in each.overflowing)
            stride = int(given.get("stride") or 0)
            over = max(0, cut - stride * len(each.overflowing))
            yield ids, len(ids) + over if over else None
        return
    masks: Any = None
    if hasattr(result, "keys"):
        masks, rows = result.get("attention_mask"), result["input_ids"]
    else:
        rows = result
    rows = rows.tolist() if hasattr(rows, "tolist") else rows
    masks = masks.tolist() if hasattr(masks, "tolist") else masks
    if not rows or isinstance(rows[0], int):
        rows, masks = [rows], None if masks is None else [masks]
    for index, row in enumerate(rows):
        if masks is not None:
            row = _unpadded(row, masks[index])
        elif given.get("padding"):
            row = _stripped(list(row), tokenizer)
        yield tuple(map(int, row)), None


def _unpadded(ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    return [each for each, real in zip(ids, mask, strict=True) if real]


def _stripped(ids: list[int], tokenizer: Any) -> list[int]:
    """Without the padding at its side; of ids that end a text like padding one may be lost."""
    pad = tokenizer.pad_token_id
    if tokenizer.padding_side == "left":
        start = next((i for i, each in enumerate(ids) if each != pad), len(ids))
        return ids[start:]
    stop = next((i for i, each in enumerate(reversed(ids)) if each != pad), len(ids))
    return ids[: len(ids) - stop]
