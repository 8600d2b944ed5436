"""Greedy decoding with the bundled base: Weft, transformers' own `generate`, and mlx-lm's.

The same fp32 weights, the same prompts of equal length (so that nobody pads), the same number of
new tokens, no stop tokens. A step is one whole call, prefill included, after a short one on the
same prompts. With an adapter: PEFT's model and mlx-lm's LoRA layers, not merged, against Weft's
bank of one member. Everyone must say the same tokens; the sum of their ids is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import peft
import torch
import transformers

from benchmarks import mlx_peer
from benchmarks.device import CPU, Clock, Device
from benchmarks.harness import Contender, Measurement, Run, Trace
from benchmarks.limit import Limit
from benchmarks.race import Options, Race, raced, tell
from benchmarks.shapes import Stack, llama_token_bytes
from weft.core.batch import IGNORE, Batch, Example
from weft.core.errors import CheckFailed
from weft.core.keys import Key
from weft.data.tokenizer import resolve_base
from weft.engines.local import LocalEngine
from weft.formats.peft import write_adapter
from weft.model.adapter import Adapter, initial_adapter
from weft.model.bank import Bank
from weft.model.base import Base, load_base, load_config
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.sites import choose_sites

BASE = "weft/tiny"
VOCABULARY = 4096
PROMPT_TOKENS = 64
SHORT = 12
"""New tokens for `--quick` and for the profile."""
SEED = 0
ADAPTER = AdapterConfig(rank=8, scale=2.0)
NO_MLX = "mlx-lm is left out: it is measured on the processor"

Generate = Callable[[list[np.ndarray], int], Sequence[Sequence[int]]]
"""From prompts, and how many tokens to add to each."""


@dataclass(frozen=True)
class Workload:
    """How many prompts at once, with or without an adapter on every linear layer."""

    prompts: int
    adapted: bool
    new_tokens: int = 128
    device: Device = CPU

    @property
    def name(self) -> str:
        """As a benchmark."""
        rows = "1_prompt" if self.prompts == 1 else f"{self.prompts}_prompts"
        return f"decode_{rows}_adapter" if self.adapted else f"decode_{rows}"

    @property
    def what(self) -> str:
        """In words."""
        adapter = f"LoRA rank {ADAPTER.rank} on all linear layers" if self.adapted else "no adapter"
        rows = "1 prompt" if self.prompts == 1 else f"{self.prompts} prompts"
        return (
            f"{BASE} in fp32, {adapter}; greedy, {rows} of {PROMPT_TOKENS} tokens, "
            f"{self.new_tokens} new tokens each"
        )

    def new_of(self, batch: Batch) -> int:
        """What is counted: the tokens that were made, not those that were read."""
        return self.new_tokens * len(batch.examples)


WORKLOADS = tuple(Workload(prompts, adapted) for adapted in (False, True) for prompts in (1, 32))


def batches(workload: Workload, count: int) -> list[Batch]:
    """Random prompts."""
    draw = Key.of(SEED).fold("prompts", workload.prompts).numpy()

    def prompt(number: int) -> Example:
        ids_T = draw.integers(2, VOCABULARY, PROMPT_TOKENS)
        return Example(str(number), ids_T, np.full(PROMPT_TOKENS, IGNORE))

    return [Batch(tuple(map(prompt, range(workload.prompts)))) for _ in range(count)]


def adapter_on(base: Base) -> Adapter:
    """An adapter that acts: a random B."""
    adapter = initial_adapter(choose_sites(base.sites, ADAPTER), Key.of(SEED))
    for name, (_, b_Or) in adapter.sites.items():
        noise = Key.of(SEED).fold("B", name).numpy().standard_normal(b_Or.shape)
        b_Or.copy_(torch.from_numpy(noise) * 0.01)
    return adapter


def timed(generate: Generate, workload: Workload) -> Run:
    """A run whose steps are calls of `generate`, after a short one to warm up."""

    def run(batches: Sequence[Batch]) -> Trace:
        clock, sums = Clock(workload.device), []
        generate(
            [example.ids_T for example in batches[0].examples], min(SHORT, workload.new_tokens)
        )
        for batch in batches:
            prompts = [example.ids_T for example in batch.examples]
            with clock.step():
                said = generate(prompts, workload.new_tokens)
            sums.append(float(sum(sum(text) for text in said)))
        return Trace(tuple(clock.seconds), tuple(sums))

    return run


def build_weft(workload: Workload) -> Run:
    """The local engine."""
    base = load_base(BASE, device=workload.device.name)
    bank = Bank.of({"member": adapter_on(base) if workload.adapted else None})
    engine = LocalEngine(base)

    def generate(prompts: list[np.ndarray], new_tokens: int) -> Sequence[Sequence[int]]:
        decoding = Decoding(max_tokens=new_tokens, ignore_eos=True)
        return [text.ids for text in engine.generate(bank, prompts, decoding)[0]]

    return timed(generate, workload)


def build_transformers(workload: Workload) -> Run:
    """`generate` of transformers, on PEFT's model where there is an adapter."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        resolve_base(BASE), dtype=torch.float32
    )
    if workload.adapted:
        base = load_base(BASE)
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / "adapter"
            write_adapter(adapter_on(base), folder, base_ref=BASE, sites=base.sites)
            del base
            model = peft.PeftModel.from_pretrained(model, folder)
    model.eval().to(workload.device.torch)
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_base(BASE))  # part of the job

    def generate(prompts: list[np.ndarray], new_tokens: int) -> Sequence[Sequence[int]]:
        ids_BT = torch.from_numpy(np.stack(prompts)).to(workload.device.torch)
        out_BT = model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
        )
        return out_BT[:, PROMPT_TOKENS:].tolist()

    return timed(generate, workload)


