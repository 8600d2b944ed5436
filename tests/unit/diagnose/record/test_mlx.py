"""What is seen of scripts that use MLX: of mlx-lm, and of loops written by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.data.tokenizer import resolve_base
from weft.diagnose.sides.evidence import Evidence
from weft.runs.evidence import Generation, Pass, Seeded, Snapshot, Weights
from weft.runs.recording import Recording

mlx_lm = pytest.importorskip("mlx_lm")

Look = Callable[[Callable[[], Any]], tuple[Any, Evidence]]

PROMPT = "Q: where is the dog?"


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """Runs a function while it is recorded: what it returns, and the evidence."""
    from weft.diagnose.record.session import recording

    def run(script: Callable[[], Any]) -> tuple[Any, Evidence]:
        home = Path(__file__).parent
        with recording(tmp_path / "out", name="script", command="script", home=home):
            result = script()
        found = Recording(tmp_path / "out")
        return result, Evidence("out", "recording", found.root, found.events, found.array)

    return run


@pytest.fixture(scope="module")
def tiny() -> str:
    return str(resolve_base("weft/tiny"))


def greedy_loop(tiny: str, *, carry: bool) -> list[int]:
    """A loop by hand that feeds the new token alone, with the cache or without."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load

    model, tokenizer, *_ = load(tiny)
    cache = make_prompt_cache(model) if carry else None
    fed, tokens = mx.array(tokenizer.encode(PROMPT))[None], []
    for _ in range(4):
        token = mx.argmax(model(fed, cache=cache)[:, -1], axis=-1)
        tokens.append(int(token.item()))
        fed = token[None]
    return tokens


