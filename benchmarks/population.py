"""Greedy decoding of a whole population: many adapters on the same prompts.

Everyone gets the same Llama-shaped model with random weights, the same adapters on every linear
layer, whose B is not zero, the same prompts of equal length (so that nobody pads) and the same
number of new tokens, without stop tokens. A step is one whole population, prefill included.

The peers are transformers' `generate` on PEFT's model, one adapter after another with all prompts
in a batch; the same on PEFT's mixed batch, every prompt under every adapter in one call
(`adapter_names`); vLLM, all rows in one call (`vllm_peer`), where it is installed; and Weft itself
with as many rows on the bare base, which is what the adapters cost. On fewer prompts all must say
the same tokens (`check_same_tokens`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import peft
import torch
import transformers

from benchmarks import vllm_peer
from benchmarks.device import CPU, Clock, Device
from benchmarks.harness import Contender, Run, Trace
from benchmarks.limit import Limit, Product
from benchmarks.race import Options, Race, raced, tell
from benchmarks.shapes import Stack, llama_token_bytes
from weft.core.batch import IGNORE, Batch, Example
from weft.core.errors import CheckFailed
from weft.core.keys import Key
from weft.engines.local import LocalEngine
from weft.model.adapter import Adapter, initial_adapter
from weft.model.bank import Bank
from weft.model.base import DTYPES, prepare
from weft.model.config import AdapterConfig, DType
from weft.model.decoding import Decoding
from weft.model.noise import generator, global_generator
from weft.model.sites import choose_sites, find_sites

ADAPTER = AdapterConfig(rank=8, scale=2.0)
SEED = 0
PROFILED = 4
"""New tokens of the population whose time is told apart by kind of work."""

Said = list[list[list[int]]]
"""New tokens by member and prompt."""

Generate = Callable[[list[np.ndarray], int], Said]
"""From prompts, and how many tokens to add to each."""


@dataclass(frozen=True)
class Workload:
    """A population, its prompts, and the sizes of the Llama under it."""

    members: int = 30
    prompts: int = 8
    prompt_tokens: int = 48
    new_tokens: int = 64
    layers: int = 10
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 1408
    vocabulary: int = 8192
    dtype: DType = "float32"
    device: Device = CPU

    @property
    def name(self) -> str:
        """As a benchmark."""
        return "population" if self.dtype == "float32" else f"population_{self.dtype}"

    @property
    def rows(self) -> int:
        """Texts of the whole population."""
        return self.members * self.prompts

    @property
    def what(self) -> str:
        """In words."""
        return (
            f"Llama with {self.layers} layers, hidden {self.hidden}, {self.heads} heads, "
            f"{self.kv_heads} key/value heads, ffn {self.ffn}, vocabulary {self.vocabulary}, tied "
            f"embeddings: {sum(p.numel() for p in self.model().parameters()) / 1e6:.1f}M random "
            f"{self.dtype} parameters; LoRA rank {ADAPTER.rank} on all linear layers; greedy, "
            f"{self.members} members x {self.prompts} prompts of {self.prompt_tokens} tokens, "
            f"{self.new_tokens} new tokens each"
        )

    def model(self) -> transformers.LlamaForCausalLM:
        """The same random weights at every call."""
        config = transformers.LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.ffn,
            vocab_size=self.vocabulary,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
        with global_generator(Key.of(SEED).fold("base")):
            model = transformers.LlamaForCausalLM(config)
        return model.to(self.device.torch, DTYPES[self.dtype])

    def adapters(self) -> dict[str, Adapter]:
        """The members: a fresh A each, and a B that acts."""
        layout = choose_sites(find_sites(self.model()), ADAPTER)

        def member(name: str) -> Adapter:
            adapter = initial_adapter(layout, Key.of(SEED).fold(name))
            for site, (_, b_Or) in adapter.sites.items():
                b_Or.normal_(std=0.02, generator=generator(Key.of(SEED).fold("B", name, site)))
            return adapter

        return {name: member(name) for name in (f"m{n}" for n in range(self.members))}

    def batches(self, count: int) -> list[Batch]:
        """Random prompts."""
        draw = Key.of(SEED).fold("prompts").numpy()

        def prompt(number: int) -> Example:
            ids_T = draw.integers(2, self.vocabulary, self.prompt_tokens)
            return Example(str(number), ids_T, np.full(self.prompt_tokens, IGNORE))

        return [Batch(tuple(map(prompt, range(self.prompts)))) for _ in range(count)]

    def new_of(self, batch: Batch) -> int:
        """What is counted: the tokens that are made, not those that are read."""
        return len(batch.examples) * self.members * self.new_tokens

    def small(self) -> Workload:
        """For `--quick`."""
        return Workload(3, 2, 6, 4, 2, 64, 2, 1, 96, 128, self.dtype)


WORKLOADS = (Workload(), Workload(dtype="bfloat16"))


# Weft


def build_weft(workload: Workload) -> Generate:
    """The local engine with the whole population."""
    return _weft(workload, Bank.of(workload.adapters()))


def build_bare(workload: Workload) -> Generate:
    """The local engine with the bare base on as many rows."""
    generate = _weft(workload, Bank(("base",), {}))
    return lambda prompts, new: generate(prompts * workload.members, new)


def _weft(workload: Workload, bank: Bank) -> Generate:
    fill = SimpleNamespace(pad_token_id=1, eos_token_id=2)  # nothing is tokenised
    engine = LocalEngine(prepare("random Llama", workload.model(), fill))

    def generate(prompts: list[np.ndarray], new_tokens: int) -> Said:
        said = engine.generate(bank, prompts, Decoding(max_tokens=new_tokens, ignore_eos=True))
        return [[list(text.ids) for text in texts] for texts in said]

    return generate


# transformers with PEFT


def build_each(workload: Workload) -> Generate:
    """One adapter after another."""
    model = peft_model(workload)

    def generate(prompts: list[np.ndarray], new_tokens: int) -> Said:
        said = []
        for name in list(model.peft_config):
            model.set_adapter(name)
            said.append(continued(model, prompts, new_tokens))
        return said

    return generate


def build_mixed(workload: Workload) -> Generate:
    """All adapters in one batch."""
    model = peft_model(workload)
    names = list(model.peft_config)

    def generate(prompts: list[np.ndarray], new_tokens: int) -> Said:
        of_rows = [name for name in names for _ in prompts]
        rows = continued(model, prompts * len(names), new_tokens, adapter_names=of_rows)
        return [rows[i : i + len(prompts)] for i in range(0, len(rows), len(prompts))]

    return generate


def peft_model(workload: Workload) -> peft.PeftModel:
    """PEFT's LoRA with every member, on transformers' model."""
    config = peft.LoraConfig(
        r=ADAPTER.rank,
        lora_alpha=ADAPTER.effective_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    adapters = workload.adapters()
    first, *others = adapters
    model = peft.get_peft_model(workload.model(), config, adapter_name=first)
    for name in others:
        model.add_adapter(name, config)
    for name, adapter in adapters.items():
        for site, (a_rI, b_Or) in adapter.sites.items():
            module = model.get_base_model().get_submodule(site)
            module.lora_A[name].weight.data.copy_(a_rI)
            module.lora_B[name].weight.data.copy_(b_Or)
    return model.eval()


def continued(
    model: peft.PeftModel, prompts: list[np.ndarray], new_tokens: int, **extra: list[str]
) -> list[list[int]]:
    """What transformers' `generate` adds to each prompt."""
    ids_BT = torch.from_numpy(np.stack(prompts)).to(model.device)
    out_BT = model.generate(
        input_ids=ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=None,
        pad_token_id=1,
        **extra,
    )
    return out_BT[:, ids_BT.shape[1] :].tolist()


