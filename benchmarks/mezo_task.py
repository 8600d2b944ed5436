"""The MeZO benchmark's model, rows and adapter, the same for everyone.

Only lengths matter to the cost of a step. The lengths here are a model of SST-2 in OPT's tokens:
sentences of 19 words on average (Kim 2014, arXiv 1408.5882, table 1) are about 21 tokens, drawn
from a gamma law of shape 5; with the begin token, ` It was` and the option a row has 25 on average
and 60 at most. (GLUE's training split has phrases, too: shorter rows, and more padding for those
who pad to the longest.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import transformers

from benchmarks.device import CPU, Device
from benchmarks.shapes import Stack
from weft.core.batch import IGNORE, Batch, Choice, Example, batches_of
from weft.core.keys import Key
from weft.model.adapter import Adapter, initial_adapter
from weft.model.config import AdapterConfig
from weft.model.noise import generator, global_generator
from weft.model.sites import choose_sites, find_sites

BATCH_ROWS = 16
TARGETS = ("q_proj", "v_proj")
ADAPTER = AdapterConfig(rank=8, alpha=16, targets=TARGETS)
EPS = 1e-3
LEARNING_RATE = 1e-5
DIRECTIONS = (1, 4, 16)
SEED = 0
PAD_MULTIPLE = 8

BEGIN, PAD = 2, 1
OPTIONS = ((100,), (200,))
SENTENCE_TOKENS = (21.0, 5.0)  # mean, shape of the gamma law
LONGEST_SENTENCE = 56
TEMPLATE_TOKENS = 3  # begin and ` It was`; the option is one more


WHAT = (
    f"random fp32 weights; LoRA rank {ADAPTER.rank} on {' and '.join(TARGETS)}, eps {EPS:g}; "
    f"batches of {BATCH_ROWS} rows with {len(OPTIONS)} options"
)


@dataclass(frozen=True)
class Shape:
    """The sizes of an OPT."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocabulary: int
    embedding: int
    device: Device = CPU

    @property
    def what(self) -> str:
        """In words."""
        return (
            f"OPT with {self.layers} layers, hidden {self.hidden}, {self.heads} heads, ffn "
            f"{self.ffn}, vocabulary {self.vocabulary}, embeddings {self.embedding}"
        )

    @property
    def stack(self) -> Stack:
        """Its matrices; the head is left out, since few of its rows are asked for."""
        wide = self.hidden
        others = ((wide, wide), (wide, self.ffn), (self.ffn, wide))
        return Stack(self.layers, (wide, 3 * wide), others, (wide, 0))

    def model(self) -> transformers.OPTForCausalLM:
        """Random fp32 weights, the same at every call; the norm after each block, as opt-350m."""
        config = transformers.OPTConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            ffn_dim=self.ffn,
            vocab_size=self.vocabulary,
            word_embed_proj_dim=self.embedding,
            do_layer_norm_before=False,
            max_position_embeddings=2048,
        )
        with global_generator(Key.of(SEED).fold("base")):
            return transformers.OPTForCausalLM(config).to(self.device.torch)


OPT_350M = Shape(24, 1024, 16, 4096, 50272, 512)
SMALL = Shape(2, 64, 4, 128, 512, 32)
"""For `--quick`."""


def random_batches(count: int, shape: Shape) -> list[Batch]:
    """`count` batches of rows with random ids, and random right options."""
    draw = Key.of(SEED).fold("rows").numpy()
    mean, law = SENTENCE_TOKENS

    def row(number: int) -> Example:
        sentence = np.clip(round(draw.gamma(law, mean / law)), 1, LONGEST_SENTENCE)
        prompt_T = draw.integers(4, shape.vocabulary, int(sentence) + TEMPLATE_TOKENS)
        prompt_T[0] = BEGIN
        right = int(draw.integers(len(OPTIONS)))
        ids_T = np.concatenate([prompt_T, OPTIONS[right]])
        labels_T = np.concatenate([np.full(len(prompt_T), IGNORE), OPTIONS[right]])
        return Example(f"random:{number}", ids_T, labels_T, Choice(prompt_T, OPTIONS, right))

    return list(batches_of([row(number) for number in range(count * BATCH_ROWS)], BATCH_ROWS))


def first_adapter(model: transformers.PreTrainedModel) -> Adapter:
    """The adapter from which everyone starts: a fresh A, and a B that acts."""
    adapter = initial_adapter(choose_sites(find_sites(model), ADAPTER), Key.of(SEED))
    for name, (_, b_Or) in adapter.sites.items():
        noise = generator(Key.of(SEED).fold("B", name))
        b_Or.normal_(std=0.2, generator=noise)
    return adapter