def mlx_adapter(directory: Path, tiny: str, scale: float) -> Path:
    """An adapter of two modules that does something, as mlx-lm writes one."""
    import json

    from safetensors.numpy import save_file

    from weft.core.keys import Key

    rng = Key.of(5).numpy()
    tensors = {}
    for name in ("q_proj", "o_proj"):
        at = f"model.layers.5.self_attn.{name}"
        tensors[f"{at}.lora_a"] = rng.standard_normal((256, 4)).astype(np.float32)
        tensors[f"{at}.lora_b"] = rng.standard_normal((4, 256)).astype(np.float32) / 50
    directory.mkdir()
    save_file(tensors, str(directory / "adapters.safetensors"))
    keys = ["self_attn.q_proj", "self_attn.o_proj"]
    parameters = {"rank": 4, "scale": scale, "dropout": 0.0, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def test_a_completion_of_mlx_lm_is_seen_with_its_settings(look: Look, tiny: str) -> None:
    def script() -> str:
        import mlx.core as mx
        from mlx_lm import generate
        from mlx_lm.sample_utils import make_sampler
        from mlx_lm.utils import load

        model, tokenizer, *_ = load(tiny)
        mx.random.seed(3)
        sampler = make_sampler(temp=0.7, top_p=0.9)
        return generate(model, tokenizer, prompt=PROMPT, max_tokens=6, sampler=sampler)

    alone = script()
    text, seen = look(script)
    assert text == alone
    assert [event.seed for event in seen.of(Seeded)] == [3]
    (made,) = seen.of(Generation)
    wanted = {"max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "greedy": False}
    assert made.settings.items() >= wanted.items()
    assert len(made.tokens[0]) == 6 and made.ended == ("length",)
    assert [draw.how for draw in made.draws] == ["draw"] * 6
    first, second, *_ = [event for event in seen.of(Pass) if event.index in made.passes]
    assert (first.past, first.length) == (0, len(made.prompts[0]) - 1)  # mlx-lm's own prefill
    assert second.past == first.length


def test_a_loop_by_hand_is_a_completion(look: Look, tiny: str) -> None:
    tokens, seen = look(lambda: greedy_loop(tiny, carry=True))
    (made,) = seen.of(Generation)
    assert made.driver == "loop" and list(made.tokens[0]) == tokens
    assert {draw.how for draw in made.draws} == {"argmax"}
    assert made.settings == {"feeding": "cache", "greedy": True}
    length = len(made.prompts[0])
    assert [each.past for each in seen.passes] == [0, length, length + 1, length + 2]


def test_a_loop_that_forgets_its_cache_is_seen_to_do_so(look: Look, tiny: str) -> None:
    tokens, seen = look(lambda: greedy_loop(tiny, carry=False))
    (made,) = seen.of(Generation)
    assert list(made.tokens[0]) == tokens and made.settings["feeding"] == "last token"
    assert [(each.length, each.past) for each in seen.passes[1:]] == [(1, 0)] * 3


def test_the_scale_of_an_adapter_is_measured(look: Look, tiny: str, tmp_path: Path) -> None:
    adapter = mlx_adapter(tmp_path / "adapter", tiny, scale=20.0)

    def script() -> None:
        import mlx.core as mx
        from mlx_lm.utils import load

        model, *_ = load(tiny, adapter_path=str(adapter))
        for _, module in model.named_modules():
            if "lora_a" in module:
                module.scale = module.scale / 4
        mx.eval(model(mx.array([[1, 2, 3]])))

    _, seen = look(script)
    snapshot = seen.used()
    assert snapshot is not None and snapshot.load == str(adapter)
    assert sorted(snapshot.modules) == [
        "model.layers.5.self_attn.o_proj",
        "model.layers.5.self_attn.q_proj",
    ]
    for module in snapshot.modules.values():
        assert module.rank == 4 and module.shape == (256, 256)
        assert module.seen_scale == pytest.approx(5.0, rel=0.02)  # a bfloat16 base rounds the sum
        a, b = seen.array(module.a or ""), seen.array(module.b or "")
        assert module.norm_update == pytest.approx(
            abs(module.seen_scale) * float(np.linalg.norm(b @ a)), rel=1e-4
        )


def test_hidden_states_and_losses_are_those_of_transformers(look: Look, tiny: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ids = [[50, 27, 500, 268, 262]]

    def script() -> None:
        import mlx.core as mx
        from mlx_lm.utils import load

        model, *_ = load(tiny)
        model.set_dtype(mx.float32)
        model(mx.array(ids))

    _, seen = look(script)
    (event,) = seen.passes
    reference = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        found = reference(torch.tensor(ids), output_hidden_states=True)
    log_probabilities = found.logits[0, :-1].log_softmax(-1)
    nll = -log_probabilities[torch.arange(4), torch.tensor(ids[0][1:])]
    np.testing.assert_allclose(seen.array(event.nll or ""), nll[None], atol=1e-4)
    hidden = np.stack([state[:, -1].numpy() for state in found.hidden_states[:-1]])
    np.testing.assert_allclose(seen.array(event.hidden or "")[:-1], hidden, atol=1e-4)
    weights = seen.of(Weights)[0].tensors
    expected = float(reference.get_input_embeddings().weight.detach().double().norm())
    assert weights["model.embed_tokens.weight"].norm == pytest.approx(expected, rel=1e-5)


def test_weights_have_the_digests_that_they_have_in_pytorch(look: Look, tiny: str) -> None:
    from safetensors.torch import load_file

    from weft.model.seen import tensor_seen

    def script() -> None:
        import mlx.core as mx
        from mlx_lm.utils import load

        load(tiny)[0](mx.array([[1, 2]]))

    _, seen = look(script)
    tensors = seen.of(Weights)[0].tensors
    for name, tensor in load_file(Path(tiny) / "model.safetensors").items():
        expected = tensor_seen(tensor)
        assert tensors[name].digest == expected.digest and tensors[name].dtype == "bfloat16"


@pytest.mark.slow
def test_the_command_of_mlx_lm_is_recorded_and_prints_what_it_prints(
    tiny: str, tmp_path: Path
) -> None:
    command = ["mlx_lm.generate", "--model", tiny, "--prompt", PROMPT, "--max-tokens", "6"]
    adapter = mlx_adapter(tmp_path / "adapter", tiny, scale=1.0)
    command += ["--adapter-path", str(adapter), "--temp", "0.8", "--seed", "1", "--verbose", "F"]
    bin_ = Path(sys.executable).parent
    plain = subprocess.run([bin_ / command[0], *command[1:]], capture_output=True, text=True)
    recorded = subprocess.run(
        [sys.executable, "-m", "weft", "record", "--out", str(tmp_path / "out"), "--", *command],
        capture_output=True,
        text=True,
    )
    assert recorded.returncode == plain.returncode == 0
    assert recorded.stdout == plain.stdout
    found = Recording(tmp_path / "out")
    (made,) = [event for event in found.events if isinstance(event, Generation)]
    assert made.settings["temperature"] == 0.8 and len(made.tokens[0]) == 6
    (used,) = [e for e in found.events if isinstance(e, Snapshot) and e.when == "use"]
    assert len(used.modules) == 2
