"""A server that keeps the contract of vLLM or of SGLang, and fails on request.

It computes with the local engine, reads adapters from disk as PEFT does, and speaks over a real
socket of 127.0.0.1. `faults` says how often each kind of failure is still to come.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from weft.engines.local import LocalEngine
from weft.formats.peft import read_adapter
from weft.model.bank import Bank
from weft.model.decoding import Decoding

ALWAYS = 10**9
CONTEXT_OF_SGLANG = 2
"""Positions that SGLang leaves free at the end."""

FLAGS = {
    "version": "0.5.23",
    "enable_lora": True,
    "lora_strict_loading": True,
    "enable_deterministic_inference": True,
    "max_loras_per_batch": 5,
    "dtype": "float32",
}


class Contract:
    """One server; `with` starts and stops it. It can also die and come back on its own."""

    def __init__(self, engine: LocalEngine, dialect: str, **settings):
        self.engine, self.dialect = engine, dialect
        self.flags = FLAGS | settings.pop("flags", {})
        self.faults = Counter(settings.pop("faults", {}))
        self.loads_at_run_time = settings.pop("loads_at_run_time", True)
        self.path = settings.pop("path", engine.ref)
        self.back_after = settings.pop("back_after", 0.3)
        """Seconds until a server that died is there again; None for never."""
        assert not settings, settings
        self.log: list[tuple[str, dict]] = []
        self.names: list[str] = []
        """Every name that was ever loaded."""
        self.paths: list[str] = []
        self.completions = 0
        self.port = free_port()
        self.thread = threading.Thread(target=lambda: None)
        self.thread.start()
        self.lock, self.compute = threading.Lock(), threading.Lock()
        self.idle = threading.Event()
        """Set at the end, so that what hangs lets go."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def adapters(self) -> list[str]:
        """What is loaded now."""
        return list(self.loaded)

    def __enter__(self) -> Contract:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.idle.set()
        self.thread.join()
        if self.alive:
            self.stop()

    def start(self) -> None:
        self.loaded: dict[str, tuple[str, object]] = {}
        self.connections: set[socket.socket] = set()
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # whoever has hung up
        self.alive = True
        self.down = threading.Event()
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """As if the process were killed: nobody gets an answer any more."""
        self.http.shutdown()
        self.http.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def die(self) -> None:
        if not self.alive:
            return
        self.alive = False

        def again() -> None:
            self.stop()
            self.down.set()
            if self.back_after is not None and not self.idle.wait(self.back_after):
                if self.strikes("comes back with another base"):
                    self.path = "another/base"
                self.start()

        self.thread = threading.Thread(target=again, daemon=True)
        self.thread.start()

    def strikes(self, fault: str) -> bool:
        with self.lock:
            self.faults[fault] -= 1
            return self.faults[fault] >= 0

    def models(self) -> list[dict]:
        length = self.engine.context
        base = {"id": "base", "root": self.path, "parent": None, "max_model_len": length}
        shown = list(self.loaded.items())
        if self.faults["lists one adapter only"] > 0:
            shown = shown[-1:]
        return [base] + [{"id": n, "root": path, "parent": "base"} for n, (path, _) in shown]

    def load(self, name: str, path: str) -> str | None:
        """None, or why not."""
        if self.strikes("load fails"):
            raise ServerFault
        if self.strikes("refuses the rank"):
            return "LoRA rank 8 is greater than max_lora_rank 4"
        if self.strikes("loads and does not list"):
            return None
        if name in self.loaded:
            return f"{name} has already been loaded"
        if self.strikes("knows the name from elsewhere"):
            self.loaded[name] = ("/elsewhere", None)
            return f"{name} has already been loaded"
        own = json.loads((Path(path) / "adapter_config.json").read_text())
        assert own["lora_alpha"] == own["r"] and not own["rank_pattern"] and not own["use_rslora"]
        assert all("." not in target for target in own["target_modules"])
        read = read_adapter(Path(path), self.engine.sites).adapter
        self.names.append(name)
        self.paths.append(path)
        self.loaded[name] = (path, read)
        if self.strikes("load answers late"):
            self.idle.wait(2.0)
        return None

    def unload(self, name: str) -> str | None:
        if self.strikes("unload hangs"):
            self.idle.wait(30)
        if self.strikes("unload is incomplete"):
            return "incomplete unload. Retry the unload"
        if self.strikes("lets go of an adapter by itself"):
            del self.loaded[name]
        return None if self.loaded.pop(name, None) else f"{name} cannot be found"

    def say(self, name: str | None, prompt: list[int], decoding: Decoding):
        """(ids with the one that ended them, whether something stopped them, what)."""
        with self.lock:
            self.completions += 1
            dies = self.completions == self.faults["dies at completion"]
        if dies:
            self.die()
            self.down.wait(5)
            raise Dropped
        if self.strikes("completion fails"):
            raise ServerFault
        if self.strikes("completion hangs"):
            self.idle.wait(30)
        if self.strikes("drops the connection"):
            raise Dropped
        adapter = self.loaded[name][1] if name else None
        if self.faults["answers with the base"] > 0:
            adapter = None
        if self.faults["answers with one adapter for all"] > 0 and name:
            adapter = next(iter(self.loaded.values()))[1]
        with self.compute:
            bank = Bank.of({"x": adapter})
            ((said,),) = self.engine.generate(bank, [np.array(prompt)], decoding)
        ended = [said.stopped_by] if said.finish == "stop token" else []
        stopped = said.finish in ("stop token", "stop text")
        return [*said.ids, *ended], stopped, said.stopped_by


