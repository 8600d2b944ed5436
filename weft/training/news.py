"""What engines have to say while a run goes on."""

from __future__ import annotations

from collections.abc import Callable


class News:
    """Sentences from whoever computes to whoever writes: who listens late hears all of them."""

    def __init__(self) -> None:
        """Nothing has happened, and nobody listens."""
        self._told: list[str] = []
        self._listeners: list[Callable[[str], None]] = []

    def __call__(self, text: str) -> None:
        """Tell everybody."""
        self._told.append(text)
        for listener in self._listeners:
            listener(text)

    def to(self, listener: Callable[[str], None]) -> None:
        """Tell this one, too."""
        for text in self._told:
            listener(text)
        self._listeners.append(listener)
