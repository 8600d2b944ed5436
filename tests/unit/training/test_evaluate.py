"""Evaluation against transformers' own loss, and the tasks' metrics against their definitions."""

import json
import shutil
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from weft.core.errors import InputError
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.engines.local import LocalEngine
from weft.model.bank import Bank
from weft.model.base import load_base
from weft.model.config import ChoiceConfig, NllConfig
from weft.model.decoding import Completion
from weft.model.objectives import ONE_TOKEN, TOKENS, choosing
from weft.training.contrast import QUANTITIES, contrast
from weft.training.evaluate import evaluate
from weft.training.objective import objective_for
from weft.training.refs import load_split, open_subject
from weft.training.train import train


@pytest.fixture(scope="module")
def base(small_base):
    return load_base(small_base)


@pytest.fixture
def split(base, rows_dir):
    return load_splits(DataConfig(path=rows_dir, max_length=128), base.tokenizer, ("valid",))[
        "valid"
    ]


def test_eval_loss_equals_transformers_loss_summed_over_tokens(base, split, small_base):
    model = transformers.AutoModelForCausalLM.from_pretrained(small_base)
    total = tokens = 0
    for example in split.examples:
        ids, labels = torch.tensor(example.ids_T)[None], torch.tensor(example.labels_T)[None]
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.double().item() * example.supervised
        tokens += example.supervised
    found = evaluate(LocalEngine(base), Bank.of({"base": None}), split, batch_size=5)
    record = found.record("base")
    assert record["eval_loss"] == pytest.approx(total / tokens, rel=1e-6)
    assert record["supervised_tokens"] == tokens
    assert record["num_batches"] == 3


def test_loss_does_not_depend_on_batch_size(base, split):
    engine, bank = LocalEngine(base), Bank.of({"base": None})
    one, all_ = (evaluate(engine, bank, split, batch_size=n).table for n in (1, 100))
    np.testing.assert_allclose(one.sums, all_.sums, rtol=1e-6)


def test_an_adapter_of_weft_in_peft_and_back_gives_the_same_logits(
    resolved, tmp_path, small_base, split
):
    train(resolved(), tmp_path / "run")
    directory = tmp_path / "run" / "adapter"
    model = transformers.AutoModelForCausalLM.from_pretrained(small_base)
    theirs = peft.PeftModel.from_pretrained(model, directory).eval()
    subject = open_subject([str(directory)])
    ours = contrast_logits(subject, split)
    for example, logits in zip(split.examples, ours, strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor(example.ids_T)[None]).logits[0, :-1]
        wanted = expected[torch.tensor(example.labels_T[1:]) != -100]
        assert (logits - wanted).abs().max() <= 1e-5
    theirs.save_pretrained(tmp_path / "again")
    again = contrast_logits(open_subject([str(tmp_path / "again")], base=small_base), split)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


WORDS = ["sat", "ran", "on"]


def contrast_logits(subject, split):
    from weft.core.batch import Batch
    from weft.model.forward import make_rows, target_logits
    from weft.model.rows import Block
    from weft.model.weaving import Weft

    base = subject.local.base
    return [
        target_logits(base, Weft(subject.bank), make_rows(base, [Block(0, 1, Batch((example,)))]))
        for example in split.examples
    ]


def reviews_of(base, tmp_path, words=("terrible", "great"), count=9):
    rows = [{"sentence": f"the cat {WORDS[i % 3]} {i}", "label": i % 2} for i in range(count)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(path=path, valid_path=path, verbalizers=words)
    return rows, load_splits(config, base.tokenizer, ("valid",))["valid"]


@pytest.mark.parametrize("words", [("terrible", "great"), ("terrible", "awful"), ("cat", "a mat")])
def test_choice_accuracy_compares_mean_log_probabilities(words, base, small_base, tmp_path):
    """Whatever the objective is, in batches that do not divide the rows, under every member."""
    rows, split = reviews_of(base, tmp_path, words)
    model = transformers.AutoModelForCausalLM.from_pretrained(small_base)
    tokenizer = base.tokenizer
    right, loss = 0, 0.0
    for row in rows:
        prompt = tokenizer(f"{row['sentence']} It was")["input_ids"]
        means = []
        for word in words:
            ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0].double().log_softmax(-1)
            at = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
            means.append(np.mean([logits[i, t].item() for i, t in zip(at, ids, strict=True)]))
        right += int(np.argmax(means)) == row["label"]
        loss += np.log(np.exp(means).sum()) - means[row["label"]]
    assert 0 < right < len(rows)
    bank = Bank.of({"base": None, "again": None})
    settings = {"nll": {}, "choice": {"tokens": "mean"}, "option": {"loss": "option"}}
    for name, given in (*settings.items(), ("choice", {})):
        config = NllConfig() if name == "nll" else ChoiceConfig(**given)
        objective, _ = objective_for(config, {"valid": split})
        found = evaluate(LocalEngine(base), bank, split, batch_size=4, objective=objective)
        assert found.metrics["choice"].tolist() == [right / len(rows)] * 2
        assert found.metric == "choice"
        if name == "choice":
            assert found.table.means()[0] == pytest.approx(loss / len(rows), rel=1e-5)


class Counting(LocalEngine):
    """Remembers which objectives it was asked for, and of how many rows."""

    def score(self, bank, batch, objective=TOKENS):
        self.asked.append((objective.name, len(objective.rows(batch).examples)))
        return super().score(bank, batch, objective)


def asked(base, split, objective):
    engine = Counting(base)
    object.__setattr__(engine, "asked", [])
    record = evaluate(
        engine, Bank.of({"base": None}), split, batch_size=100, objective=objective
    ).record("base")
    return engine.asked, record


