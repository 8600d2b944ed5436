"""The MLX engine against the local one and against mlx-lm's own generation and sampling."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from weft.core.batch import IGNORE, Batch, Example
from weft.core.errors import InputError
from weft.engines.registry import open_engine
from weft.model.adapter import Adapter, Layout, Site, Slot
from weft.model.bank import Bank
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.sampling import distribution, penalise, seen_tokens
from weft.model.sites import choose_sites

pytest.importorskip("mlx_lm", reason="the extra weft[mlx] is not installed")
import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten
from mlx_lm import sample_utils
from mlx_lm.generate import generate_step
from mlx_lm.tuner.lora import LoRALinear

from weft.engines.mlx import open_mlx

TARGETS = {"mixtral": ("q_proj", "o_proj", "mlp.gate")}
ROUTERS = {"model.layers.0.mlp.gate", "model.layers.1.mlp.gate", "model.layers.2.mlp.gate"}
MLX_NAMES = {"gpt2": ("transformer.h", "model.h"), "mixtral": ("mlp.gate", "block_sparse_moe.gate")}
SAMPLED = Decoding(temperature=0.8, top_p=0.9, repetition_penalty=1.2, max_tokens=12, seed=5)


@pytest.fixture(scope="module")
def engines(base_dir):
    """Both engines over the same files."""
    made = {}

    def of(architecture):
        if architecture not in made:
            path = base_dir(architecture)
            made[architecture] = (open_engine("mlx", path), open_engine("local", path))
        return made[architecture]

    return of


def adapters_of(engine, architecture="llama"):
    """Two of different sites, ranks and scales, and the base."""
    targets = TARGETS.get(architecture, "all-linear")
    wide = AdapterConfig(rank=3, scale=4, targets=targets)
    last = AdapterConfig(rank=2, alpha=3, rslora=True, targets=targets, layers="last 2")
    made = {}
    for seed, (name, config) in enumerate({"wide": wide, "last": last}.items()):
        layout = choose_sites(dict(engine.sites), config)
        generator = torch.Generator().manual_seed(seed)
        made[name] = Adapter(layout, torch.randn(layout.size, generator=generator) * 0.2)
    return made | {"base": None}


def prompts(*lengths):
    generator = np.random.default_rng(0)
    return [generator.integers(2, 320, length) for length in lengths or (7, 3, 5, 12)]


def batch():
    labels = [np.where(np.arange(len(p)) % 3 == 1, IGNORE, p) for p in prompts(9, 5, 3, 20)]
    rows = zip(prompts(9, 5, 3, 20), labels, strict=True)
    return Batch(tuple(Example(str(i), *row) for i, row in enumerate(rows)))


# --- the same numbers as the local engine


@pytest.mark.parametrize(
    ("architecture", "rtol"),
    [
        ("llama", 1e-5),
        ("qwen2", 1e-5),
        ("mixtral", 1e-5),
        ("gpt2", 1e-5),
        ("gptj", 1e-5),
        ("gemma", 1e-3),  # mlx-lm computes Gemma's GELU exactly, transformers by tanh
    ],
)
def test_scores_are_those_of_the_local_engine(architecture, rtol, engines):
    ours, local = engines(architecture)
    bank = Bank.of(adapters_of(local, architecture))
    found, wanted = ours.score(bank, batch()), local.score(bank, batch())
    np.testing.assert_allclose(found.loss_NE, wanted.loss_NE, rtol=rtol)
    np.testing.assert_array_equal(found.correct_NE, wanted.correct_NE)
    np.testing.assert_array_equal(found.count_E, wanted.count_E)
    assert (np.abs(wanted.loss_NE[:2] / wanted.loss_NE[2] - 1) > 10 * rtol).any(axis=1).all()


@pytest.mark.parametrize("decoding", [Decoding(max_tokens=12), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2"])
def test_the_same_seed_gives_the_tokens_of_the_local_engine(architecture, decoding, engines):
    ours, local = engines(architecture)
    bank = Bank.of(adapters_of(local, architecture))
    assert ours.generate(bank, prompts(), decoding) == local.generate(bank, prompts(), decoding)


def test_both_engines_say_the_same_of_the_base(engines):
    for architecture in ("llama", "gpt2", "mixtral"):
        ours, local = engines(architecture)
        assert (ours.ref, ours.context, ours.stop_ids) == (local.ref, local.context, local.stop_ids)
        assert dict(ours.sites) == dict(local.sites)


def test_a_16_bit_base_is_computed_in_16_bits(engines, base_dir):
    fp32, _ = engines("llama")
    bf16 = open_mlx(base_dir("llama"), "bfloat16")
    weights = {weight.dtype for _, weight in tree_flatten(bf16.model.parameters())}
    assert weights == {mx.bfloat16} and bf16.record()["dtype"] == "bfloat16"
    bank = Bank.of(adapters_of(fp32))
    found, wanted = bf16.score(bank, batch()).loss_NE, fp32.score(bank, batch()).loss_NE
    np.testing.assert_allclose(found, wanted, rtol=0.02)
    assert not np.array_equal(found, wanted)


# --- the same tokens as mlx-lm


def as_mlx_lm_loads_it(architecture, path, adapter, directory):
    """mlx-lm's own loader on files in its layout, written here tensor by tensor."""
    if adapter is None:
        return mlx_lm.load(path, model_config={"n_ctx": 64})[0]
    old, new = MLX_NAMES.get(architecture, ("", ""))
    tensors, keys = {}, set()
    for site, (a_rI, b_Or) in adapter.sites.items():
        name = site.replace(old, new)
        tensors[f"{name}.lora_a"] = mx.array(a_rI.T.numpy())
        tensors[f"{name}.lora_b"] = mx.array(b_Or.T.numpy())
        keys.add(name.split(".", 3)[3])
    first, layers = next(iter(adapter.layout.slots)), {s.site.layer for s in adapter.layout.slots}
    parameters = {"rank": first.rank, "scale": first.scale, "dropout": 0.0, "keys": sorted(keys)}
    config = {"num_layers": len(layers), "lora_parameters": parameters, "fine_tune_type": "lora"}
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(directory / "adapters.safetensors"), tensors)
    settings = {"model_config": {"n_ctx": 64}, "adapter_path": str(directory)}
    return mlx_lm.load(path, **settings)[0]


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2"])
def test_greedy_tokens_are_those_of_mlx_lm(architecture, engines, base_dir, tmp_path):
    """The same calls in the same order: not one logit differs."""
    ours, local = engines(architecture)
    adapters = adapters_of(local, architecture)
    decoding = Decoding(max_tokens=20, ignore_eos=True)
    said = ours.generate(Bank.of(adapters), prompts(), decoding)
    for (name, adapter), texts in zip(adapters.items(), said, strict=True):
        model = as_mlx_lm_loads_it(architecture, base_dir(architecture), adapter, tmp_path / name)
        for prompt, text in zip(prompts(), texts, strict=True):
            theirs = generate_step(mx.array(prompt), model, max_tokens=20)
            assert list(text.ids) == [token for token, _ in theirs]


