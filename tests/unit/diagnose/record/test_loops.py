from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.watching import watching
from weft.runs.evidence import Generation, Pass
from weft.runs.recording import Recording

PROMPT = [[5, 17, 30, 44, 8]]
Pick = Callable[[torch.Tensor], torch.Tensor]


def greedy(z: torch.Tensor) -> torch.Tensor:
    return z.argmax(-1, keepdim=True)


def drawn(z: torch.Tensor) -> torch.Tensor:
    return torch.multinomial((z / 0.7).softmax(-1), 1)


def all_again(model: Any, ids: torch.Tensor, pick: Pick, steps: int) -> torch.Tensor:
    for _ in range(steps):
        ids = torch.cat([ids, pick(model(ids).logits[:, -1])], dim=1)
    return ids


def window(model: Any, ids: torch.Tensor, pick: Pick, steps: int) -> torch.Tensor:
    for _ in range(steps):
        ids = torch.cat([ids, pick(model(ids[:, -6:]).logits[:, -1])], dim=1)
    return ids


def with_cache(model: Any, ids: torch.Tensor, pick: Pick, steps: int) -> torch.Tensor:
    fed, cache = ids, None
    for _ in range(steps):
        made = model(fed, past_key_values=cache, use_cache=True)
        cache, fed = made.past_key_values, pick(made.logits[:, -1])
        ids = torch.cat([ids, fed], dim=1)
    return ids


def lost(model: Any, ids: torch.Tensor, pick: Pick, steps: int) -> torch.Tensor:
    fed = ids
    for _ in range(steps):
        fed = pick(model(fed, use_cache=True).logits[:, -1])
        ids = torch.cat([ids, fed], dim=1)
    return ids


WAYS = {"all": all_again, "window": window, "cache": with_cache, "last token": lost}


@pytest.fixture
def model(make_model: Callable[..., Any]) -> Any:
    """One that never ends by itself."""
    made = make_model("llama")
    made.generation_config.eos_token_id = made.config.eos_token_id = 96
    return made


def watched(tmp_path: Path, run: Callable[[], Any]) -> tuple[Any, list[Generation], list[Pass]]:
    with torch.no_grad():
        torch.manual_seed(3)
        plain = run()
        with watching(tmp_path / "recording") as seen:
            torch.manual_seed(3)
            made = run()
    assert torch.equal(plain, made)
    return made, seen.of(Generation), seen.of(Pass)


@pytest.mark.parametrize("pick", [greedy, drawn])
@pytest.mark.parametrize("way", WAYS)
def test_a_loop_is_recognised_however_it_feeds_the_model(
    tmp_path: Path, model: Any, way: str, pick: Pick
) -> None:
    made, (loop,), passes = watched(
        tmp_path, lambda: WAYS[way](model, torch.tensor(PROMPT), pick, 9)
    )
    assert loop.driver == "loop"
    assert loop.prompts == (tuple(PROMPT[0]),)
    assert loop.tokens == (tuple(made[0, 5:].tolist()),)
    assert loop.settings["feeding"] == way
    assert loop.settings["max_tokens"] == 9
    assert loop.ended == ("length",)
    assert loop.passes == tuple(each.index for each in passes) == tuple(range(9))
    assert [draw.token for draw in loop.draws] == list(loop.tokens[0])
    if pick is greedy:
        assert loop.settings["greedy"] is True
        assert {draw.how for draw in loop.draws} == {"argmax"}
    else:
        assert loop.settings["greedy"] is False
        assert loop.settings["temperature"] == pytest.approx(0.7, abs=1e-4)
        assert (loop.settings["top_k"], loop.settings["top_p"]) == (0, 1.0)


def test_a_loop_that_feeds_in_several_ways_is_one(tmp_path: Path, model: Any) -> None:
    def run() -> torch.Tensor:
        ids, cache = torch.tensor(PROMPT), None
        fed = ids
        for step in range(8):
            made = model(fed, past_key_values=None if step == 4 else cache, use_cache=True)
            cache, fed = made.past_key_values, greedy(made.logits[:, -1])
            ids = torch.cat([ids, fed], 1)
        return ids

    made, (loop,), _ = watched(tmp_path, run)
    assert list(loop.tokens[0]) == made[0, 5:].tolist()
    assert loop.settings["feeding"] == "cache then last token then cache"


