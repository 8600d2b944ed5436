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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import peft
import transformers

from benchmarks.alpaca_lengths import describe, random_batches
from benchmarks.device import CPU, Clock, Device
from benchmarks.harness import Contender, Measurement, Run, Trace
from benchmarks.limit import Limit
from benchmarks.race import Options, Race, raced
from benchmarks.sft_peers import TRL, with_trainer, with_trl
from benchmarks.shapes import Stack
from weft.core.batch import Batch, batches_of
from weft.core.errors import CheckFailed
from weft.core.keys import Key
from weft.core.memory import freed_memory_kept
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
from weft.model.trunk import Trunk

BATCH_ROWS = 4
TRUNK_BYTES = 2**30
PADDED_LENGTH = 512
ADAPTER = AdapterConfig(rank=8, alpha=16, dropout=0.1, targets=("c_attn", "c_proj"))
PADDED, DYNAMIC, GROUPED = "peft_trainer_padded", "peft_trainer_dynamic", "peft_trainer_grouped"
OPTIMISER = OptimiserConfig(lr=2e-4, clip=1.0)
SEED = 0


@dataclass(frozen=True)
class Recipe:
    """One way of training that everyone follows."""

    name: str
    dtype: DType = "float32"
    base_dropout: float = 0.0
    last: int | None = None
    """Layers that are adapted, from the top; None for all."""
    epochs: int = 1
    adapters: int = 1
    """That train, each on its own rows: at once, or one after another."""
    peers: tuple[str, ...] = (PADDED, DYNAMIC, GROUPED, *TRL)
    layers: int = 12
    hidden: int = 768
    vocabulary: int = 50257
    device: Device = CPU

    def small(self) -> Recipe:
        """For `--quick`."""
        return replace(self, layers=2, hidden=24, vocabulary=97)

    @property
    def what(self) -> str:
        """In words."""
        return (
            f"GPT-2-small shape, random {self.dtype} weights; LoRA rank {ADAPTER.rank} on "
            f"{' and '.join(ADAPTER.targets)} of {f'the last {self.last}' if self.last else 'all'} "
            f"layers, dropout {ADAPTER.dropout}, the base's own dropout {self.base_dropout}; "
            f"{self.adapters} x {BATCH_ROWS} rows a step, {self.epochs} x each"
        )

    @property
    def pad(self) -> int:
        """Token id of what fills rows up, for those who do."""
        return self.vocabulary - 1

    @property
    def adapter(self) -> AdapterConfig:
        """Where it goes."""
        return ADAPTER.model_copy(update={"layers": f"last {self.last}" if self.last else None})

    def tokens(self, batch: Batch) -> int:
        """What is counted: a row as often as it comes around."""
        return batch.tokens * self.epochs

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
            model = transformers.GPT2LMHeadModel(config)
        return model.to(self.device.torch, DTYPES[self.dtype])

    def peft_model(self) -> peft.PeftModel:
        """PEFT's LoRA on it."""
        config = peft.LoraConfig(
            r=ADAPTER.rank,
            lora_alpha=ADAPTER.effective_alpha,
            lora_dropout=ADAPTER.dropout,
            target_modules=list(ADAPTER.targets),
            layers_to_transform=list(range(self.layers))[-self.last :] if self.last else None,
            fan_in_fan_out=True,
            task_type="CAUSAL_LM",
        )
        return peft.get_peft_model(self.base_model(), config)


RECIPES = (
    Recipe("sft_step"),
    Recipe("sft_step_bfloat16", dtype="bfloat16"),
    Recipe("sft_step_base_dropout", base_dropout=0.1),
    Recipe("sft_last_quarter", last=3, epochs=3, peers=(DYNAMIC, "padding-free")),
    Recipe("sft_eight_adapters", adapters=8, peers=(DYNAMIC,)),
)


# Weft


def build_weft(recipe: Recipe) -> Run:
    """Weft's engine, gradient estimator and optimiser, put together as its training loop does."""
    return weft_steps(scorer_of(recipe), OPTIMISER, recipe.adapters, BATCH_ROWS, recipe.device)


def scorer_of(recipe: Recipe) -> LocalScorer:
    """Weft's engine."""
    fill = SimpleNamespace(pad_token_id=0, eos_token_id=0)  # rows are ids: nothing is tokenised
    base = prepare("random GPT-2", recipe.base_model(), fill)
    layout = choose_sites(base.sites, recipe.adapter)
    trunk = Trunk.of(base, [slot.site.name for slot in layout.slots], TRUNK_BYTES)
    dropped = recipe.base_dropout > 0
    return LocalScorer(base, layout, dropout=ADAPTER.dropout, base_dropout=dropped, trunk=trunk)


def weft_steps(
    engine: LocalScorer, optimiser: OptimiserConfig, adapters: int, rows: int, device: Device
) -> Run:
    """Training steps of so many adapters, each on its own `rows` rows of every batch."""
    key = Key.of(SEED)

    @freed_memory_kept()  # as its training loop does
    def run(batches: Sequence[Batch]) -> Trace:
        theta_LP = initial_adapter(engine.layout, key).flat.repeat(adapters, 1).to(device.torch)
        moments = Moments.fresh(theta_LP)
        clock, losses = Clock(device), []
        for step, batch in enumerate(batches):
            with clock.step():
                point = Point(
                    theta_LP, None, list(batch.micro(rows)), [key.fold("step", step)] * adapters
                )
                estimate = METHODS["backprop"].estimate(BackpropConfig(), point, engine)
                direction_LP, _ = clip(estimate.direction_LP, optimiser.clip)
                lr = optimiser.lrs[0] * rate(optimiser, step, len(batches))
                lr_L1 = theta_LP.new_full((adapters, 1), lr)
                theta_LP, moments = update(theta_LP, direction_LP, lr_L1, moments, optimiser)
            losses.append(estimate.loss_L[0])
        return Trace(tuple(clock.seconds), tuple(losses))

    return run


