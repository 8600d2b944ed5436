"""Products and bytes are counted as a forward has them; a limit is a time and a share of a step."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from benchmarks.harness import Measurement, Round
from benchmarks.limit import Limit, Product, bytes_a_second, fastest, product_seconds
from benchmarks.shapes import Stack, llama_token_bytes
from weft.core.keys import Key
from weft.model.noise import global_generator

TINY = LlamaConfig(
    num_hidden_layers=3,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=64,
    attn_implementation="eager",
)


def counted(model, call):
    """Operations of matrix products, those of attention left out, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        call(model)
    found = counter.get_flop_counts()["Global"]
    return sum(
        count
        for kind, count in found.items()
        if str(kind).startswith("aten.") and "bmm" not in str(kind)
    )


@pytest.fixture
def llama():
    with global_generator(Key.of(0)):
        return LlamaForCausalLM(TINY).eval().requires_grad_(False)


def test_a_forward_has_the_counted_products(llama):
    stack, ids = Stack.of_llama(TINY), torch.arange(10)[None]
    products = [*stack.body(10), Product(10, *stack.head)]
    assert sum(p.flops for p in products) == counted(llama, lambda m: m(input_ids=ids))


def test_a_training_step_has_the_counted_products():
    """What reads a layer's input is trained, so that its input need no gradient in the first."""
    sizes = {"n_layer": 3, "n_embd": 24, "n_head": 2, "vocab_size": 64}
    config = GPT2Config(**sizes, attn_implementation="eager")
    with global_generator(Key.of(0)):
        model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for block in model.transformer.h[1:]:
        block.attn.c_attn.bias.requires_grad_()
    stack = Stack(3, (24, 72), ((24, 24), (24, 96), (96, 24)), (24, 64))

    def step(model):
        ids = torch.arange(10)[None]
        model(input_ids=ids).logits.sum().backward()

    expected = sum(p.flops for p in stack.training(10, 10, last=2))
    assert expected == counted(model, step)


def test_epochs_repeat_only_what_is_adapted():
    stack = Stack(4, (8, 24), ((8, 8),), (8, 16))
    once, thrice = (sum(p.flops for p in stack.training(5, 2, 1, n)) for n in (1, 3))
    below = sum(p.flops for p in Stack(3, (8, 24), ((8, 8),), (8, 16)).body(5))
    assert thrice - below == 3 * (once - below)


def test_decoding_reads_weights_for_each_token_and_keys_and_values_so_far(llama):
    token = llama_token_bytes(TINY, torch.float32)
    cache = llama(input_ids=torch.arange(5)[None], use_cache=True).past_key_values
    assert token * 5 == sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    stack = Stack.of_llama(TINY)
    matrices = [p for name, p in llama.named_parameters() if p.ndim == 2 and "embed" not in name]
    assert stack.weights == sum(p.numel() for p in matrices)
    read = stack.decoding_bytes(2, 5, 3, token, torch.float32)
    assert read == 3 * stack.weights * 4 + 2 * (6 + 7) * token


def test_rates_are_those_of_a_clock():
    assert product_seconds(64, 64, 64, torch.float32) > 0
    assert bytes_a_second() > 1e6
    calls = []
    assert fastest(lambda: calls.append(0)) < 1
    assert len(calls) == 12


def test_a_limit_is_said_of_those_whose_it_is():
    rounds = (Round((2.0,), 10, 0.0, 0, 1),)
    both = [Measurement(name, name.title(), rounds) for name in ("one", "two")]
    limit = Limit("reading it", 3 * 10**9, "B", 0.5)
    assert limit.said_of(both) == (
        "reading it: 3 GB take 0.5 s alone (6 GB/s), which is of a step: One 25%; Two 25%"
    )
    only = Limit("reading it", 3 * 10**9, "B", 0.5, "two")
    assert only.said_of(both).endswith("of a step: Two 25%")