def test_long_prompts_are_taken_in_the_pieces_that_mlx_lm_takes(base_dir):
    engine = open_mlx(base_dir("llama", max_position_embeddings=5000))
    (prompt,) = prompts(4200)
    ((text,),) = engine.generate(Bank(("base",), {}), [prompt], Decoding(max_tokens=5))
    theirs = generate_step(mx.array(prompt), engine.model, max_tokens=5)
    assert list(text.ids) == [token for token, _ in theirs]


def test_adapters_are_in_mlx_lms_own_layers_and_the_weights_of_the_base_are_shared(engines):
    engine, _ = engines("mixtral")
    bank = Bank.of(adapters_of(engine, "mixtral"))
    before = dict(tree_flatten(engine.model.parameters()))
    model = engine.adapted(bank, 0)
    placed = {name for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}
    assert {name.replace("block_sparse_moe", "mlp") for name in placed} == set(bank.sites)
    assert {name for name in bank.sites if name.endswith("mlp.gate")} == ROUTERS
    for name, weight in tree_flatten(model.parameters()):
        if not name.endswith(("lora_a", "lora_b")):
            assert weight is before[name.replace(".linear.", ".")]
    assert engine.adapted(bank, 2) is engine.model, "a member that changes nothing is the base"
    after = dict(tree_flatten(engine.model.parameters()))
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)


# --- what mlx-lm would do otherwise, and what it cannot


def test_the_rotary_base_of_a_configuration_of_transformers_5_is_used(base_dir):
    """mlx-lm looks for `rope_theta`, which transformers 5 writes within `rope_parameters`."""
    rope = {"rope_type": "default", "rope_theta": 50.0}
    path = base_dir("llama", rope_parameters=rope)
    bank = Bank(("base",), {})
    found, wanted = (open_engine(name, path).score(bank, batch()) for name in ("mlx", "local"))
    np.testing.assert_allclose(found.loss_NE, wanted.loss_NE, rtol=1e-5)
    (ids,) = prompts(20)
    models = (mlx_lm.load(path)[0], open_mlx(path).model)
    plain, ours = (model(mx.array(ids)[None]) for model in models)
    assert not mx.allclose(plain, ours, atol=1e-3), "mlx-lm alone takes another rotary base"


def test_a_window_that_mlx_lm_does_not_have_bounds_the_context(engines):
    """mlx-lm's Mistral sees all tokens; up to the window that is the same."""
    ours, local = engines("mistral")
    assert (ours.context, local.context) == (5, 64)
    inside = Batch(tuple(Example(str(n), p, p) for n, p in enumerate(prompts(5, 4))))
    bank = Bank.of(adapters_of(local))
    found, wanted = ours.score(bank, inside), local.score(bank, inside)
    np.testing.assert_allclose(found.loss_NE, wanted.loss_NE, rtol=1e-5)
    ((text,),) = ours.generate(Bank(("base",), {}), prompts(3), Decoding(ignore_eos=True))
    assert (len(text.ids), text.finish) == (2, "context")