# vLLM, which is there for as long as it is used


def build_vllm(workload: Workload) -> Generate:
    """All adapters in one call."""

    def generate(prompts: list[np.ndarray], new_tokens: int) -> Said:
        with vllm_of(workload) as vllm:
            return vllm.generate(prompts, new_tokens)[1]

    return generate


def timed_vllm(workload: Workload) -> Run:
    """As `timed`, by the clock and the memory of its own process."""

    def run(batches: Sequence[Batch]) -> Trace:
        with vllm_of(workload) as vllm:
            vllm.generate(prompts_of(batches[0])[:1], 2)
            made = [vllm.generate(prompts_of(batch), workload.new_tokens) for batch in batches]
        seconds, sums = zip(*((spent, float(np.sum(said))) for spent, said in made), strict=True)
        return Trace(seconds, sums, vllm.memory)

    return run


def vllm_of(workload: Workload) -> AbstractContextManager[vllm_peer.Vllm]:
    """A process of vLLM with the whole population."""
    return vllm_peer.running(
        workload.model(),
        workload.adapters(),
        prompts=workload.prompts,
        tokens=workload.prompt_tokens + workload.new_tokens,
    )


# the contenders, and that they compute the same thing

BUILDS = {
    "peft_each": ("PEFT, one adapter after another", build_each),
    "peft_mixed": ("PEFT, mixed batch", build_mixed),
    "vllm": ("vLLM", build_vllm),
    "bare": ("Weft, bare base", build_bare),
    "weft": ("Weft", build_weft),
}


