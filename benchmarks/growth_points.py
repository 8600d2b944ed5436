"""The points of the curves of `growth.py`: what is built for a value, and what a step of it does.

One small Llama stands under all of them but where a name says otherwise: what a curve shows is how
cost grows, not how large it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch
import transformers

from benchmarks import mezo_task
from benchmarks.device import CPU, Clock, Device
from benchmarks.harness import Trace
from benchmarks.mezo_step import WeftMezo, weft_run
from benchmarks.sft_step import OPTIMISER, weft_steps
from weft.core.batch import IGNORE, Batch, Example
from weft.core.keys import Key
from weft.core.memory import freed_memory_kept
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.rewards.countdown import Countdown
from weft.data.tokenizer import load_tokenizer
from weft.engines.local import LocalEngine
from weft.engines.population import Alone, Generation
from weft.engines.reward import Reward
from weft.engines.scorer import LocalScorer
from weft.methods.population import Population
from weft.model.adapter import Layout
from weft.model.bank import Bank
from weft.model.base import Base, load_base, prepare
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.noise import generator, global_generator, normal
from weft.model.objectives import OneTokenChoice
from weft.model.sites import choose_sites
from weft.runs.timing import Stopwatch
from weft.training.ground import Ground, grounds

LAYERS, HIDDEN, HEADS, KV_HEADS, FFN, VOCABULARY = 4, 256, 4, 2, 704, 8192
MODEL = (
    f"Llama with {LAYERS} layers, hidden {HIDDEN}, {HEADS} heads, {KV_HEADS} key/value heads, ffn "
    f"{FFN}, vocabulary {VOCABULARY:,} and random fp32 weights, LoRA rank 8 on all linear layers"
)
TOKENS = 2048
"""Of a step whose rows grow longer and fewer."""
ALL = 64
"""Members that are scored, however many at once."""
MEZO = mezo_task.Shape(4, 256, 4, 1024, 8192, 256)
SEED = 0
TINY = "weft/tiny"

Steps = Callable[[int], Trace]
"""Takes so many steps, and times each."""


@dataclass(frozen=True)
class Setting:
    """Where, and whether it is only to show that everything runs."""

    quick: bool = False
    device: Device = CPU


def of_length(value: int, setting: Setting) -> Steps:
    """A step of so many tokens a row and as many rows as make `TOKENS`."""
    return _sft(setting, rows(TOKENS // value, value))


def of_long_rows(value: int, setting: Setting) -> Steps:
    """A step of 4 rows of so many tokens."""
    return _sft(setting, rows(4, value))


def of_tokens(value: int, setting: Setting) -> Steps:
    """A step of so many tokens in rows of 64."""
    return _sft(setting, rows(value // 64, 64))


def of_rank(value: int, setting: Setting) -> Steps:
    """A step of an adapter of this rank."""
    return _sft(setting, rows(8, 128), rank=value)


def of_vocabulary(value: int, setting: Setting) -> Steps:
    """A step over so many tokens to choose from."""
    return _sft(setting, rows(8, 64), vocabulary=value)


def of_stack(value: int, setting: Setting) -> Steps:
    """A step on so many commits of rank 1, that lie below it as a stack."""
    return _boosted(value, setting, into_weights=False)


def of_merged(value: int, setting: Setting) -> Steps:
    """The same, merged into the weights."""
    return _boosted(value, setting, into_weights=True)


def of_members(value: int, setting: Setting) -> Steps:
    """Losses of so many members."""
    return _scoring(setting, value, value, rows(4, 32))


def of_members_at_once(value: int, setting: Setting) -> Steps:
    """Losses of `ALL` members, so many at once."""
    return _scoring(setting, ALL, value, rows(4, 65))


def of_speakers(value: int, setting: Setting) -> Steps:
    """Texts of so many members."""
    base = small_base(setting)
    layout = adapted(base)
    members = acting(layout, value, setting)
    bank = Bank.from_flat(tuple(map(str, range(value))), layout, members)
    decoding = Decoding(max_tokens=2 if setting.quick else 32, ignore_eos=True)
    return _speaking(setting, base, bank, rows(4, 16), decoding)


def of_spoken_vocabulary(value: int, setting: Setting) -> Steps:
    """Texts of tokens drawn from so many, at a temperature that makes flat logits peaked."""
    base = small_base(setting, value)
    decoding = Decoding(max_tokens=8, ignore_eos=True, temperature=0.05, top_p=0.9)
    return _speaking(setting, base, Bank(("base",), {}), rows(8, 16), decoding)


def of_directions(value: int, setting: Setting) -> Steps:
    """A MeZO step along so many directions."""
    shape = replace(mezo_task.SMALL if setting.quick else MEZO, device=setting.device)
    run = weft_run(WeftMezo(shape, OneTokenChoice(), value))
    return lambda count: run(mezo_task.random_batches(1, shape) * count)


def of_population(value: int, setting: Setting) -> Steps:
    """A generation of so many members, and its centre."""
    base = load_base(TINY, device=setting.device.name)
    layout = choose_sites(base.sites, AdapterConfig(rank=8))
    data = DataConfig(task="countdown-easy")
    split = load_splits(data, load_tokenizer(TINY), ("train",), responses=False)["train"]
    decoding = Decoding(max_tokens=2 if setting.quick else 16, ignore_eos=True)
    crew = Alone(LocalEngine(base), layout, Reward(Countdown(), decoding))
    centre_P, noise_P = normal(layout.size, Key.of(SEED)) * 0.05, torch.full((layout.size,), 0.01)
    centre_P, noise_P = (x.to(setting.device.torch) for x in (centre_P, noise_P))
    batch = Batch(split.examples[:4])

    def generation(step: int) -> None:
        key = Key.of(step)
        population = Population(centre_P, noise_P, key, value, True)
        crew.rewards(Generation(population, None, batch, key), Stopwatch())

    return freed_memory_kept()(_clocked(setting, generation))


def small_base(setting: Setting, vocabulary: int = VOCABULARY) -> Base:
    """The Llama, with the same random weights at every call."""
    config = transformers.LlamaConfig(
        num_hidden_layers=2 if setting.quick else LAYERS,
        hidden_size=32 if setting.quick else HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=48 if setting.quick else FFN,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    with global_generator(Key.of(SEED).fold("base")):
        model = transformers.LlamaForCausalLM(config).to(setting.device.torch)
    fill = SimpleNamespace(pad_token_id=0, eos_token_id=0)  # nothing is tokenised
    return prepare("random Llama", model, fill)


def adapted(base: Base, rank: int = 8) -> Layout:
    """An adapter of this rank on all linear layers."""
    return choose_sites(base.sites, AdapterConfig(rank=rank, scale=2.0))


def acting(layout: Layout, count: int, setting: Setting) -> torch.Tensor:
    """Adapters [count, P] whose B is not zero."""
    noise = generator(Key.of(SEED).fold("members"))
    return (torch.randn(count, layout.size, generator=noise) * 0.02).to(setting.device.torch)


def rows(count: int, length: int) -> Batch:
    """Rows of random ids below 1,000, half of each supervised."""
    draw = Key.of(SEED).fold("rows").numpy()

    def row(number: int) -> Example:
        ids_T = draw.integers(2, 1000, length)
        labels_T = np.where(np.arange(length) < length // 2, IGNORE, ids_T)
        return Example(str(number), ids_T, labels_T)

    return Batch(tuple(map(row, range(count))))


def _sft(setting: Setting, batch: Batch, *, rank: int = 8, vocabulary: int = VOCABULARY) -> Steps:
    base = small_base(setting, vocabulary)
    layout = adapted(base, rank)
    (ground,) = grounds(base, layout, [torch.empty(0, layout.size)])
    return _stepping(setting, ground, layout, batch)


def _boosted(commits: int, setting: Setting, *, into_weights: bool) -> Steps:
    base = small_base(setting)
    layout = adapted(base, rank=1)
    stack_KP = acting(layout, commits, setting) / commits
    (ground,) = grounds(base, layout, [stack_KP], into_weights=into_weights)
    return _stepping(setting, ground, layout, rows(8, 128))


def _stepping(setting: Setting, ground: Ground, layout: Layout, batch: Batch) -> Steps:
    scorer = LocalScorer(ground.base, layout, stacks=ground.stacks)
    run = weft_steps(scorer, OPTIMISER, 1, len(batch.examples), setting.device)
    return lambda steps: run([batch] * steps)


def _scoring(setting: Setting, members: int, at_once: int, batch: Batch) -> Steps:
    base = small_base(setting)
    layout = adapted(base)
    scorer = LocalScorer(base, layout, members_per_forward=at_once)
    members_1MP = acting(layout, members, setting)[None]
    steps = _clocked(setting, lambda step: scorer.losses(members_1MP, [batch]))
    return freed_memory_kept()(steps)


def _speaking(setting: Setting, base: Base, bank: Bank, batch: Batch, decoding: Decoding) -> Steps:
    engine, prompts = LocalEngine(base), [example.ids_T for example in batch.examples]
    return _clocked(setting, lambda step: engine.generate(bank, prompts, decoding))


def _clocked(setting: Setting, take: Callable[[int], object]) -> Steps:
    def steps(count: int) -> Trace:
        clock = Clock(setting.device)
        for number in range(count):
            with clock.step():
                take(number)
        return Trace(tuple(clock.seconds), ())

    return steps