def test_an_architecture_that_mlx_lm_does_not_have_is_an_error(base_dir):
    with pytest.raises(InputError, match="Model type bloom not supported"):
        open_mlx(base_dir("bloom"))


def test_a_base_that_brings_code_is_an_error_and_its_code_is_not_run(base_dir, tmp_path):
    shutil.copytree(base_dir("llama"), tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_file": "mine.py"}))
    (tmp_path / "base" / "mine.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(InputError, match="requires importing and running a custom module"):
        open_mlx(str(tmp_path / "base"))


def test_a_site_that_mlx_lm_does_not_have_is_an_error_that_names_it(engines):
    engine, _ = engines("llama")
    layout = Layout((Slot(Site("model.layers.0.mlp.other", "linear", 4, 4, 0), 2, 1.0),))
    bank = Bank.of({"odd": Adapter(layout, torch.ones(layout.size))})
    with pytest.raises(InputError, match=r"changes model\.layers\.0\.mlp\.other, which mlx-lm's"):
        engine.score(bank, batch())


def test_a_device_is_not_chosen_for_mlx():
    with pytest.raises(InputError, match="MLX's own default device"):
        open_engine("mlx", "weft/tiny", device="cuda")


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx_lm", None)
    with pytest.raises(InputError, match="the mlx engine needs the packages") as caught:
        open_engine("mlx", "weft/tiny")
    assert caught.value.hint == "pip install 'weft[mlx]'"


def test_nothing_else_loads_mlx():
    code = """
import sys, weft, weft.cli.main, weft.engines.registry
from weft.engines.registry import open_engine
assert open_engine("local", "weft/tiny").name == "local"
assert not [name for name in sys.modules if name.split(".")[0] in ("mlx", "mlx_lm")]
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- filters and penalties: the distribution is that of mlx-lm's samplers, and of transformers'

V = 50
GRID = [
    dict(zip(("temperature", "top_p", "min_p", "top_k", "repetition_penalty"), values, strict=True))
    for values in itertools.product((0.5, 1.0, 1.7), (0.7, 1.0), (0.0, 0.05), (0, 6), (1.0, 1.3))
]


def logits_and_history(seed):
    """Random logits, and 30 tokens: more than mlx-lm's window."""
    generator = np.random.default_rng(seed)
    return generator.normal(0, 3, V).astype(np.float32), generator.integers(0, V, 30)


def weft_distribution(decoding, logits_V, history):
    logits_BV = torch.from_numpy(logits_V)[None]
    seen_BS = seen_tokens([history.tolist()], decoding.window)
    penalised_BV = penalise(logits_BV, seen_BS, decoding.repetition_penalty)
    return distribution(penalised_BV, decoding)[0].softmax(-1).numpy()


@pytest.mark.parametrize("window", [None, 7])
def test_order_mlx_is_the_distribution_that_mlx_lms_sampler_draws_from(window, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        sample_utils, "categorical_sampling", lambda x, t: drawn.append(mx.softmax(x / t, axis=-1))
    )
    for seed, settings in enumerate(GRID):
        decoding = Decoding(order="mlx", repetition_window=window, **settings)
        logits_V, history = logits_and_history(seed)
        own = {k: settings[k] for k in ("top_p", "min_p", "top_k")}
        sampler = sample_utils.make_sampler(temp=settings["temperature"], **own)
        processors = sample_utils.make_logits_processors(
            repetition_penalty=settings["repetition_penalty"],
            **({} if window is None else {"repetition_context_size": window}),
        )
        logits_1V = mx.array(logits_V)[None]
        for process in processors:
            logits_1V = process(mx.array(history), logits_1V)
        sampler(logits_1V - mx.logsumexp(logits_1V, keepdims=True))
        found = weft_distribution(decoding, logits_V, history)
        np.testing.assert_allclose(found, np.array(drawn[-1])[0], atol=1e-6, err_msg=str(settings))
    assert len(drawn) == len(GRID)


def test_order_hf_is_the_distribution_that_transformers_draws_from(make_model):
    from transformers import GenerationConfig

    model = make_model("llama")
    for seed, settings in enumerate(GRID):
        logits_V, history = logits_and_history(seed)
        config = GenerationConfig(do_sample=True, **settings)
        process = model._get_logits_processor(config, input_ids_seq_length=30)
        theirs_1V = process(torch.from_numpy(history)[None], torch.from_numpy(logits_V)[None])
        found = weft_distribution(Decoding(order="hf", **settings), logits_V, history)
        theirs = theirs_1V.softmax(-1)[0].numpy()
        np.testing.assert_allclose(found, theirs, atol=1e-6, err_msg=str(settings))


def test_the_orders_are_not_the_same():
    logits_V, history = logits_and_history(0)
    settings = {"temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.3}
    hf, mlx = (
        weft_distribution(Decoding(order=order, **settings), logits_V, history)
        for order in ("hf", "mlx")
    )
    assert np.abs(hf - mlx).max() > 0.01