def without_vllm(workload: Workload) -> str | None:
    """Why it takes no part, if so."""
    if not workload.device.is_cpu:
        return "vLLM is left out: what `make vllm` installs is its build for processors"
    return vllm_peer.missing()


def taking_part(workload: Workload) -> list[str]:
    """Names, in running order."""
    return [name for name in BUILDS if name != "vllm" or not without_vllm(workload)]


def contenders(workload: Workload) -> list[Contender]:
    """Everyone who takes part."""

    def contender(name: str) -> Contender:
        what, build = BUILDS[name]
        if name == "vllm":
            return Contender(name, what, lambda: timed_vllm(workload))
        return Contender(name, what, lambda: timed(build(workload), workload))

    return list(map(contender, taking_part(workload)))


def timed(generate: Generate, workload: Workload) -> Run:
    """A run whose steps are whole populations, after a short one to warm up."""

    def run(batches: Sequence[Batch]) -> Trace:
        clock, sums = Clock(workload.device), []
        generate(prompts_of(batches[0])[:1], 2)
        for batch in batches:
            with clock.step():
                said = generate(prompts_of(batch), workload.new_tokens)
            sums.append(float(np.sum(said)))
        return Trace(tuple(clock.seconds), tuple(sums))

    return run


def prompts_of(batch: Batch) -> list[np.ndarray]:
    """Token ids."""
    return [example.ids_T for example in batch.examples]


def check_same_tokens(workload: Workload) -> None:
    """Every member says the same on a few prompts, whoever continues them."""
    prompts = prompts_of(workload.batches(1)[0])[:2]
    new_tokens = min(16, workload.new_tokens)
    said = {
        name: BUILDS[name][1](workload)(prompts, new_tokens)
        for name in taking_part(workload)
        if name != "bare"
    }
    for name, texts in said.items():
        if texts != said["weft"]:
            raise CheckFailed(
                f"{name} and weft do not say the same",
                "a comparison of speed is void until they do (or a tie within rounding is shown)",
            )


# what is possible


def limits(workload: Workload) -> list[Limit]:
    """The base's products, on the rows that Weft gives them; and what a decoder must read."""
    config, dtype = workload.model().config, DTYPES[workload.dtype]
    stack, new = Stack.of_llama(config), workload.new_tokens
    products = [
        *stack.body(workload.members * workload.prompt_tokens, workload.prompts),
        *stack.body(workload.rows, new - 1),
        Product(workload.rows, *stack.head, new),
    ]
    token_bytes = llama_token_bytes(config, dtype)
    read = stack.decoding_bytes(workload.rows, workload.prompt_tokens, new, token_bytes, dtype)
    return [
        Limit.of("the base alone", products, dtype, workload.device),
        Limit.of_reading("its weights, keys and values", read, workload.device),
    ]


def race(full: Workload) -> Callable[[Options], Race]:
    """Greedy decoding of many adapters, by Weft and by its peers."""

    def made(options: Options) -> Race:
        workload = replace(full.small() if options.quick else full, device=options.device)
        if left_out := without_vllm(workload):
            tell(left_out)
        if workload.dtype == "float32":  # elsewhere rounding tells them apart
            check_same_tokens(workload)
        return Race(
            what=f"{workload.what}; {left_out or vllm_peer.what()}",
            contenders=contenders(workload),
            batches=workload.batches(options.timed),
            vocabulary=workload.vocabulary,
            limits=limits(workload),
            tokens=workload.new_of,
            profiled=profiled(replace(workload, new_tokens=min(PROFILED, workload.new_tokens))),
        )

    return made


def profiled(workload: Workload) -> Race:
    """With few new tokens, and without vLLM: a profiler sees its own process."""
    return Race(
        what=workload.what,
        contenders=[each for each in contenders(workload) if each.name != "vllm"],
        batches=workload.batches(1),
        vocabulary=workload.vocabulary,
        tokens=workload.new_of,
    )


BENCHMARKS = tuple(raced(workload.name, race(workload)) for workload in WORKLOADS)
