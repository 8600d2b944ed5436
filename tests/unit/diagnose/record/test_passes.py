from __future__ import annotations

import copy
import threading

import numpy as np
import peft
import pytest
import torch
from torch import nn

from weft.runs.evidence import Check, Generation, Notice, Pass
from weft.runs.sketch import digest, projections

LEFT = {
    "input_ids": torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
}


def score(model, **more):
    with torch.no_grad():
        return model(**LEFT, **more)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma", "gpt2", "opt", "bloom"])
def test_a_pass_holds_what_the_model_really_computed(make_model, record, architecture):
    model = make_model(architecture)
    expected = score(model, output_hidden_states=True)
    left = record(lambda: score(model))
    (seen,) = left.of(Pass)
    assert torch.equal(left.result.logits, expected.logits)
    assert (seen.phase, seen.rows, seen.length, seen.past) == ("score", 2, 5, 0)
    assert (seen.training, seen.dropouts, seen.grad, seen.dtype) == (False, 0, False, "float32")
    assert seen.ids_digest == digest(LEFT["input_ids"].numpy().astype(np.int32))
    np.testing.assert_array_equal(left.array(seen.ids), LEFT["input_ids"])
    np.testing.assert_array_equal(left.array(seen.mask), LEFT["attention_mask"])
    np.testing.assert_array_equal(left.array(seen.logits), expected.logits[:, -1])
    log_p = torch.log_softmax(expected.logits[:, :-1], -1)
    nll = -log_p.gather(2, LEFT["input_ids"][:, 1:, None])[..., 0]
    np.testing.assert_allclose(left.array(seen.nll), nll, rtol=1e-5, atol=1e-6)
    hidden, blocks = left.array(seen.hidden), expected.hidden_states
    assert hidden.shape == (4, 2, 32)
    for layer in range(3):  # the last of transformers' states is behind the norm
        np.testing.assert_array_equal(hidden[layer], blocks[layer][:, -1])
        np.testing.assert_allclose(
            left.array(seen.sketch)[layer],
            blocks[layer].numpy() @ projections(32),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_positions_are_those_that_the_model_used(make_model, record, architecture):
    model = make_model(architecture)
    (none,) = record(lambda: score(model), "none").of(Pass)
    given = LEFT["attention_mask"].cumsum(-1).sub(1).clamp(min=0)
    left = record(lambda: score(model, position_ids=given), "given")
    (seen,) = left.of(Pass)
    np.testing.assert_array_equal(left.array(seen.positions), given)
    if architecture != "opt":  # OPT counts from its mask
        plain = record(lambda: score(model), "again")
        expected = np.tile(np.arange(5), (2, 1))
        np.testing.assert_array_equal(plain.array(plain.of(Pass)[0].positions), expected)
    assert none.mask is not None


def test_the_last_real_position_of_rows_padded_on_the_right_is_found(make_model, record):
    model = make_model("llama")
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])

    def run():
        with torch.no_grad():
            return model(ids, attention_mask=mask)

    left = record(run)
    (seen,) = left.of(Pass)
    expected = torch.stack([left.result.logits[0, 2], left.result.logits[1, 4]])
    np.testing.assert_array_equal(left.array(seen.logits), expected)


def test_a_cached_step_says_how_much_came_before(make_model, record):
    model = make_model("llama")
    ids = torch.tensor([[5, 6, 7, 8]])

    def run():
        with torch.no_grad():
            first = model(ids, use_cache=True)
            return model(ids[:, :1], past_key_values=first.past_key_values)

    left = record(run)
    prefill, decode = left.of(Pass)
    assert (prefill.phase, prefill.past) == ("score", 0)
    assert (decode.phase, decode.past, decode.length) == ("decode", 4, 1)
    np.testing.assert_array_equal(left.array(decode.positions), [[4]])


def test_gradients_and_labels_make_it_a_pass_that_trains(make_model, record):
    model = make_model("llama", attention_dropout=0.5).train()
    labels = torch.tensor([[-100, 6, 7, 8]])

    def run():
        return model(torch.tensor([[5, 6, 7, 8]]), labels=labels).loss

    left = record(run)
    (seen,) = left.of(Pass)
    assert (seen.phase, seen.training, seen.grad, seen.dropouts) == ("train", True, True, 3)
    assert seen.loss == pytest.approx(left.result.item())
    np.testing.assert_array_equal(left.array(seen.labels), labels)