def test_a_choice_is_judged_by_its_own_hits_without_a_second_pass(base, tmp_path):
    _, split = reviews_of(base, tmp_path, ("cat", "mat"))
    assert choosing(split.examples) is ONE_TOKEN, "the words are single tokens"
    once, record = asked(base, split, ONE_TOKEN)
    assert once == [("choice", 9)]
    assert (record["metric"], record["metrics"]) == ("choice", ["choice"])
    assert "token_accuracy" not in record
    assert (record["objective"], record["perplexity"]) == ("choice", None)
    twice, record = asked(base, split, TOKENS)
    assert twice == [("nll", 9), ("choice", 9)]
    assert (record["metric"], record["metrics"]) == ("choice", ["token_accuracy", "choice"])
    assert record["objective"] == "nll"
    assert record["perplexity"] == pytest.approx(np.exp(record["eval_loss"]))


def test_every_judge_hears_the_one_greedy_response_of_a_row(base, split):
    """As transformers generates it, from the prompt alone, for every member and in any batch."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base.ref)
    heard = []

    def listen(prompt, reference, text):
        heard.append((prompt, reference, text))
        return text == heard[0][2]

    judges = {"first": listen, "other": lambda prompt, reference, text: prompt == heard[0][0]}
    task = replace(split.task, format=replace(split.task.format, judges=judges))
    bank = Bank.of({"base": None, "again": None})
    found = evaluate(LocalEngine(base), bank, replace(split, task=task), batch_size=5)
    longest = max(len(item.example.ids_T) - item.prompt_length for item in split.items)
    said = []
    for item in split.items:
        ids = torch.tensor(item.prompt_ids)[None]
        whole = model.generate(ids, max_new_tokens=longest + 8, do_sample=False, pad_token_id=0)[0]
        words = base.tokenizer.decode(whole[ids.shape[1] :], skip_special_tokens=True)
        said.append((item.prompt, item.reference, words))
    assert sorted(heard) == sorted(said * 2)
    first = [text == said[0][2] for _, _, text in said]
    other = [prompt == said[0][0] for prompt, _, _ in said]
    assert sum(first) > 0 and sum(other) < len(said)
    assert found.metrics["first"].tolist() == [np.mean(first)] * 2
    assert found.metrics["other"].tolist() == [np.mean(other)] * 2
    record = found.record("again")
    assert record["metric"] == "first"
    assert record["metrics"] == ["token_accuracy", "first", "other"]
    assert record["other"] == np.mean(other)


def test_without_the_tasks_own_metrics_nothing_is_generated(base, split):
    task = replace(split.task, format=replace(split.task.format, judges={"none": None}))
    engine, bank = LocalEngine(base), Bank.of({"base": None})
    found = evaluate(engine, bank, replace(split, task=task), batch_size=5, task_metric=False)
    assert found.record("base")["metrics"] == [found.metric] == ["token_accuracy"]


def test_questions_about_tables_are_judged_twice(base, tmp_path):
    """The reference that the base itself gives is matched; the loss is of the same rows."""
    prompt = "table: t\ncolumns: a, b\nQ: what\nA: "
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": prompt + "SELECT a FROM t WHERE b = 1 AND a = 'x'"}))
    split = load_splits(DataConfig(path=path, valid_path=path), base.tokenizer, ("valid",))["valid"]
    same, equal = (
        "select a  from t where b = 1 and a = 'x'",
        "SELECT a FROM t WHERE a = 'X' AND b = '1'",
    )
    texts = iter([same, equal, "SELECT a FROM t WHERE b = 1"])

    class Said(LocalEngine):
        def generate(self, bank, prompts, decoding, on_token=None):
            ids = (self.tokenizer(next(texts))["input_ids"] for _ in bank.members)
            return [[Completion(tuple(each), "stop token")] for each in ids]

    found = evaluate(Said(base), Bank.of(dict.fromkeys("abc")), split, batch_size=2)
    assert found.metrics["exact_match"].tolist() == [1, 0, 0]
    assert found.metrics["logical_form"].tolist() == [1, 1, 0]
    assert found.metric == "exact_match"


def test_contrast_of_an_adapter_with_itself_is_zero(resolved, tmp_path, rows_dir):
    train(resolved(), tmp_path / "run")
    root = str(tmp_path / "run")
    subject = open_subject([root, root, "base"])
    split = load_split(subject, subject.places[0].config.data, "valid")
    same = contrast(subject.local, subject.bank.part(0, 2), split.examples, batch_size=4)
    other = contrast(subject.local, subject.bank.part(1, 3), split.examples, batch_size=4)
    means = dict(zip(QUANTITIES, same.table.means(), strict=True))
    assert means["kl_ab"] == means["kl_ba"] == means["l2"] == 0
    assert means["agree"] == 1
    assert dict(zip(QUANTITIES, other.table.means(), strict=True))["kl_ab"] > 1e-3


def test_a_base_with_a_missing_tensor_is_refused(small_base, tmp_path):
    """transformers would fill it with random numbers and only warn."""
    shutil.copytree(small_base, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"no usable weights for model\.layers\.1\.mlp\.down_proj"):
        load_base(str(tmp_path / "base"))


def test_a_base_that_was_cut_short_is_refused(small_base, tmp_path):
    shutil.copytree(small_base, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot load"):
        load_base(str(tmp_path / "base"))


def test_a_device_that_is_not_there_is_refused(small_base):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match="no cuda device"):
        load_base(small_base, device="cuda")