# the contenders, and that they compute the same thing


def by_length(run: Run) -> Run:
    """The same rows, with those of about one length in a batch."""

    def sorted_run(batches: Sequence[Batch]) -> Trace:
        warm_up, *timed = batches
        rows = sorted((row for batch in timed for row in batch.examples), key=lambda r: r.tokens)
        return run([warm_up, *batches_of(rows[::-1], BATCH_ROWS)])

    return sorted_run


def one_by_one(build: Callable[[], Run]) -> Run:
    """As many runs as there are adapters, each on its share of every batch."""

    def run(batches: Sequence[Batch]) -> Trace:
        shares = zip(*(batch.micro(BATCH_ROWS) for batch in batches), strict=True)
        traces = [build()(share) for share in shares]
        seconds = [sum(step) for step in zip(*(t.seconds for t in traces), strict=True)]
        return Trace(tuple(seconds), traces[0].results)

    return run


def again(run: Run, epochs: int) -> Run:
    """The timed batches, again and again; the seconds of a batch are those of all its epochs."""

    def repeated(batches: Sequence[Batch]) -> Trace:
        warm_up, *timed = batches
        trace = run([warm_up, *timed * epochs])
        by_epoch = trace.seconds[1:]
        seconds = [sum(by_epoch[i :: len(timed)]) for i in range(len(timed))]
        return Trace((trace.seconds[0], *seconds), trace.results[: len(batches)])

    return repeated


def contenders(recipe: Recipe) -> list[Contender]:
    """Everyone who takes part, in running order."""
    common = {"learning_rate": OPTIMISER.lrs[0], "max_grad_norm": OPTIMISER.clip}

    def trainer(pad_to: int | None) -> Run:
        return with_trainer(recipe.peft_model(), recipe.device, pad_to, recipe.pad, **common)

    def tuner(setting: str) -> Callable[[], Run]:
        return lambda: with_trl(recipe.peft_model(), recipe.device, setting, **common)

    peers: dict[str, tuple[str, Callable[[], Run]]] = {
        PADDED: (f"PEFT, padded to {PADDED_LENGTH}", lambda: trainer(PADDED_LENGTH)),
        DYNAMIC: ("PEFT, padded to longest", lambda: trainer(None)),
        GROUPED: ("PEFT, grouped by length", lambda: by_length(trainer(None))),
        **{setting: (f"TRL, {setting}", tuner(setting)) for setting in TRL},
    }

    def peer(name: str) -> Contender:
        what, build = peers[name]
        return Contender(name, what, lambda: again(one_by_one(build), recipe.epochs))

    weft = Contender("weft", "Weft", lambda: again(build_weft(recipe), recipe.epochs))
    return [*map(peer, recipe.peers), weft]


def limits(recipe: Recipe, batches: Sequence[Batch]) -> list[Limit]:
    """The base's products of a step on rows of the mean length, in all its epochs, and its weights.

    They are read forward and back.
    """
    tokens = round(sum(batch.tokens for batch in batches) / len(batches))
    targets = round(sum(batch.supervised for batch in batches) / len(batches))
    wide, dtype = recipe.hidden, DTYPES[recipe.dtype]
    others = ((wide, wide), (wide, 4 * wide), (4 * wide, wide))
    stack = Stack(recipe.layers, (wide, 3 * wide), others, (wide, recipe.vocabulary))
    products = stack.training(tokens, targets, recipe.last, recipe.epochs)
    upper = replace(stack, layers=recipe.last or recipe.layers)
    below = stack.weights - upper.weights
    read = (below + 2 * recipe.epochs * upper.weights) * dtype.itemsize
    return [
        Limit.of("the base alone", products, dtype, recipe.device),
        Limit.of_reading("its weights", read, recipe.device),
    ]


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


def race(full: Recipe) -> Callable[[Options], Race]:
    """Training steps of Weft, of PEFT with the Trainer and of TRL, on the same rows."""

    def made(options: Options) -> Race:
        recipe = replace(full.small() if options.quick else full, device=options.device)
        rows = BATCH_ROWS * recipe.adapters
        batches = random_batches(options.timed, rows, recipe.vocabulary, Key.of(SEED))
        # memory of its size is there when the clock starts, as in all steps of a run but a few
        largest = max(batches, key=lambda batch: batch.tokens)

        def check(measurements: Sequence[Measurement]) -> None:
            if not recipe.base_dropout:  # which draws other noise for each contender
                check_first_losses(measurements, recipe.dtype)

        lengths = [example.tokens for batch in batches for example in batch.examples]
        return Race(
            what=f"{recipe.what}; tokens per row: {describe(lengths)}",
            contenders=contenders(recipe),
            batches=batches,
            vocabulary=recipe.vocabulary,
            warm_up=[largest],
            limits=limits(recipe, batches),
            tokens=recipe.tokens,
            check=check,
        )

    return made


BENCHMARKS = tuple(raced(recipe.name, race(recipe)) for recipe in RECIPES)
