"""Which replica gets a request: the one that has the least left to read for it, its own queue
counted in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

from ossia.serve.replicas.prefix import BLOCK, BYTES_PER_TOKEN, Chain, Known
from ossia.serve.replicas.replica import Beat, Replica

# What a running request costs the one that joins its batch, in blocks to read.
RUNNING = 2


class Place:
    """A replica as the front end sees it. up: it takes requests. alive: its process is not known to
    have died. run: which of its processes was heard last, None before one was. running: the
    requests that were sent to it and have not ended, those in the background too.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.up = self.alive = True
        self.run: str | None = None
        self.beat: Beat | None = None
        self.known = Known()
        self._being_read: Counter[bytes] = Counter()  # blocks, by how many requests
        self.running = 0
        self.reading = 0  # blocks that they have it read before their first output
        self.chosen = 0  # when it was chosen last

    def match(self, chain: Chain) -> int:
        """How many blocks at the beginning it has read, or reads for requests that it has."""
        return self.known.match(chain, self._being_read)

    def cost(self, chain: Chain) -> int:
        """Blocks to be read before a request's first output, and what others slow it."""
        unread = len(chain) - self.match(chain)
        return unread + self.reading + RUNNING * self.running

    @property
    def full(self) -> bool:
        """Whether its queue took no more requests when it was last heard of."""
        return self.beat is not None and self.beat.unfinished >= self.beat.max_queue

    def hear(self, beat: Beat) -> None:
        self.up = self.alive = True
        self.run, self.beat = beat.run, beat
        self.known.most = max(64, beat.cache_tokens * BYTES_PER_TOKEN // BLOCK)

    def lose(self) -> None:
        """Note that its process has died, and what it had read with it."""
        self.up = self.alive = False
        self.beat = None
        self.known.clear()

    @contextmanager
    def sent(self, chain: Chain) -> Iterator[Callable[[], None]]:
        """While a request is with the replica. What is yielded says that it was read and its
        output has begun.
        """
        unread = len(chain) - self.match(chain)
        self._being_read.update(chain)
        self.running += 1
        self.reading += unread

        being_read = chain

        def ended() -> None:
            nonlocal unread, being_read
            self.reading -= unread
            for digest in being_read:
                self._being_read[digest] -= 1
                if not self._being_read[digest]:
                    del self._being_read[digest]
            unread, being_read = 0, ()

        def begun() -> None:
            if being_read:
                self.known.add(chain)
            ended()

        try:
            yield begun
        finally:
            self.running -= 1
            ended()


class Balance:
    """Chooses by `Place.cost`; of equals, the one that was chosen longest ago. aware: of what
    replicas have read; otherwise each has its turn, which is what routing is measured against.
    """

    def __init__(self, aware: bool = True) -> None:
        self._aware = aware
        self._turns = count(1)

    def choose(self, chain: Chain, places: Sequence[Place]) -> Place:
        place = min(places, key=lambda one: (self._aware and one.cost(chain), one.chosen))
        place.chosen = next(self._turns)
        return place