def test_prompts_one_after_another_are_loops_of_their_own(tmp_path: Path, model: Any) -> None:
    prompts = [[5, 17, 30], [44, 8], [7, 61, 61, 12, 9]]

    def run() -> torch.Tensor:
        return torch.cat(
            [with_cache(model, torch.tensor([p]), greedy, 4)[0, len(p) :] for p in prompts]
        )

    made, loops, _ = watched(tmp_path, run)
    assert [loop.prompts for loop in loops] == [(tuple(p),) for p in prompts]
    assert [list(loop.tokens[0]) for loop in loops] == made.reshape(3, 4).tolist()
    assert [loop.passes for loop in loops] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]


def test_the_first_loop_of_a_place_has_the_state_that_it_drew_from(
    tmp_path: Path, model: Any
) -> None:
    torch.manual_seed(5)
    expected = torch.get_rng_state().numpy()
    with watching(tmp_path / "recording") as seen, torch.no_grad():
        for prompt in (PROMPT, [[3, 9, 12]]):
            with_cache(model, torch.tensor(prompt), drawn, 4)
    first, second = seen.of(Generation)
    assert first.state is not None and second.state is None
    assert np.array_equal(Recording(seen.root).array(first.state), expected)


@pytest.mark.parametrize("way", ["all", "cache"])
def test_a_padded_batch_is_a_loop_of_its_rows(tmp_path: Path, model: Any, way: str) -> None:
    ids = torch.tensor([[5, 17, 30, 44], [0, 0, 9, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])

    def run() -> torch.Tensor:
        text, seen, fed, cache = ids, mask, ids, None
        for _ in range(5):
            made = model(fed, attention_mask=seen, past_key_values=cache, use_cache=way == "cache")
            token = greedy(made.logits[:, -1])
            text, seen = torch.cat([text, token], 1), torch.cat([seen, torch.ones(2, 1).long()], 1)
            fed, cache = (token, made.past_key_values) if way == "cache" else (text, None)
        return text

    made, (loop,), _ = watched(tmp_path, run)
    assert loop.prompts == ((5, 17, 30, 44), (9, 8))
    assert [list(row) for row in loop.tokens] == made[:, 4:].tolist()
    assert loop.settings["feeding"] == way


def test_a_row_of_a_batch_ends_at_its_end_token_and_is_filled_from_there(
    tmp_path: Path, model: Any
) -> None:
    ids = torch.tensor([[5, 17, 30, 44], [9, 8, 61, 12]])
    free = all_again(model, ids, greedy, 6)[:, 4:]
    eos = next(t for t in free[0, 1:4].tolist() if t not in free[1].tolist())
    end = free[0].tolist().index(eos) + 1
    model.generation_config.eos_token_id = model.config.eos_token_id = eos

    def run() -> torch.Tensor:
        text, over = ids, torch.zeros(2, 1, dtype=torch.bool)
        for _ in range(6):
            token = greedy(model(text).logits[:, -1]).masked_fill(over, 0)
            over |= token == eos
            text = torch.cat([text, token], 1)
        return text

    _, (loop,), _ = watched(tmp_path, run)
    assert list(loop.tokens[0]) == free[0, :end].tolist()
    assert list(loop.tokens[1]) == free[1].tolist()
    assert loop.ended == ("eos", "length")


def test_a_loop_that_breaks_at_the_end_token_is_told_from_one_that_runs_out(
    tmp_path: Path, model: Any
) -> None:
    free = all_again(model, torch.tensor(PROMPT), greedy, 8)[0, 5:].tolist()
    eos = free[4]
    end = free.index(eos) + 1
    model.generation_config.eos_token_id = model.config.eos_token_id = eos

    def run() -> torch.Tensor:
        ids = torch.tensor(PROMPT)
        for _ in range(8):
            token = greedy(model(ids).logits[:, -1])
            if int(token) == eos:  # chosen, and never appended
                break
            ids = torch.cat([ids, token], 1)
        return ids

    _, (loop,), _ = watched(tmp_path, run)
    assert list(loop.tokens[0]) == free[:end]
    assert loop.ended == ("eos",)
    assert "max_tokens" not in loop.settings


def test_a_stop_text_is_told_from_a_limit(tmp_path: Path, model: Any) -> None:
    prompts = [[5, 17, 30], [44, 8], [7, 61, 61, 12, 9], [33, 2]]
    free = [all_again(model, torch.tensor([p]), greedy, 12)[0, len(p) :].tolist() for p in prompts]
    common = set.intersection(*(set(row[2:8]) for row in free[:2]))
    stop = min(common) if common else free[0][4]

    def run() -> torch.Tensor:
        made = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            for _ in range(12):
                ids = torch.cat([ids, greedy(model(ids).logits[:, -1])], 1)
                if int(ids[0, -1]) == stop:
                    break
            made.append(ids[0, len(prompt) :])
        return torch.cat(made)

    _, loops, _ = watched(tmp_path, run)
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in free]
    assert [list(loop.tokens[0]) for loop in loops] == expected
    for loop, row in zip(loops, expected, strict=True):
        if loop.ended == ("length",):
            assert len(row) == 12
        if loop.ended == ("stop",):
            assert row[-1] == stop
        assert loop.settings.get("max_tokens", 12) == 12


