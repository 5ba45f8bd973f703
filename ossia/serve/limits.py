"""How many requests one key may have running at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

from ossia.serve.errors import ApiError

# The place of the key that a request came with; None without keys.
OWNER: ContextVar[int | None] = ContextVar("owner", default=None)


class Permits:
    """Requests that run, by key: of each at most `most`, if that is given."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._taken: Counter[int] = Counter()

    def check(self) -> None:
        """Raise ApiError if the key of this request has as many running as it may."""
        owner = OWNER.get()
        if owner is not None and self._most is not None and self._taken[owner] >= self._most:
            raise ApiError(
                429,
                f"this key has {self._most} requests running, as many as it may",
                code="too_many_requests",
            )

    def take(self) -> Callable[[], None]:
        """Count a request of this key until what is returned is called. Raises as `check`."""
        self.check()
        owner = OWNER.get()
        if owner is None:
            return lambda: None
        self._taken[owner] += 1
        return partial(self._give, owner)

    def _give(self, owner: int) -> None:
        self._taken[owner] -= 1
