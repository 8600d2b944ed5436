"""SGLang's dialect: its own `/generate`, where an adapter is a parameter (SGLang 0.5.23)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from weft.core.errors import InputError
from weft.engines.servers.client import (
    FAILURES,
    QUICK,
    Broken,
    Client,
    Json,
    Refused,
    Unreachable,
    json_of,
)
from weft.engines.servers.dialect import (
    Ask,
    Reply,
    Server,
    cards,
    order_problems,
    token_ids,
)
from weft.model.decoding import Decoding

COLDEST = 1e-6
"""Smaller temperatures are greedy."""

SPARE = 2
"""Positions at the end of its context that it never fills."""

START = (
    "python -m sglang.launch_server --model-path BASE --host 127.0.0.1 --enable-lora "
    "--max-lora-rank 16 --lora-target-modules q_proj k_proj v_proj o_proj gate_proj up_proj "
    "down_proj --max-loras-per-batch 32 --lora-strict-loading --enable-deterministic-inference"
)


class Sglang:
    """Token ids in and out; `/v1/completions` would take a wrong name for the base."""

    name = "sglang"
    seed_bits = 31

    def look(self, client: Client) -> Server:
        """Ask for its flags: LoRA on, every weight of an adapter used, and seeds that count."""
        flags, url = client.json("/server_info"), client.config.url
        wrong = [
            problem
            for name, problem in (
                ("enable_lora", "does not load adapters: it lacks --enable-lora"),
                (
                    "lora_strict_loading",
                    "drops weights that do not fit, with a warning of its own: it lacks "
                    "--lora-strict-loading",
                ),
            )
            if not flags.get(name)
        ]
        if wrong:
            raise InputError(
                f"the SGLang server at {url} {'; and it '.join(wrong)}",
                hint=f"start it with {START}",
            )
        base = next((card for card in cards(client) if not card.get("parent")), {})
        length = base.get("max_model_len")
        slots = flags.get("max_loras_per_batch")
        return Server(
            version=str(flags.get("version")),
            model=str(base.get("id")),
            path=str(flags.get("model_path")),
            context=None if length is None else length - SPARE,
            dtype=str(flags.get("dtype") or "the server's"),
            members=None if slots is None else max(slots - 1, 1),  # the base has one of them
            deterministic=bool(flags.get("enable_deterministic_inference")),
        )

    def problems(self, decoding: Decoding, server: Server) -> Iterator[str]:
        """Seeds count in its deterministic mode alone, which knows no min-p."""
        yield from order_problems(decoding)
        if decoding.repetition_penalty != 1:
            yield f"`repetition_penalty` {decoding.repetition_penalty:g}: it has another one"
        if decoding.greedy:
            return
        if decoding.temperature < COLDEST:
            yield f"`temperature` {decoding.temperature:g}: it would be greedy"
        if decoding.min_p:
            yield f"`min_p` {decoding.min_p:g}: it cannot draw with a seed then"
        if decoding.top_k and decoding.top_p < 1:
            yield "`top_k` with `top_p`: it measures top-p on all tokens, not on the top-k"
        if not server.deterministic:
            yield (
                f"`seed` {decoding.seed}: it ignores seeds, for it was started without "
                "--enable-deterministic-inference"
            )

    def load(self, client: Client, name: str, path: str) -> None:
        """Its answer says whether it worked, also in a 200."""
        body = {"lora_name": name, "lora_path": path, "pinned": False}
        _done(client, "/load_lora_adapter", body, client.config.load_timeout)

    def unload(self, client: Client, name: str) -> None:
        """Waits for requests that are under way, by itself without an end."""
        body = {"lora_name": name}
        _done(client, "/unload_lora_adapter", body, client.config.unload_timeout)

    def abort(self, client: Client, asked: Sequence[Ask]) -> None:
        """One by one, by id."""
        with suppress(*FAILURES):
            for ask in asked:
                client.post("/abort_request", {"rid": ask.id}, QUICK)

    def request(
        self, ask: Ask, decoding: Decoding, ends: Sequence[int], server: Server
    ) -> tuple[str, Json]:
        """Everything is said, so that no default counts.

        With `ignore_eos` it would overlook every stop token, so it is used where there are none;
        where some are left, they are looked for here.
        """
        return "/generate", {
            "rid": ask.id,
            "input_ids": list(ask.ids),
            "lora_path": ask.adapter,
            "return_logprob": False,
            "stream": False,
            "sampling_params": {
                "max_new_tokens": ask.room,
                "min_new_tokens": 0,
                "temperature": decoding.temperature,
                "top_p": decoding.top_p,
                "top_k": decoding.top_k or -1,
                "min_p": decoding.min_p,
                "frequency_penalty": 0.0,
                "presence_penalty": 0.0,
                "repetition_penalty": 1.0,
                "sampling_seed": ask.seed,
                "stop": list(decoding.stop),
                "stop_token_ids": list(ends),
                "ignore_eos": decoding.ignore_eos,
                "n": 1,
            },
        }

    def reply(self, answer: Json, ask: Ask, server: Server) -> Reply:
        """One completion of the request with this id."""
        meta = answer.get("meta_info")
        if not isinstance(meta, dict) or meta.get("id") != ask.id:
            raise Broken("the answer is to another request")
        if meta.get("prompt_tokens") != len(ask.ids):
            raise Broken(f"a prompt of {len(ask.ids)} tokens was read as {meta['prompt_tokens']}")
        finish = meta.get("finish_reason")
        if not isinstance(finish, dict) or finish.get("type") not in ("stop", "length"):
            raise Unreachable(f"it gave up a completion: {finish!r}")
        ids = token_ids(answer.get("output_ids"))
        if meta.get("completion_tokens") != len(ids):
            raise Broken(f"{meta.get('completion_tokens')} tokens are announced, {len(ids)} here")
        return Reply(ids, finish["type"] == "stop", repr(finish.get("matched")))


def _done(client: Client, path: str, body: Json, timeout: float) -> None:
    answer = json_of(client.post(path, body, timeout))
    if not answer.get("success"):
        raise Refused(200, str(answer.get("error_message")))