def test_a_loop_in_training_mode_is_one(tmp_path: Path, model: Any) -> None:
    made, (loop,), _ = watched(
        tmp_path, lambda: with_cache(model.train(), torch.tensor(PROMPT), greedy, 5)
    )
    assert list(loop.tokens[0]) == made[0, 5:].tolist()


def test_the_filter_of_a_sampler_is_told(tmp_path: Path, model: Any) -> None:
    def nucleus(z: torch.Tensor) -> torch.Tensor:
        p, order = torch.sort((z / 0.8).softmax(-1), descending=True)
        p = p.masked_fill(p.cumsum(-1) - p > 0.9, 0.0)
        return order.gather(-1, torch.multinomial(p, 1))

    _, (loop,), _ = watched(tmp_path, lambda: with_cache(model, torch.tensor(PROMPT), nucleus, 30))
    assert loop.settings["top_p"] == 0.9
    assert loop.settings["temperature"] == pytest.approx(0.8, abs=1e-4)


def test_a_loop_whose_draws_leave_no_choice_has_the_temperature_of_its_place(
    tmp_path: Path, model: Any
) -> None:
    def run() -> torch.Tensor:
        made = []
        for sure in (False, True):

            def pick(z: torch.Tensor, sure: bool = sure) -> torch.Tensor:
                z = z.masked_fill(z < z.max(), float("-inf")) if sure else z
                return torch.multinomial((z / 0.6).softmax(-1), 1)

            made.append(with_cache(model, torch.tensor(PROMPT), pick, 4))
        return torch.cat(made)

    _, loops, _ = watched(tmp_path, run)
    assert [loop.settings["temperature"] for loop in loops] == [pytest.approx(0.6, abs=1e-4)] * 2


def test_a_choice_that_nobody_saw_is_unknown(tmp_path: Path, model: Any) -> None:
    def by_numpy(z: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[int(z.numpy().argsort()[0, -2])]])

    made, (loop,), _ = watched(
        tmp_path, lambda: with_cache(model, torch.tensor(PROMPT), by_numpy, 5)
    )
    # the last one was never fed
    assert list(loop.tokens[0]) == made[0, 5:-1].tolist()
    assert {draw.how for draw in loop.draws} == {"unknown"}
    assert "greedy" not in loop.settings


def test_scores_are_no_loop(tmp_path: Path, model: Any) -> None:
    def run() -> torch.Tensor:
        best = [
            model(torch.tensor([row])).logits[:, -1].argmax(-1)
            for row in ([5, 17, 30], [5, 17, 30, 44], [8], [9])
        ]
        return torch.stack(best)

    _, loops, _ = watched(tmp_path, run)
    assert loops == []


def test_training_is_no_loop(tmp_path: Path, model: Any) -> None:
    ids = torch.tensor(PROMPT)
    with watching(tmp_path / "recording") as seen:
        for length in (2, 3, 4):
            out = model(ids[:, :length], labels=ids[:, :length])
            out.logits[:, -1].argmax(-1)
            out.loss.backward()
    assert seen.of(Generation) == []
