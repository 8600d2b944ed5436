"""Rows with the lengths of the Alpaca data and random token ids.

Only lengths matter to the cost of a step, so the benchmarks need no data set and no tokenizer.

The lengths are a model of Alpaca, not a measurement of it. It rests on three public facts:

* The published templates have 29 (no input) and 44 (with input) GPT-2 tokens around the text of
  the row: words, punctuation and newlines as GPT-2's pre-tokenizer splits them.
* About 40 % of the rows have an input.
* The data set card gives 33,409,057 bytes for 36,401 rows, in which each row's text occurs twice,
  once inside a template of about 166 characters on average. That leaves some 350 characters, or
  80 tokens, of instruction, input and response per row.

We split those 80 tokens into lognormal parts: an instruction of median 12, an input of median 13
(where there is one) and a response of median 45, whose heavy tail gives it a mean of about 62. One
end-of-text token follows the response. Rows are cut at 512 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.core.batch import IGNORE, Batch, Example, batches_of
from weft.core.keys import Key

TEMPLATE_TOKENS = 29
TEMPLATE_TOKENS_WITH_INPUT = 44
WITH_INPUT = 0.4
INSTRUCTION = (12.0, 0.4)  # median, sigma of the log
INPUT = (13.0, 0.8)
RESPONSE = (45.0, 0.8)
MAX_LENGTH = 512


def row_lengths(rows: int, key: Key) -> list[tuple[int, int]]:
    """(prompt tokens, response tokens with end-of-text) of `rows` rows."""
    rng = key.fold("lengths").numpy()

    def draw(law: tuple[float, float]) -> np.ndarray:
        median, sigma = law
        return np.maximum(1, np.rint(rng.lognormal(np.log(median), sigma, rows))).astype(int)

    has_input = rng.random(rows) < WITH_INPUT
    template = np.where(has_input, TEMPLATE_TOKENS_WITH_INPUT, TEMPLATE_TOKENS)
    prompt = template + draw(INSTRUCTION) + np.where(has_input, draw(INPUT), 0)
    prompt = np.minimum(prompt, MAX_LENGTH - 1)
    response = np.minimum(draw(RESPONSE) + 1, MAX_LENGTH - prompt)
    return list(zip(prompt.tolist(), response.tolist(), strict=True))


def random_batches(batches: int, rows: int, vocabulary: int, key: Key) -> list[Batch]:
    """`batches` batches of `rows` rows; labels on the response only."""
    rng = key.fold("ids").numpy()
    examples = []
    for number, (prompt, response) in enumerate(row_lengths(batches * rows, key)):
        ids_T = rng.integers(0, vocabulary, prompt + response)
        labels_T = np.concatenate([np.full(prompt, IGNORE), ids_T[prompt:]])
        examples.append(Example(f"random:{number}", ids_T, labels_T))
    return list(batches_of(examples, rows))


def describe(lengths: Sequence[int]) -> str:
    """`mean 121, median 105, p95 245, longest 401`."""
    return (
        f"mean {np.mean(lengths):.0f}, median {np.median(lengths):.0f}, "
        f"p95 {np.percentile(lengths, 95):.0f}, longest {max(lengths)}"
    )
