"""Texts of several members at once, and all that is known of each."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import weft
from weft.core.batch import Batch
from weft.core.errors import InputError, NumericError
from weft.core.keys import Key
from weft.data.prompts import asked
from weft.engines.config import LocalConfig
from weft.formats.peft import write_adapter
from weft.model.adapter import Adapter, initial_adapter
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.facts import skeleton
from weft.model.noise import uniform
from weft.model.sites import choose_sites
from weft.training.generate import Source, fingerprint, open_generation, scales_of
from weft.training.parameters import make_decoding, token_id

PROMPTS = ["the cat", "a small red", "the dog ran to"]


@pytest.fixture(scope="module")
def adapters(small_base, tmp_path_factory):
    """Two random adapters on disk, strong enough to change what is said."""
    root = tmp_path_factory.mktemp("adapters")
    layout = choose_sites(skeleton(small_base), AdapterConfig(rank=2, alpha=4))
    for name in ("one", "two"):
        key = Key.of(0).fold(name)
        adapter = initial_adapter(layout, key)
        for site, (_, b_Or) in adapter.sites.items():
            b_Or.copy_(uniform(b_Or.shape, -1, 1, key.fold(site)))
        write_adapter(adapter, root / name, base_ref=small_base)
    return root


def say(*refs, **options):
    return weft.generate(*refs, **{"prompts": PROMPTS, "max_tokens": 12, **options})


def test_members_side_by_side_say_what_each_says_alone(adapters, small_base):
    one, two = adapters / "one", adapters / "two"
    together = say(small_base, one, two, temperature=0.8)
    assert [g.id for g in together[::3]] == ["prompt:1", "prompt:2", "prompt:3"]
    assert [g.member for g in together[:3]] == [small_base, str(one), str(two)]
    for place, ref in enumerate((small_base, one, two)):
        alone = say(ref, temperature=0.8)
        assert [g.ids for g in alone] == [g.ids for g in together[place::3]]
    assert together[0].ids != together[1].ids != together[2].ids


def test_the_seed_decides_and_batch_mates_do_not(adapters):
    one = adapters / "one"
    first = say(one, temperature=0.8, seed=5)
    assert say(one, temperature=0.8, seed=5) == first
    assert say(one, temperature=0.8, seed=5, batch_size=1) == first
    (alone,) = say(one, temperature=0.8, seed=5, prompts=PROMPTS[1])
    assert alone.ids == first[1].ids
    other = say(one, temperature=0.8, seed=6)
    assert all(a.text != b.text for a, b in zip(first, other, strict=True))


def test_copies_of_a_prompt_say_different_things_whatever_the_batches(small_base):
    options = {"prompts": ["the cat"] * 5, "temperature": 1.0}
    texts = [g.text for g in say(small_base, **options)]
    assert len(set(texts)) == 5
    for batch_size in (1, 2, 3):
        assert [g.text for g in say(small_base, batch_size=batch_size, **options)] == texts


def test_a_stop_text_across_tokens_ends_the_text_before_it(small_base):
    (free,) = say(small_base, prompts="the cat", temperature=1.0, max_tokens=30)
    stop = free.text[5:8]
    (cut,) = say(small_base, prompts="the cat", temperature=1.0, max_tokens=30, stop=(stop,))
    assert cut.text == free.text[: free.text.index(stop)]
    assert (cut.finish, cut.stopped_by) == ("stop text", stop)
    assert free.ids[: len(cut.ids)] == cut.ids  # the ids keep the tokens of the stop text


def test_a_stop_token_by_name_or_id_ends_the_text(small_base):
    (free,) = say(small_base, prompts="the cat", max_tokens=8, ignore_eos=True)
    token = free.ids[4]
    for given in (token, str(token)):
        (cut,) = say(small_base, prompts="the cat", max_tokens=8, stop_tokens=[given])
        assert cut.ids == free.ids[: free.ids.index(token)]
        assert (cut.finish, cut.stopped_by) == ("stop token", token)
        assert cut.parameters["stop_ids"] == sorted({1, token})


def test_every_parameter_is_in_the_record(adapters, small_base):
    source = Source(asked(["the cat"]))
    session = open_generation([small_base, str(adapters / "one")], source, {"order": "mlx"})
    said = [generation for part in session.run() for generation in part]
    of_base, of_one = (json.loads(json.dumps(session.record(each))) for each in said)
    assert Decoding.model_fields.keys() <= of_one["parameters"].keys()
    assert of_one["parameters"]["repetition_window"] == 20  # resolved, not as given
    assert of_one["parameters"]["stop_ids"] == [1]
    assert (of_one["parameters"]["prompt_mode"], of_one["prompt"]) == ("raw", "the cat")
    assert of_one["prompt_ids"] == list(said[1].prompt_ids) == session.prompts[0].ids_T.tolist()
    adapter = session.subject.adapters[str(adapters / "one")]
    assert of_one["fingerprints"] == {
        "base": session.subject.local.base.fingerprint(),
        "adapter": fingerprint(adapter),
    }
    assert (of_base["fingerprints"]["adapter"], of_base["scale"]) == (None, [])
    assert of_one["scale"] == list(scales_of(adapter)) == [2.0]
    assert of_one["engine"]["name"] == "local" and "torch" in of_one["versions"]


def test_a_fingerprint_sees_factors_and_scales(small_base):
    sites = skeleton(small_base)
    weak, strong = (choose_sites(sites, AdapterConfig(rank=2, alpha=a)) for a in (4, 8))
    adapter = initial_adapter(weak, Key.of(0))
    assert fingerprint(adapter) == fingerprint(initial_adapter(weak, Key.of(0)))
    others = [initial_adapter(weak, Key.of(1)), Adapter(strong, adapter.flat)]
    assert len({fingerprint(each) for each in (adapter, *others)}) == 3


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused_by_name(small_base, tmp_path, wrong):
    layout = choose_sites(skeleton(small_base), AdapterConfig(rank=2, alpha=4))
    adapter = initial_adapter(layout, Key.of(0))
    adapter.flat[3] = wrong  # attention swallows a single one
    write_adapter(adapter, tmp_path / "broken", base_ref=small_base)
    with pytest.raises(NumericError, match="broken holds numbers that are not finite"):
        say(small_base, tmp_path / "broken")


def test_logits_that_overflow_are_said_to_be_whose_and_where(small_base, tmp_path):
    layout = choose_sites(skeleton(small_base), AdapterConfig(rank=2, alpha=4))
    adapter = initial_adapter(layout, Key.of(0))
    for _, b_Or in adapter.sites.values():
        b_Or.fill_(1e30)
    write_adapter(adapter, tmp_path / "loud", base_ref=small_base)
    message = "loud on prompt:2: the logits of token 1 are not finite"
    source = Source(asked(PROMPTS)[1:])
    session = open_generation([small_base, str(tmp_path / "loud")], source, {})
    with pytest.raises(NumericError, match=message):
        list(session.run(batch_size=1))


def test_what_has_no_effect_is_a_notice(small_base):
    heard: list[str] = []
    say(small_base, prompts="the cat", top_p=0.9, seed=3, notice=heard.append)
    assert heard == ["temperature 0 takes the most likely token: `top_p`, `seed` changes nothing"]
    say(small_base, prompts="the cat", top_p=0.9, temperature=1, notice=heard.append)
    assert len(heard) == 1
    say(small_base, prompts="the cat", repetition_window=5, notice=heard.append)
    assert heard[1:] == [
        "without `repetition_penalty` there is no penalty: `repetition_window` changes nothing"
    ]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"temperature": -1}, "`temperature` is -1: must be at least 0"),
        ({"top_p": 0}, "`top_p` is 0: must be more than 0 and at most 1"),
        ({"top_p": 2}, "`top_p` is 2: must be more than 0 and at most 1"),
        ({"min_p": 1.5}, "`min_p` is 1.5: must be at least 0 and at most 1"),
        ({"top_k": -1, "max_tokens": 0}, "`max_tokens` is 0: must be at least 1"),
        ({"order": "vllm"}, "`order` is 'vllm': must be 'hf' or 'mlx'"),
        ({"stop": ("",)}, "holds an empty text"),
        ({"temperature": 1e-40}, "`temperature` is 1e-40: must be 1e-30 to 1e+30"),
        ({"temperature": 1e300}, "`temperature` is 1e+300: must be 1e-30 to 1e+30"),
        ({"repetition_penalty": 1e-40}, "`repetition_penalty` is 1e-40: must be 1e-30 to"),
        ({"temperature": float("nan")}, "`temperature` is nan"),
        ({"temprature": 1}, "no parameter `temprature`"),
    ],
)
def test_a_parameter_out_of_range_is_named_with_its_range(given, problem):
    with pytest.raises(InputError) as error:
        make_decoding(given, {})
    assert problem in str(error.value)
    assert "\n" not in error.value.problem


def test_a_stop_token_must_exist(small_base):
    from weft.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(small_base)
    assert token_id(tokenizer, "<eos>") == token_id(tokenizer, "1") == token_id(tokenizer, 1) == 1
    with pytest.raises(InputError, match="no token '<eso>'") as error:
        token_id(tokenizer, "<eso>")
    assert error.value.hint == "did you mean `<eos>`?"
    with pytest.raises(InputError, match="no token 5000: the ids are 0 to "):
        token_id(tokenizer, "5000")


@pytest.mark.parametrize(
    ("task", "line", "metric"),
    [("tables", 5, "exact_match"), ("reviews", 3, "choice"), ("instruct", 7, "token_accuracy")],
)
def test_a_row_has_its_reference_and_the_verdict_of_its_task(task, line, metric):
    source = Source(lines=[line], task=task)
    session = open_generation(["weft/tiny"], source, {"max_tokens": 4})
    ((said,),) = session.run()
    item = session.rows.items[0]
    assert said.id == f"valid:{line}"
    assert said.prompt_ids == tuple(item.prompt_ids.tolist())
    assert (said.prompt, said.reference) == (item.prompt, item.reference)
    assert next(iter(said.verdict)) == metric
    if task == "instruct":
        scores = session.subject.engine.score(session.subject.bank, Batch((item.example,)))
        assert said.verdict[metric] == pytest.approx(scores.correct_NE[0, 0] / scores.count_E[0])


def test_a_memory_below_one_text_is_a_notice():
    source, little = Source(asked(["Once"])), LocalConfig(kv_memory_mib=1)
    session = open_generation(["weft/tiny"], source, {"max_tokens": 400}, engine=little)
    (notice,) = session.notices
    assert notice.startswith("kv_memory_mib is 1, and the longest text can take 3 MiB")
    assert open_generation(["weft/tiny"], source, {"max_tokens": 40}, engine=little).notices == ()


def test_the_expected_response_is_judged_right():
    from weft.model.decoding import Completion

    source = Source(lines=[5, 9], task="tables")
    session = open_generation(["weft/tiny"], source, {})
    right, other = session.rows.items
    ids = tuple(right.example.ids_T[right.prompt_length :].tolist())
    for number, verdict in ((0, True), (1, False)):
        said = session._generation(number, 0, Completion(ids, "max_tokens"))
        assert said.text == right.reference
        assert bool(said.verdict["exact_match"]) is verdict
    assert right.reference != other.reference


def test_a_base_that_runs_without_a_cache_says_so(small_base, tmp_path, make_model):
    directory = tmp_path / "slow"
    shutil.copytree(small_base, directory)
    make_model("bloom", vocab_size=320).save_pretrained(directory)
    heard: list[str] = []
    say(directory, prompts="the cat", max_tokens=2, notice=heard.append)
    (notice,) = heard
    assert notice.startswith("BloomForCausalLM runs on padded batches")
    assert notice.endswith("each token takes a whole forward")


def test_a_tokenizer_of_another_base_is_refused(small_base, tmp_path, make_model):
    directory = tmp_path / "mixed"
    shutil.copytree(small_base, directory)
    make_model("llama", vocab_size=50).save_pretrained(directory)
    with pytest.raises(InputError, match=r"gives token \d+, and the base knows 0 to 49"):
        say(directory)


def test_a_line_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="have none on line 99999") as error:
        open_generation(["weft/tiny"], Source(lines=[99999], task="tables"), {})
    assert "rows, on lines 1 to" in error.value.hint


def test_prompts_that_cannot_be_continued_are_found_before_the_first_token(small_base):
    for prompts, problem in (([""], "the prompt is empty"), (["a", "cat " * 300], "prompt 2 has")):
        with pytest.raises(InputError, match=problem):
            say(small_base, prompts=prompts)
    assert np.array(say(small_base, prompts="cat")[0].ids).size


def test_an_engine_of_python_is_a_name_or_a_name_with_settings(small_base):
    said = [
        weft.generate(small_base, prompts=["The cat"], max_tokens=4, engine=engine)[0].text
        for engine in ("local", {"name": "local", "kv_memory_mib": 64})
    ]
    assert said[0] == said[1]
    with pytest.raises(InputError, match="the vllm engine has no such setting"):
        weft.generate(small_base, prompts=["The cat"], engine={"name": "vllm", "speed": 1})
