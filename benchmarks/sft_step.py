"""One LoRA training step on a GPT-2-small-shaped model: Weft, PEFT with the Trainer, and TRL.

Everyone gets the same rows in the same order, the same random base and the same recipe: rank 8,
alpha 16, dropout 0.1 on `c_attn` and `c_proj`, AdamW at 2e-4, gradients clipped at norm 1, loss on
the response only. B starts at zero, so the loss of the first step does not depend on A or on the
dropout masks: it must be the same number for everyone, and `check_first_losses` sees to it. One
contender takes the same rows in another order, by length, as the Trainer offers to: its batches
are more even, and its first loss is that of other rows.

The base's own dropout is 0 for everyone, as in current base models, but in one recipe: GPT-2's own
0.1, as its configuration has it, which the Trainer leaves on and Weft turns on when asked. First
losses then differ by their noise. In bf16 the base is bf16 and the adapter fp32, everywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import peft
import torch
import transformers

from benchmarks.harness import Contender, Measurement, Run, Trace
from benchmarks.limit import Limit, Product
from benchmarks.sft_peers import TRL, with_trainer, with_trl
from weft.core.batch import Batch, batches_of
from weft.core.errors import CheckFailed
from weft.core.keys import Key
from weft.engines.scorer import LocalScorer
from weft.methods.config import BackpropConfig, OptimiserConfig
from weft.methods.estimate import Point
from weft.methods.optimise import Moments, clip, rate, update
from weft.methods.registry import METHODS
from weft.model.adapter import initial_adapter
from weft.model.base import DTYPES, prepare
from weft.model.config import AdapterConfig, DType
from weft.model.noise import global_generator
from weft.model.sites import choose_sites

BATCH_ROWS = 4
PADDED_LENGTH = 512
ADAPTER = AdapterConfig(rank=8, alpha=16, dropout=0.1, targets=("c_attn", "c_proj"))
OPTIMISER = OptimiserConfig(lr=2e-4, clip=1.0)
SEED = 0


@dataclass(frozen=True)
class Recipe:
    """One way of training that everyone follows."""

    name: str
    dtype: DType = "float32"
    base_dropout: float = 0.0
    layers: int = 12
    hidden: int = 768
    vocabulary: int = 50257

    def small(self) -> Recipe:
        """For `--quick`."""
        return replace(self, layers=2, hidden=24, vocabulary=97)

    @property
    def what(self) -> str:
        """In words."""
        return (
            f"GPT-2-small shape, random {self.dtype} weights; LoRA rank {ADAPTER.rank} on "
            f"{' and '.join(ADAPTER.targets)}, dropout {ADAPTER.dropout}, the base's own dropout "
            f"{self.base_dropout}; batches of {BATCH_ROWS} rows"
        )

    @property
    def pad(self) -> int:
        """Token id of what fills rows up, for those who do."""
        return self.vocabulary - 1

    def base_model(self) -> transformers.GPT2LMHeadModel:
        """GPT-2 small with random weights, the same at every call."""
        noise = self.base_dropout
        config = transformers.GPT2Config(
            n_layer=self.layers,
            n_embd=self.hidden,
            vocab_size=self.vocabulary,
            bos_token_id=self.pad,
            eos_token_id=self.pad,
            resid_pdrop=noise,
            embd_pdrop=noise,
            attn_pdrop=noise,
        )
        with global_generator(Key.of(SEED).fold("base")):
            return transformers.GPT2LMHeadModel(config).to(DTYPES[self.dtype])

    def peft_model(self) -> peft.PeftModel:
        """PEFT's LoRA on it."""
        config = peft.LoraConfig(
            r=ADAPTER.rank,
            lora_alpha=ADAPTER.effective_alpha,
            lora_dropout=ADAPTER.dropout,
            target_modules=list(ADAPTER.targets),
            fan_in_fan_out=True,
            task_type="CAUSAL_LM",
        )
        return peft.get_peft_model(self.base_model(), config)


RECIPES = (
    Recipe("sft_step"),
    Recipe("sft_step_bfloat16", dtype="bfloat16"),
    Recipe("sft_step_base_dropout", base_dropout=0.1),
)


# Weft