def test_a_script_that_forgets_no_grad_does_not_train(make_model, record):
    model = make_model("llama")
    (seen,) = record(lambda: model(torch.tensor([[5, 6]]))).of(Pass)
    assert (seen.phase, seen.grad) == ("score", True)


def test_the_first_module_that_is_not_finite_is_named(make_model, record):
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] = float("inf")
    (seen,) = record(lambda: score(model)).of(Pass)
    assert seen.nonfinite == "model.layers.1.mlp.down_proj"
    assert list(seen.largest)[-1] == "model.layers.1.mlp.act_fn" or seen.largest
    assert all(np.isfinite(value) for value in seen.largest.values())


def test_tokens_that_are_masked_in_the_logits_are_not_broken(record):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

        def forward(self, tokens):
            logits = self.head(self.embed(tokens))
            logits[..., 0] = -torch.inf
            return logits

    model = Masked()
    left = record(lambda: model(torch.tensor([[1, 2, 3]])))
    (seen,) = left.of(Pass)
    assert seen.nonfinite is None
    assert left.array(seen.logits).shape == (1, 9)


def test_a_wrapper_and_its_base_are_one_model(make_model, record):
    from peft import LoraConfig, get_peft_model

    base = make_model("llama")

    def run():
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
        score(model)
        score(model.merge_and_unload())

    assert {seen.model for seen in record(run).of(Pass)} == {"model-0"}


def test_a_wrapper_of_the_users_own_without_token_ids_is_looked_into(make_model, record):
    class Lit(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, batch):
            return self.model(**batch)

    wrapper = Lit(make_model("llama"))
    (seen,) = record(lambda: wrapper(LEFT)).of(Pass)
    assert (seen.rows, seen.length) == (2, 5)


def test_nothing_of_the_watching_stays_in_a_model(make_model, record):
    model = make_model("llama")
    call = nn.Module.__call__
    record(lambda: score(model))
    assert nn.Module.__call__ is call
    for part in copy.deepcopy(model).modules():
        assert not part._forward_hooks and not part._forward_pre_hooks


def test_an_error_in_a_forward_is_the_scripts_and_leaves_no_hooks(make_model, record):
    model = make_model("llama")

    def run():
        with pytest.raises(IndexError):
            model(torch.tensor([[5, 10_000]]))

    record(run)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_large_arrays_are_kept_of_the_first_passes_only(make_model, record):
    model = make_model("llama")

    def run():
        for first in range(2, 24):
            with torch.no_grad():
                model(torch.tensor([[first, 3, 4]]))

    left = record(run)
    passes = left.of(Pass)
    assert [seen.logits is not None for seen in passes] == [True] * 16 + [False] * 6
    assert all(seen.ids is not None for seen in passes)


def test_growing_text_does_not_use_up_what_is_kept_of_prompts(make_model, record):
    model = make_model("llama")

    def run():
        for first in range(2, 8):
            ids = torch.tensor([[first, 3, 4]])
            with torch.no_grad():
                for _ in range(8):
                    logits = model(ids).logits
                    ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)

    passes = record(run).of(Pass)
    assert all(seen.hidden is not None for seen in passes[::8])
    assert not record(run, "again").of(Notice)


def test_a_compiled_model_is_not_compiled_again(make_model, record):
    model = make_model("llama")
    compiled = torch.compile(model, backend="eager")
    expected = score(compiled).logits
    left = record(lambda: score(compiled))
    assert torch.equal(left.result.logits, expected)
    (seen,) = left.of(Pass)
    np.testing.assert_array_equal(left.array(seen.logits), expected[:, -1])


def test_a_pass_under_autocast_is_kept_with_its_hidden_states(make_model, record):
    model = make_model("llama")

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return score(model, output_hidden_states=True)

    left = record(run)
    (seen,) = left.of(Pass)
    state = left.result.hidden_states[1]
    np.testing.assert_allclose(
        left.array(seen.sketch)[1], state.float().numpy() @ projections(32), rtol=1e-4, atol=1e-5
    )


