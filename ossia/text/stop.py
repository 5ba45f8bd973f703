"""Stop strings over streamed text: no character of a match, even half begun, is ever shown."""

from __future__ import annotations

from collections.abc import Iterable

from ossia.errors import OssiaError


class StopStrings:
    """Ends a text before the first stop string that completes, however the text is cut into pieces.

    Of several that complete with the same character the longest counts. The stop string itself is
    not shown.
    """

    def __init__(self, strings: Iterable[str]):
        self._strings = tuple(strings)
        if not all(self._strings):
            raise OssiaError("a stop string is empty: it would stop before the first character")
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop string was met: then none follows."""
        if self._stopped:
            return "", True
        text = self._held + text
        matches = [
            (start + len(stop), start) for stop in self._strings if (start := text.find(stop)) >= 0
        ]
        if matches:
            self._stopped, self._held = True, ""
            return text[: min(matches)[1]], True
        safe = len(text) - self._longest_beginning(text)
        self._held = text[safe:]
        return text[:safe], False

    def finish(self) -> str:
        """The text held back, which turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """The length of the longest end of `text` that a stop string begins with."""
        longest = min(max(map(len, self._strings), default=1) - 1, len(text))
        return next(
            (
                size
                for size in range(longest, 0, -1)
                if any(stop.startswith(text[-size:]) for stop in self._strings)
            ),
            0,
        )