def free_port() -> int:
    """One that neither an outgoing connection nor a test beside this one takes meanwhile."""
    for port in range(20000 + os.getpid() % 100 * 100, 32000):
        with socket.socket() as trial, suppress(OSError):
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class ServerFault(Exception):
    """An internal error."""


class Dropped(Exception):
    """No answer at all."""


def _handler(server: Contract) -> type[BaseHTTPRequestHandler]:
    routes = ROUTES[server.dialect]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer is one packet

        def setup(self):
            super().setup()
            server.connections.add(self.connection)

        def log_message(self, *_):
            pass

        def do_GET(self):
            if server.strikes("is starting") and self.path != "/version":
                return self.answer(503, "starting")
            answers = {
                "/health": lambda _: {},
                "/v1/models": lambda server: {"object": "list", "data": server.models()},
                **routes["GET"],
            }
            if self.path not in answers:
                return self.answer(404, error("Not Found"))
            return self.answer(200, answers[self.path](server))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.log.append((self.path, body))
            route = routes["POST"].get(self.path)
            if route is None or (route in LOADING and not server.loads_at_run_time):
                return self.answer(404, error("Not Found"))
            try:
                return self.answer(*route(server, body))
            except ServerFault:
                return self.answer(500, error("something broke in here"))
            except Dropped:
                self.close_connection = True

        def answer(self, status, content):
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            with suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()

    return Handler


def error(message: str) -> dict:
    return {"error": {"message": message, "type": "error", "code": 0}}


def vllm_load(server, body):
    if not body["lora_name"] or not body["lora_path"]:
        return 400, error("Both 'lora_name' and 'lora_path' must be provided.")
    problem = server.load(body["lora_name"], body["lora_path"])
    return (400, error(problem)) if problem else (200, "Success: LoRA adapter added")


def vllm_unload(server, body):
    problem = server.unload(body["lora_name"])
    return (404, error(problem)) if problem else (200, "Success: LoRA adapter removed")