def test_a_model_made_in_inference_mode_is_recorded(make_model, record):
    def run():
        with torch.inference_mode():
            model = copy.deepcopy(make_model("llama"))
            return [score(model).logits.tolist() for _ in range(2)]

    left = record(run)
    assert len(left.of(Pass)) == 2
    assert left.result[0] == left.result[1]


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_a_model_is_traced_as_it_is_without_a_recording(record):
    model = nn.Sequential(nn.Embedding(32, 8), nn.Linear(8, 32))
    ids = LEFT["input_ids"]
    left = record(lambda: torch.jit.trace(model, ids))  # which traces twice and compares
    assert torch.equal(left.result(ids), model(ids))


def test_threads_that_run_one_model_at_once_are_told_apart(make_model, record):
    model = make_model("llama")
    prompts = [torch.tensor([[5 + row, 6, 7 + row]]) for row in range(3)]

    def run():
        together, answers = threading.Barrier(len(prompts)), {}

        def answer(row):
            together.wait()
            answers[row] = model.generate(prompts[row], max_new_tokens=4, do_sample=False).tolist()

        threads = [threading.Thread(target=answer, args=(row,)) for row in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    left = record(run)
    made = {each.prompts[0]: each for each in left.of(Generation)}
    assert len(made) == len(prompts)
    passes = left.of(Pass)
    assert [each.index for each in passes] == list(range(len(passes)))
    for row, ids in enumerate(prompts):
        seen = made[tuple(ids[0].tolist())]
        assert left.result[row] == [[*seen.prompts[0], *seen.tokens[0]]]
        assert [draw.token for draw in seen.draws] == list(seen.tokens[0])
        first = passes[seen.passes[0]]
        with torch.no_grad():
            expected = model(ids, output_hidden_states=True).hidden_states
        np.testing.assert_array_equal(left.array(first.hidden)[0], expected[0][:, -1])
        np.testing.assert_array_equal(left.array(first.ids), ids)


def test_a_mask_of_one_position_by_another_is_none_of_padding(record):
    """Hand-written models are given causal masks: as many rows as positions, to be added."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
            self.blocks = nn.ModuleList([nn.Identity()])

        def forward(self, tokens, mask):
            state = self.blocks[0](self.embed(tokens))
            return self.head(((state @ state.transpose(1, 2)) + mask).softmax(-1) @ state)

    model, ids = Small(), torch.arange(15).reshape(3, 5)
    causal = torch.full((5, 5), -torch.inf).triu(1)

    def run():
        with torch.no_grad():
            return [model(ids[:rows], causal).numpy() for rows in (3, 1)] + [
                model(torch.cat([ids, ids[:2]]), causal).numpy()
            ]

    left = record(run)
    passes = left.of(Pass)
    assert [each.rows for each in passes] == [3, 1, 5]
    for seen, logits in zip(passes, left.result, strict=True):
        assert seen.mask is None
        np.testing.assert_array_equal(left.array(seen.logits), logits[:, -1])
    assert not left.of(Check)
    said = " ".join(each.text for each in left.of(Notice))
    assert "a mask that is none of padding are not checked" in said


def test_positions_and_masks_beside_vectors_are_no_token_ids(make_model, record):
    model = make_model("llama")
    ids = torch.tensor([[5, 6, 7]])

    def run():
        with torch.no_grad():
            vectors = model.get_input_embeddings()(ids)
            mask, places = torch.ones_like(ids), torch.arange(3)[None]
            return model(inputs_embeds=vectors, attention_mask=mask, position_ids=places)

    assert record(run).of(Pass) == []


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_a_tuned_prompt_is_no_model_and_no_text(make_model, record, kind):
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ids = torch.tensor([[5, 6, 7]])

    def run():
        model = peft.get_peft_model(copy.deepcopy(make_model("llama")), config).eval()
        with torch.no_grad():
            model(input_ids=ids)
        return model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, eos_token_id=96)

    left = record(run)
    passes = left.of(Pass)
    assert {each.model for each in passes} == {"model-0"}
    assert {left.array(each.logits).shape for each in passes if each.logits} == {(1, 97)}
    assert [each.past for each in passes if each.length == 1] == [3, 4, 5]
    (said,) = left.of(Generation)
    assert [*said.prompts[0], *said.tokens[0]] == left.result[0].tolist()
