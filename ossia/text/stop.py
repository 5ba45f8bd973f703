"""Stop strings in streamed text: no character of one is shown, not even before it is complete."""

from __future__ import annotations

from collections.abc import Iterable

from ossia.errors import OssiaError


class StopStrings:
    """Ends a text before the first stop string to be completed, however the text arrives in pieces.

    If several are completed by the same character, the longest one counts. The stop string itself
    is not shown; `found` is the one that ended the text.
    """

    def __init__(self, strings: Iterable[str]):
        self._strings = tuple(strings)
        if not all(self._strings):
            raise OssiaError("a stop string is empty: it would stop before the first character")
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown, and whether a stop string ended it; then no more follows."""
        if self.found is not None:
            return "", True
        text = self._held + text
        matches = [
            (start + len(stop), start) for stop in self._strings if (start := text.find(stop)) >= 0
        ]
        if matches:
            end, start = min(matches)
            self.found, self._held = text[start:end], ""
            return text[:start], True
        safe = len(text) - self._longest_beginning(text)
        self._held = text[safe:]
        return text[:safe], False

    def finish(self) -> str:
        """The text that was held back in case it began a stop string."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """The length of the longest suffix of `text` that is a prefix of a stop string."""
        longest = min(max(map(len, self._strings), default=1) - 1, len(text))
        return next(
            (
                size
                for size in range(longest, 0, -1)
                if any(stop.startswith(text[-size:]) for stop in self._strings)
            ),
            0,
        )
