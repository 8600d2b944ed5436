"""Many requests at once to a server that may fail: each is asked again, until it is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio
import anyio.to_thread
import httpx2
from anyio.from_thread import start_blocking_portal

from weft.core.errors import EngineError, InputError
from weft.engines.servers.client import (
    Broken,
    Client,
    Json,
    Lost,
    Refused,
    Unreachable,
    checked,
    json_of,
    said_by,
)
from weft.engines.servers.dialect import Ask
from weft.engines.servers.loading import pause
from weft.model.decoding import Completion


@dataclass(eq=False)
class Asking:
    """The requests of one call, with a bound on how many are under way."""

    client: Client
    write: Callable[[Ask], tuple[str, Json]]
    """Address and body of a request."""
    read: Callable[[Json, Ask], Completion]
    """The completion in an answer. Raises `Broken` and `Unreachable`."""
    ours: Callable[[], bool]
    """Whether the server is the one that has our adapters."""
    abort: Callable[[Sequence[Ask]], None]
    """Give up requests on the server."""
    done: dict[tuple[int, int], Completion]
    """By member and prompt, as they come; what is here stays here when the rest fails."""
    again: int = 0
    """How many requests were asked again."""
    _under_way: dict[str, Ask] = field(default_factory=dict)

    def __call__(self, asked: Sequence[Ask]) -> None:
        """Fill `done`. Raises `Lost` for a server that is gone, `EngineError` for one that fails.

        The event loop has a thread of its own, so that this works within another loop and can be
        interrupted.
        """
        failures: list[Exception] = []
        with start_blocking_portal() as portal:
            future = portal.start_task_soon(self._all, asked, failures)
            try:
                future.result()
            except BaseException:
                future.cancel()
                raise
        if failures:
            if not isinstance(failures[0], Lost):
                self.abort(list(self._under_way.values()))
            raise failures[0]

    async def _all(self, asked: Sequence[Ask], failures: list[Exception]) -> None:
        concurrency = self.client.config.concurrency
        limiter = anyio.CapacityLimiter(concurrency)
        async with (
            self.client.asynchronous(concurrency) as http,
            anyio.create_task_group() as group,
        ):

            async def one(ask: Ask) -> None:
                try:
                    async with limiter:
                        self.done[ask.member, ask.prompt] = await self._one(http, ask)
                except (EngineError, InputError, Lost) as error:
                    failures.append(error)
                    group.cancel_scope.cancel()

            for ask in asked:
                group.start_soon(one, ask)

    async def _one(self, http: httpx2.AsyncClient, ask: Ask) -> Completion:
        url, retries = self.client.config.url, self.client.config.retries
        for attempt in range(retries + 1):
            asked = replace(ask, id=f"{ask.id}-{attempt}")
            path, body = self.write(asked)
            self._under_way[asked.id] = asked
            try:
                completion = self.read(json_of(checked(await http.post(path, json=body))), asked)
                del self._under_way[asked.id]
                return completion
            except httpx2.TransportError as error:
                problem = said_by(error)
            except Unreachable as error:
                problem = str(error)
            except Refused as error:
                if not await self._is_ours():
                    raise Lost(str(error)) from error
                raise InputError(
                    f"the server at {url} refuses prompt {ask.prompt + 1}: {error}"
                ) from error
            except Broken as error:
                raise EngineError(
                    f"the server at {url} gave a wrong answer: {error}",
                    hint="nothing of it was used; restart the server, or use another version",
                ) from error
            if not await self._is_ours():
                raise Lost(problem)
            await anyio.to_thread.run_sync(self.abort, [self._under_way.pop(asked.id)])
            if attempt < retries:
                self.again += 1
                await anyio.sleep(pause(attempt))
        raise EngineError(
            f"the server at {url} is there, and does not complete prompt {ask.prompt + 1}, asked "
            f"{retries + 1} times: {problem}",
            hint="its log says why; `engine.timeout` is how long a completion may take",
        )

    async def _is_ours(self) -> bool:
        return await anyio.to_thread.run_sync(self.ours, abandon_on_cancel=True)