def vllm_complete(server, body):
    name = None if body["model"] == "base" else body["model"]
    if name is not None and name not in server.loaded:
        return 404, error(f"The model `{name}` does not exist.")
    decoding = Decoding(
        **{k: body[k] for k in ("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed")},
        repetition_penalty=body["repetition_penalty"],
        stop=tuple(body["stop"]),
        stop_ids=tuple(body["stop_token_ids"]),
        ignore_eos=body["ignore_eos"],
    )
    ids, stopped, by = server.say(name, body["prompt"], decoding)
    choice = {
        "index": 0,
        "text": "",
        "finish_reason": "stop" if stopped else "length",
        "stop_reason": by,
        "token_ids": ids,
        "prompt_token_ids": body["prompt"],
    }
    if server.strikes("stops where nothing ends it"):
        choice |= {"token_ids": ids[:1], "finish_reason": "stop", "stop_reason": None}
    if server.strikes("ends for its length too early"):
        choice |= {"token_ids": ids[:1], "finish_reason": "length"}
    if server.strikes("gives up a completion"):
        choice |= {"finish_reason": "abort"}
    if server.strikes("answers another prompt"):
        choice |= {"prompt_token_ids": [5, 5]}
    choices = [] if server.strikes("leaves a completion out") else [choice]
    answered = "base" if server.strikes("says that another model answers") else body["model"]
    if server.strikes("says no JSON"):
        return 200, "<html>welcome</html>"
    return 200, {"model": answered, "choices": choices}


def sglang_load(server, body):
    problem = server.load(body["lora_name"], body["lora_path"])
    listed = {name: path for name, (path, _) in server.loaded.items()}
    answer = {"success": not problem, "error_message": problem or "", "loaded_adapters": listed}
    return (400 if problem else 200), answer


def sglang_unload(server, body):
    problem = server.unload(body["lora_name"])
    answer = {"success": not problem, "error_message": problem or "", "loaded_adapters": {}}
    return (400 if problem else 200), answer


def sglang_complete(server, body):
    name, asked = body["lora_path"], body["sampling_params"]
    if name is not None and name not in server.loaded:
        if name not in server.names:
            return 400, error(f"The following requested LoRA adapters are not loaded: {name}")
        path = server.paths[server.names.index(name)]  # unload is not final: the stale reload
        server.loaded[name] = (path, read_adapter(Path(path), server.engine.sites).adapter)
    if asked["min_p"] and server.flags["enable_deterministic_inference"]:
        server.die()
    seeded = server.flags["enable_deterministic_inference"]
    limit = server.engine.context - CONTEXT_OF_SGLANG - len(body["input_ids"])
    room = min(asked["max_new_tokens"], limit)
    decoding = Decoding(
        temperature=asked["temperature"],
        top_p=asked["top_p"],
        top_k=max(asked["top_k"], 0),
        max_tokens=room,
        seed=asked["sampling_seed"] if seeded else 42,
        stop=tuple(asked["stop"]),
        stop_ids=() if asked["ignore_eos"] else tuple(asked["stop_token_ids"]),
        ignore_eos=asked["ignore_eos"],
    )
    ids, stopped, by = server.say(name, body["input_ids"], decoding)
    reason = {"type": "stop", "matched": by} if stopped else {"type": "length", "length": room}
    if server.strikes("stops where nothing ends it"):
        ids, reason = ids[:1], {"type": "stop", "matched": "NaN happened"}
    if server.strikes("ends for its length too early"):
        ids, reason = ids[:1], {"type": "length", "length": 1}
    if server.strikes("gives up a completion"):
        reason = {"type": "abort", "message": "out of memory", "status_code": 500}
    meta = {
        "id": body["rid"],
        "finish_reason": reason,
        "prompt_tokens": len(body["input_ids"]),
        "completion_tokens": len(ids),
    }
    if server.strikes("answers another prompt"):
        meta |= {"id": "another"}
    if server.strikes("leaves a completion out"):
        return 200, []
    if server.strikes("says no JSON"):
        return 200, "<html>welcome</html>"
    return 200, {"text": "", "output_ids": ids, "meta_info": meta}


LOADING = (vllm_load, vllm_unload)
ROUTES = {
    "vllm": {
        "GET": {"/version": lambda server: {"version": "0.32.0"}},
        "POST": {
            "/v1/load_lora_adapter": vllm_load,
            "/v1/unload_lora_adapter": vllm_unload,
            "/v1/completions": vllm_complete,
        },
    },
    "sglang": {
        "GET": {"/server_info": lambda server: server.flags | {"model_path": server.path}},
        "POST": {
            "/load_lora_adapter": sglang_load,
            "/unload_lora_adapter": sglang_unload,
            "/generate": sglang_complete,
            "/abort_request": lambda server, body: (200, {}),
        },
    },
}