def build_mlx(workload: Workload) -> Run:
    """mlx-lm, with LoRA layers of its own where there is an adapter."""
    base = load_base(BASE) if workload.adapted else None
    adapter = None if base is None else adapter_on(base)
    return timed(mlx_peer.generator(*mlx_peer.loaded(BASE, base, adapter)), workload)


def contenders(workload: Workload) -> list[Contender]:
    """Everyone who takes part, in running order."""
    peer = "transformers + PEFT" if workload.adapted else "transformers"
    mlx = "generate_step" if workload.prompts == 1 else "batch_generate"
    found = [
        Contender("transformers", f"{peer} generate", lambda: build_transformers(workload)),
        Contender("mlx_lm", f"mlx-lm {mlx}", lambda: build_mlx(workload), most=1),
        Contender("weft", "Weft", lambda: build_weft(workload)),
    ]
    return [each for each in found if workload.device.is_cpu or each.name != "mlx_lm"]


def check_same_tokens(measurements: Sequence[Measurement]) -> None:
    """Everyone continues the first batch with the same tokens."""
    sums = {m.contender: m.rounds[0].first_result for m in measurements}
    if len(set(sums.values())) > 1:
        raise CheckFailed(
            f"the contenders do not say the same: sums of token ids {sums}",
            "a comparison of speed is void until these agree (or a tie within rounding is shown)",
        )


def limits(workload: Workload) -> list[Limit]:
    """The base's products of a whole call, and its weights, keys and values to read."""
    config, dtype = load_config(BASE), torch.float32
    stack, made = Stack.of_llama(config), (workload.prompts, PROMPT_TOKENS, workload.new_tokens)
    read = stack.decoding_bytes(*made, llama_token_bytes(config, dtype), dtype)
    return [
        Limit.of("the base alone", stack.decoding(*made), dtype, workload.device),
        Limit.of_reading("its weights, keys and values", read, workload.device),
    ]


def race(full: Workload) -> Callable[[Options], Race]:
    """Greedy decoding of Weft, of transformers' generate and of mlx-lm."""

    def made(options: Options) -> Race:
        workload = replace(full, device=options.device)
        short = replace(workload, new_tokens=SHORT)
        if options.quick:
            workload = replace(short, prompts=min(2, workload.prompts))
        if not workload.device.is_cpu:
            tell(NO_MLX)
        return replace(
            _race(workload, options.timed), limits=limits(workload), profiled=profiled(short)
        )

    return made


def _race(workload: Workload, steps: int) -> Race:
    return Race(
        what=f"{workload.what}; mlx-lm only the first step of a round",
        contenders=contenders(workload),
        batches=batches(workload, steps),
        vocabulary=VOCABULARY,
        tokens=workload.new_of,
        check=check_same_tokens,
    )


def profiled(workload: Workload) -> Race:
    """Without mlx-lm: the profiler is PyTorch's."""
    race = _race(workload, 1)
    return replace(race, contenders=[each for each in race.contenders if each.name != "mlx_lm"])


BENCHMARKS = tuple(raced(workload.name, race(workload)) for workload in WORKLOADS)
