"""vLLM's dialect: an adapter is a model with a name of its own (vLLM 0.32)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weft.core.errors import InputError
from weft.engines.servers.client import Broken, Client, Json, Refused, Unreachable
from weft.engines.servers.dialect import (
    Ask,
    Reply,
    Server,
    cards,
    order_problems,
    token_ids,
)
from weft.model.decoding import Decoding

COLDEST = 0.01
"""vLLM raises smaller temperatures to this one."""

START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE --host 127.0.0.1 --enable-lora "
    "--max-loras 8 --max-cpu-loras 16 --max-lora-rank 16 --generation-config vllm"
)


class Vllm:
    """Completions of OpenAI's form, with token ids in and out."""

    name = "vllm"
    seed_bits = 63

    def look(self, client: Client) -> Server:
        """The base is the model without a parent. Loading adapters has to be switched on."""
        base = next((card for card in cards(client) if not card.get("parent")), None)
        if base is None:
            raise InputError(f"the server at {client.config.url} lists no base model")
        try:  # an adapter without a name: refused, where the route is there
            client.post("/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""}, 10.0)
        except Refused as error:
            if error.status in (404, 405):
                raise InputError(
                    f"the vLLM server at {client.config.url} does not load adapters while it runs",
                    hint=f"start it with {START}",
                ) from error
        return Server(
            version=str(client.json("/version").get("version")),
            model=str(base["id"]),
            path=str(base.get("root")),
            context=base.get("max_model_len"),
        )

    def problems(self, decoding: Decoding, server: Server) -> Iterator[str]:
        """It filters by min-p first, and knows no very small temperature."""
        yield from order_problems(decoding)
        if 0 < decoding.temperature < COLDEST:
            yield f"`temperature` {decoding.temperature:g}: it takes {COLDEST:g} for it"
        if not decoding.greedy and decoding.min_p and decoding.top_p < 1:
            yield "`min_p` with `top_p`: it applies min-p before top-p"

    def load(self, client: Client, name: str, path: str) -> None:
        """Never in place: a name stands for the same weights as long as the server lives."""
        body = {"lora_name": name, "lora_path": path, "load_inplace": False}
        client.post("/v1/load_lora_adapter", body, client.config.load_timeout)

    def unload(self, client: Client, name: str) -> None:
        """The name goes at once; the weights when others need the place."""
        body = {"lora_name": name}
        client.post("/v1/unload_lora_adapter", body, client.config.unload_timeout)

    def abort(self, client: Client, asked: Sequence[Ask]) -> None:
        """A closed connection is an abort."""

    def request(
        self, ask: Ask, decoding: Decoding, ends: Sequence[int], server: Server
    ) -> tuple[str, Json]:
        """Everything is said, so that no default of the server or of the base's files counts."""
        return "/v1/completions", {
            "model": ask.adapter or server.model,
            "prompt": list(ask.ids),
            "max_tokens": ask.room,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k,
            "min_p": decoding.min_p,
            "repetition_penalty": decoding.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "min_tokens": 0,
            "seed": ask.seed,
            "stop": list(decoding.stop),
            "stop_token_ids": list(ends),
            "ignore_eos": True,  # those that count are in `stop_token_ids`
            "n": 1,
            "return_token_ids": True,
            "request_id": ask.id,
        }

    def reply(self, answer: Json, ask: Ask, server: Server) -> Reply:
        """One choice, of the model and the prompt that were asked for."""
        model, choices = answer.get("model"), answer.get("choices")
        if model != (ask.adapter or server.model):
            raise Broken(f"{ask.adapter or server.model} was asked, and {model} answered")
        if not isinstance(choices, list) or len(choices) != 1:
            raise Broken("one completion was asked for, and there is not one in the answer")
        (choice,) = choices
        given = choice.get("prompt_token_ids")
        if given is not None and token_ids(given) != ask.ids:
            raise Broken("the answer is to another prompt")
        finish = choice.get("finish_reason")
        if finish not in ("stop", "length"):
            raise Unreachable(f"it gave up a completion: {finish!r}")
        ids = token_ids(choice.get("token_ids"))
        return Reply(ids, finish == "stop", repr(choice.get("stop_reason")))
