"""HTTP to a server: what it says, or one of three failures that tell what can be done about it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx2

from weft.core.errors import InputError
from weft.engines.config import ServerConfig

QUICK = 10.0
"""Seconds for an answer that needs no work."""

LOCAL_HOSTS = {"127.0.0.1", "::1", "localhost"}

Json = dict[str, Any]


class Unreachable(Exception):
    """No answer, or one that says that the server cannot answer now (5xx): it may come back."""


class Refused(Exception):
    """The server says no to what it was asked."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Broken(Exception):
    """An answer that is none to the question."""


FAILURES = (Unreachable, Refused, Broken)


class Lost(Exception):
    """The server is gone, or is another one than before: it has none of our adapters."""


@dataclass(frozen=True, eq=False)
class Client:
    """Requests to one server, each with a timeout of its own."""

    config: ServerConfig

    def get(self, path: str, timeout: float = QUICK) -> httpx2.Response:
        """The answer. Raises `Unreachable` and `Refused`."""
        return self._ask("GET", path, None, timeout)

    def post(self, path: str, body: Mapping[str, Any], timeout: float) -> httpx2.Response:
        """The answer to a JSON body. Raises `Unreachable` and `Refused`."""
        return self._ask("POST", path, body, timeout)

    def json(self, path: str) -> Json:
        """A JSON object. Raises one of `FAILURES`."""
        return json_of(self.get(path))

    def healthy(self) -> bool:
        """Whether the server answers that it is ready; `/health` may take a moment of work."""
        with suppress(Unreachable, Refused):
            self.get("/health", timeout=2 * QUICK)
            return True
        return False

    def wait(self, seconds: float) -> bool:
        """Wait until the server is healthy; whether it became so."""
        deadline, pause = time.monotonic() + seconds, 0.1
        while not self.healthy():
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
        return True

    def asynchronous(self, concurrency: int) -> httpx2.AsyncClient:
        """A client for many requests at once."""
        return httpx2.AsyncClient(
            **self._settings,
            timeout=httpx2.Timeout(self.config.timeout, connect=QUICK, pool=None),
            limits=httpx2.Limits(max_connections=concurrency),
        )

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float
    ) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, json=body, timeout=timeout)
        except httpx2.TransportError as error:
            raise Unreachable(said_by(error)) from error
        return checked(answer)

    @cached_property
    def _http(self) -> httpx2.Client:
        return httpx2.Client(**self._settings)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """A server of this machine is reached directly, whatever the proxy for others is."""
        name = self.config.api_key_env
        if name is not None and not os.environ.get(name):
            raise InputError(
                f"`engine.api_key_env` is {name}, and there is no such environment variable",
                hint=f"export {name}=..., or leave `engine.api_key_env` out",
            )
        headers = {"Authorization": f"Bearer {os.environ[name]}"} if name else {}
        url = httpx2.URL(self.config.url)
        return {
            "base_url": url,
            "headers": headers,
            "trust_env": url.host not in LOCAL_HOSTS,
            # made once: reading the certificates takes longer than many an answer
            "verify": httpx2.create_ssl_context() if url.scheme == "https" else False,
        }


def checked(answer: httpx2.Response) -> httpx2.Response:
    """The answer, if it is one: `Unreachable` for what may pass, `Refused` for a no."""
    if answer.status_code in (408, 429) or answer.status_code >= 500:
        raise Unreachable(f"{answer.status_code}: {message_of(answer)}")
    if answer.status_code >= 300:
        raise Refused(answer.status_code, message_of(answer))
    return answer


def json_of(answer: httpx2.Response) -> Json:
    """The object in an answer. Raises `Broken` for a torn or foreign one."""
    try:
        value = answer.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Broken(f"no JSON object, but {answer.text[:200]!r}")
    return value


def message_of(answer: httpx2.Response) -> str:
    """What an error says: `error.message` (OpenAI's form), `error_message` (SGLang's), or text."""
    try:
        value = answer.json()
    except ValueError:
        return answer.text[:500] or answer.reason_phrase
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict):
        error = error.get("message") or error.get("error_message") or error.get("detail") or error
    return str(error)[:500]


def said_by(error: Exception) -> str:
    """An exception in words; some have none."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
