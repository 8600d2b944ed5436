"""A replica predicts what transformers and PEFT do: adapters, padding, positions, decoding."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unit.diagnose.proof.conftest import updates
from weft.core.keys import Key
from weft.diagnose.proof.feeding import readings
from weft.diagnose.proof.forward import Engine, Unspliced
from weft.diagnose.proof.replica import BaseValue, Context, Row, Update

PROMPT = (5, 17, 80, 3, 41, 9)
TOKENS = (7, 33, 12, 64)


def theirs(base, **options):
    return AutoModelForCausalLM.from_pretrained(base.load, **options).eval()


def ours(base, row, context=None, tokens=TOKENS, adapter=None, **null):
    read = readings(row, context or Context(), tokens)
    return torch.cat(Engine().logits(base, adapter or {}, read, **null))


@torch.no_grad()
def loop(model, first, steps):
    """A hand-written loop: the first pass, then each step with the cache of those before."""
    out = model(**first, use_cache=True)
    found, cache = [out.logits[0, -1]], out.past_key_values
    for step in steps:
        out = model(**step, past_key_values=cache, use_cache=True)
        found.append(out.logits[0, -1])
    return torch.stack(found)


def ids(*tokens):
    return torch.tensor([tokens])


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "opt", "gptj", "mixtral"])
def test_decoding_is_that_with_a_cache(architecture, base_on_disk):
    base = base_on_disk(architecture)
    steps = [{"input_ids": ids(token)} for token in TOKENS]
    expected = loop(theirs(base), {"input_ids": ids(*PROMPT)}, steps)
    torch.testing.assert_close(ours(base, Row(PROMPT)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_adapter_is_pefts(architecture, base_on_disk):
    import peft

    base = base_on_disk(architecture)
    model = theirs(base)
    targets = ["q_proj", "down_proj"] if architecture == "llama" else ["c_attn", "c_fc"]
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=targets,
        init_lora_weights=False,
        fan_in_fan_out=architecture == "gpt2",
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted = peft.get_peft_model(model, config).eval()
    held = {
        name.removeprefix("base_model.model."): Update(
            module.lora_A["default"].weight.detach().numpy(),
            module.lora_B["default"].weight.detach().numpy(),
            module.scaling["default"],
        )
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    assert len(held) == 6
    steps = [{"input_ids": ids(token)} for token in TOKENS]
    expected = loop(adapted, {"input_ids": ids(*PROMPT)}, steps)
    made = ours(base, Row(PROMPT), adapter=held)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    assert (made - ours(base, Row(PROMPT))).abs().max() > 0.01


@pytest.mark.parametrize("attended", [False, True])
@pytest.mark.parametrize("rule", ["counted", "index"])
def test_padding_is_fed_as_it_was(attended, rule, base_on_disk):
    base, left = base_on_disk(), 3
    row = Row(PROMPT, left=left, pad=0, attended=attended, rule=rule)
    mask = torch.ones(1, left + len(PROMPT), dtype=torch.long)
    if not attended:
        mask[:, :left] = 0
    at = torch.arange(left + len(PROMPT))[None]
    at = at if rule == "index" else (at - left).clamp(min=0)
    first = {"input_ids": ids(*row.ids), "attention_mask": mask, "position_ids": at}
    steps = []
    for n, token in enumerate(TOKENS, start=1):
        mask = torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], 1)
        steps.append(
            {"input_ids": ids(token), "attention_mask": mask, "position_ids": at[:, -1:] + n}
        )
    expected = loop(theirs(base), first, steps)
    torch.testing.assert_close(ours(base, row), expected, rtol=1e-4, atol=1e-5)


def test_padding_that_is_hidden_from_the_prompt_alone(base_on_disk):
    base, left = base_on_disk(), 3
    row = Row(PROMPT, left=left, rule="index")
    first = {
        "input_ids": ids(*row.ids),
        "attention_mask": torch.tensor([[0] * left + [1] * len(PROMPT)]),
        "position_ids": torch.arange(left + len(PROMPT))[None],
    }
    steps = [{"input_ids": ids(token)} for token in TOKENS]  # no mask: all columns are open
    expected = loop(theirs(base), first, steps)
    made = ours(base, row, Context(masked=False))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    assert (made - ours(base, row)).abs().max() > 1e-2


@torch.no_grad()
def test_lost_context_is_the_last_token_alone(base_on_disk):
    base = base_on_disk()
    model = theirs(base)
    expected = [model(ids(*PROMPT)).logits[0, -1]]
    expected += [model(ids(token)).logits[0, -1] for token in TOKENS]
    made = ours(base, Row(PROMPT), Context(visible=(1,), origin="fresh"))
    torch.testing.assert_close(made, torch.stack(expected), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cache_that_is_dropped_grows_again(base_on_disk):
    base = base_on_disk()
    model = theirs(base)
    out = model(ids(*PROMPT, TOKENS[0]))
    expected = [out.logits[0, -2], out.logits[0, -1]]
    steps = [{"input_ids": ids(token)} for token in TOKENS[2:]]
    expected += list(loop(model, {"input_ids": ids(TOKENS[1])}, steps))
    made = ours(base, Row(PROMPT), Context(visible=(None, 1, 2, 3), origin="fresh"))
    torch.testing.assert_close(made, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_shifted_positions_are_those_of_the_decoding_steps(base_on_disk):
    base = base_on_disk()
    steps = [
        {"input_ids": ids(token), "position_ids": torch.tensor([[len(PROMPT) + n + 1]])}
        for n, token in enumerate(TOKENS)
    ]
    expected = loop(theirs(base), {"input_ids": ids(*PROMPT)}, steps)
    made = ours(base, Row(PROMPT), Context(shift=(1,)))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    assert (made[1:] - ours(base, Row(PROMPT))[1:]).abs().max() > 1e-3


@torch.no_grad()
def test_window_that_is_read_anew_has_new_keys(base_on_disk):
    base = base_on_disk()
    model = theirs(base)
    whole = PROMPT + TOKENS
    expected = [model(ids(*PROMPT)).logits[0, -1]]
    for n in range(1, len(TOKENS) + 1):
        window = whole[len(PROMPT) + n - 3 : len(PROMPT) + n]
        expected.append(model(ids(*window)).logits[0, -1])
    made = ours(base, Row(PROMPT), Context(visible=(3,), origin="fresh"))
    torch.testing.assert_close(made, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_rows_do_not_depend_on_their_batch(base_on_disk):
    base, engine = base_on_disk(), Engine()
    rows = [Row(PROMPT), Row(PROMPT[:3], left=2), Row((9, 8, 7, 6, 5, 4, 3, 2, 1))]
    read = [readings(row, Context(), TOKENS[:n])[0] for n, row in enumerate(rows)]
    together = engine.logits(base, {}, read)
    assert engine.forwards == 1
    for one, reading in zip(together, read, strict=True):
        alone = engine.logits(base, {}, [reading])[0]
        torch.testing.assert_close(one, alone, rtol=1e-4, atol=1e-5)


def test_changed_tensors_are_in_the_base_and_nowhere_else(base_on_disk):
    base, engine = base_on_disk(), Engine()
    name = "model.layers.1.mlp.down_proj.weight"
    model = theirs(base)
    new = model.get_parameter(name).detach().numpy() + 0.1
    before = engine.logits(base, {}, readings(Row(PROMPT), Context()))[0]
    changed = BaseValue(base.load, changed={name: new})
    made = engine.logits(changed, {}, readings(Row(PROMPT), Context()))[0]
    with torch.no_grad():
        model.get_parameter(name).copy_(torch.from_numpy(new))
        expected = model(ids(*PROMPT)).logits[0, -1:]
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    again = engine.logits(base, {}, readings(Row(PROMPT), Context()))[0]
    assert torch.equal(before, again)


def test_base_that_is_nowhere_on_disk_is_made_from_its_configuration(base_on_disk):
    base = base_on_disk()
    model = theirs(base)
    weights = {name: each.detach().numpy() for name, each in model.named_parameters()}
    known = BaseValue(None, changed=weights, config=model.config.to_dict())
    torch.testing.assert_close(ours(known, Row(PROMPT)), ours(base, Row(PROMPT)))
    with pytest.raises(Unspliced, match="were not recorded"):
        ours(BaseValue(None, config=model.config.to_dict()), Row(PROMPT))


def test_nudge_is_one_unit_in_the_last_place(base_on_disk):
    base = base_on_disk()
    plain, nudged = ours(base, Row(PROMPT)), ours(base, Row(PROMPT), nudge=Key.of(1))
    gap = (plain - nudged).abs().max()
    assert 0 < gap < 1e-4
    assert torch.equal(ours(base, Row(PROMPT), nudge=Key.of(1)), nudged)


def test_adapter_at_a_module_that_is_not_there_is_said(base_on_disk):
    update = Update(np.zeros((1, 3), np.float32), np.zeros((3, 1), np.float32), 1.0)
    with pytest.raises(Unspliced, match=r"no module model\.nothing"):
        ours(base_on_disk(), Row(PROMPT), adapter={"model.nothing": update})


def test_several_updates_add_up_over_modules(base_on_disk):
    base = base_on_disk()
    model = theirs(base)
    adapter = updates(model, "q_proj o_proj up_proj")
    with torch.no_grad():
        for name, each in adapter.items():
            merged = each.scale * torch.from_numpy(each.b_OR) @ torch.from_numpy(each.a_RI)
            model.get_submodule(name).weight += merged
        expected = model(ids(*PROMPT)).logits[0, -1:]
    made = ours(base, Row(PROMPT), adapter=adapter, tokens=())
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