def build_weft(recipe: Recipe) -> Run:
    """Weft's engine, gradient estimator and optimiser, put together as its training loop does."""
    fill = SimpleNamespace(pad_token_id=0, eos_token_id=0)  # rows are ids: nothing is tokenised
    base = prepare("random GPT-2", recipe.base_model(), fill)
    layout = choose_sites(base.sites, ADAPTER)
    dropped = recipe.base_dropout > 0
    engine = LocalScorer(base, layout, dropout=ADAPTER.dropout, base_dropout=dropped)
    key = Key.of(SEED)

    def run(batches: Sequence[Batch]) -> Trace:
        theta_LP = initial_adapter(layout, key).flat[None]
        moments = Moments.fresh(theta_LP)
        seconds, losses = [], []
        for step, batch in enumerate(batches):
            start = time.perf_counter()
            point = Point(theta_LP, None, [batch], [key.fold("step", step)])
            estimate = METHODS["backprop"].estimate(BackpropConfig(), point, engine)
            direction_LP, _ = clip(estimate.direction_LP, OPTIMISER.clip)
            lr_L1 = torch.full((1, 1), OPTIMISER.lrs[0] * rate(OPTIMISER, step, len(batches)))
            theta_LP, moments = update(theta_LP, direction_LP, lr_L1, moments, OPTIMISER)
            seconds.append(time.perf_counter() - start)
            losses.append(estimate.loss_L[0])
        return Trace(tuple(seconds), tuple(losses))

    return run


# the contenders, and that they compute the same thing

GROUPED = "peft_trainer_grouped"


def by_length(run: Run) -> Run:
    """The same rows, with those of about one length in a batch."""

    def sorted_run(batches: Sequence[Batch]) -> Trace:
        warm_up, *timed = batches
        rows = sorted((row for batch in timed for row in batch.examples), key=lambda r: r.tokens)
        return run([warm_up, *batches_of(rows[::-1], BATCH_ROWS)])

    return sorted_run


def contenders(recipe: Recipe) -> list[Contender]:
    """Everyone who takes part, in running order."""
    common = {"learning_rate": OPTIMISER.lrs[0], "max_grad_norm": OPTIMISER.clip}

    def trainer(pad_to: int | None) -> Run:
        return with_trainer(recipe.peft_model(), pad_to, recipe.pad, **common)

    return [
        Contender(
            "peft_trainer_padded",
            f"PEFT, padded to {PADDED_LENGTH}",
            lambda: trainer(PADDED_LENGTH),
        ),
        Contender("peft_trainer_dynamic", "PEFT, padded to longest", lambda: trainer(None)),
        Contender(GROUPED, "PEFT, grouped by length", lambda: by_length(trainer(None))),
        *(
            Contender(
                f"trl_{number}",
                f"TRL, {setting}",
                lambda setting=setting: with_trl(recipe.peft_model(), setting, **common),
            )
            for number, setting in enumerate(TRL)
        ),
        Contender("weft", "Weft", lambda: build_weft(recipe)),
    ]


def limit(recipe: Recipe, batches: Sequence[Batch]) -> Limit:
    """The base's products of one step on rows of the mean length: forward, and back to its input.

    Frozen weights have no gradient; logits are counted where there is a label.
    """
    tokens = round(sum(batch.tokens for batch in batches) / len(batches))
    targets = round(sum(batch.supervised for batch in batches) / len(batches))
    wide, layers = recipe.hidden, recipe.layers
    layer = [(wide, 3 * wide), (wide, wide), (wide, 4 * wide), (4 * wide, wide)]
    products = [
        *(Product(tokens, ins, outs, layers) for ins, outs in layer),
        Product(tokens, 3 * wide, wide, layers - 1),  # nothing below the first has a gradient
        *(Product(tokens, outs, ins, layers) for ins, outs in layer[1:]),
        Product(targets, wide, recipe.vocabulary),
        Product(targets, recipe.vocabulary, wide),
    ]
    return Limit.of("the base alone", products, DTYPES[recipe.dtype])


TOLERANCES = {"float32": 1e-5, "bfloat16": 5e-3}


def check_first_losses(measurements: Sequence[Measurement], dtype: DType) -> None:
    """Everyone starts from the same function, so everyone's first loss is the same."""
    losses = {m.contender: m.rounds[0].first_result for m in measurements}
    wanted = next(iter(losses.values()))
    close = TOLERANCES[dtype]
    if not all(math.isclose(loss, wanted, rel_tol=close) for loss in losses.values()):
        raise CheckFailed(
            f"the contenders do not train the same thing: first losses {losses}",
            "a comparison of speed is void until these agree",
        )
