"""Adapters onto a server and off it again, each under a fresh name from a fresh directory.

Nothing that a server keeps under a name (a path, a cache of prefixes, weights in use) can then be
taken for another member, and a load that is tried twice is known to be one's own.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from uuid import uuid4

from weft.core.errors import EngineError, InputError
from weft.engines.servers.client import FAILURES, Broken, Client, Lost, Refused, Unreachable
from weft.engines.servers.dialect import Dialect, adapters
from weft.formats.peft import write_adapter
from weft.model.adapter import Adapter
from weft.runs.timing import Stopwatch

PAUSES = (0.2, 1.0, 5.0)
"""Seconds before something is asked again; the last one for every further time."""

RESTART = (
    "restart the server, and go on with `weft train --resume RUN`: all that was recorded is kept"
)

ROOM = (
    "the server must be started with room for the adapter's rank and modules (--max-lora-rank; "
    "SGLang: --lora-target-modules), and see the directory"
)


def pause(attempt: int) -> float:
    """Seconds to wait after a failed attempt, counted from 0."""
    return PAUSES[min(attempt, len(PAUSES) - 1)]


@dataclass(eq=False)
class Loader:
    """Loads adapters of one base onto one server."""

    client: Client
    dialect: Dialect
    base: str
    """What the server has its base from."""
    _calls: Iterator[int] = field(default_factory=count)
    _id: str = field(default_factory=lambda: uuid4().hex[:6])
    _left: dict[str, Path] = field(default_factory=dict)
    """Directories of names that a lost server may still know."""
    _temporary: tempfile.TemporaryDirectory[str] | None = None

    @contextmanager
    def loaded(
        self, members: Sequence[Adapter | None], clock: Stopwatch
    ) -> Iterator[list[str | None]]:
        """The members' names on the server, which has them in this block; None is the base.

        Raises `Lost`, `InputError` for an adapter that the server refuses, and `EngineError`.
        """
        if self._left:
            self._sweep()
        with clock("creating adapters"):
            paths = self._write(members)
        named = {name: path for name, path in paths if name is not None and path is not None}
        try:
            with clock("loading"):
                for name, path in named.items():
                    self._load(name, path)
                self._require(named)
            yield [name for name, _ in paths]
        except Lost:
            self._left |= named
            raise
        except BaseException:  # which matters more than what unloading may say now
            with clock("unloading"):
                self._unload_quietly(named)
            raise
        try:
            with clock("unloading"):
                self._unload(named)
        except Lost:
            self._left |= named
            raise

    def _sweep(self) -> None:
        """Take off a server that came back what it still has of us."""
        left, self._left = self._left, {}
        self._unload_quietly(left)

    def close(self) -> None:
        """Remove the directory."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def has(self, names: Sequence[str | None]) -> bool:
        """Whether the server is there, and lists all of them with their own directories."""
        try:
            listed = adapters(self.client)
        except FAILURES:
            return False
        return all(listed.get(name) == str(self._root / name) for name in names if name)

    @cached_property
    def _root(self) -> Path:
        """A directory of this process; it is removed at the end, also of a failed run."""
        parent = self.client.config.adapters_dir
        try:
            if parent is not None:
                parent.mkdir(parents=True, exist_ok=True)
            self._temporary = tempfile.TemporaryDirectory(prefix="weft-adapters-", dir=parent)
        except OSError as error:
            raise InputError(f"`engine.adapters_dir`: cannot write to {parent}: {error}") from error
        root = Path(self._temporary.name).resolve()
        root.chmod(0o755)  # the server may run as another user
        return root

    def _write(self, members: Sequence[Adapter | None]) -> list[tuple[str | None, Path | None]]:
        call = next(self._calls)
        paths: list[tuple[str | None, Path | None]] = []
        for number, adapter in enumerate(members):
            if adapter is None:
                paths.append((None, None))
                continue
            digest = hashlib.sha256(adapter.flat.numpy().astype("<f4").tobytes()).hexdigest()
            name = f"weft-{self._id}-g{call}-m{number}-{digest[:12]}"
            # the sites of the adapter itself: `target_modules` are then a list of suffixes
            sites = {slot.site.name: slot.site for slot in adapter.layout.slots}
            write_adapter(adapter, self._root / name, base_ref=self.base, sites=sites)
            paths.append((name, self._root / name))
        return paths

    def _load(self, name: str, path: Path) -> None:
        retries, url = self.client.config.retries, self.client.config.url
        for attempt in range(retries + 1):
            try:
                return self.dialect.load(self.client, name, str(path))
            except (Unreachable, Broken) as error:  # it may have been loaded all the same
                problem = str(error)
            except Refused as error:
                if self._listed().get(name) == str(path):
                    return  # by an attempt whose answer was lost
                raise InputError(
                    f"the server at {url} refuses an adapter: {error}",
                    hint=f"{ROOM} {path.parent} (`engine.adapters_dir`)",
                ) from error
            if self._listed().get(name) == str(path):
                return
            if attempt < retries:
                time.sleep(pause(attempt))
        raise EngineError(
            f"the server at {url} does not load an adapter, asked {retries + 1} times: {problem}",
            hint=f"its log says why. {ROOM} {path.parent} (`engine.adapters_dir`); "
            "`engine.load_timeout` is how long a load may take",
        )

    def _require(self, named: Mapping[str, Path]) -> None:
        listed = self._listed()
        lacking = [name for name, path in named.items() if listed.get(name) != str(path)]
        if lacking:
            raise EngineError(
                f"the server at {self.client.config.url} said that it loaded {len(named)} "
                f"adapters, and does not list {len(lacking)} of them, such as {lacking[0]}",
                hint=f"it may hold fewer at once: set `engine.members` below {len(named)}",
            )

    def _unload(self, named: Mapping[str, Path]) -> None:
        """Off the server, and only then off the disk."""
        config = self.client.config
        for name, path in named.items():
            for attempt in range(config.retries + 1):
                try:
                    self.dialect.unload(self.client, name)
                    break
                except Unreachable as error:
                    if not self.client.healthy():
                        raise Lost(str(error)) from error
                    problem = str(error)
                except (Refused, Broken) as error:
                    problem = str(error)
                if name not in self._listed():
                    break  # an earlier attempt worked, or the server let go of it by itself
                if "Timeout" in problem:
                    raise EngineError(
                        f"the server at {config.url} did not unload an adapter within "
                        f"{config.unload_timeout:g} s",
                        hint=f"it hangs, which servers are known to do: {RESTART}",
                    )
                time.sleep(pause(attempt))
            else:
                raise EngineError(
                    f"the server at {config.url} does not unload an adapter, asked "
                    f"{config.retries + 1} times: {problem}",
                    hint=RESTART,
                )
            shutil.rmtree(path, ignore_errors=True)

    def _unload_quietly(self, named: Mapping[str, Path]) -> None:
        """Whatever happens; stops at the first failure. Directories in doubt stay until the end."""
        try:
            listed = self._listed()
            for name, path in named.items():
                if name in listed:
                    self.dialect.unload(self.client, name)
                shutil.rmtree(path, ignore_errors=True)
        except (Lost, *FAILURES):
            return

    def _listed(self) -> dict[str, str]:
        try:
            return adapters(self.client)
        except FAILURES as error:
            raise Lost(str(error)) from error
