"""Keys and values of many texts in pages: granted as a text grows, shared by texts that begin
alike, and cached after use until their memory is needed.

There is one `PageStore` for each kind of layer, and one chain of page keys for all kinds: the key
of a page is a digest of its token ids and of the key of the page before it, so it names the whole
prefix up to the page's end. A page is published under its key once all its positions are computed.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor

from ossia.ops.paged import LayerKind

_KEY_BYTES = 16  # 128 bits: a collision is not to be expected


@dataclass(frozen=True)
class CacheLimits:
    """What pages are laid out for: up to `max_texts` open texts, none longer than `context_length`,
    which grow by up to `chunk` positions a step, all together by not many more.
    """

    page_size: int
    chunk: int
    max_texts: int
    context_length: int

    @property
    def columns(self) -> int:
        """Pages of a whole context."""
        return -(-self.context_length // self.page_size)

    def window_pages(self, window: int, chunk: int | None = None) -> int:
        """The most pages of a sliding kind that a text holds at once if it grows by up to `chunk`
        positions a step.
        """
        # Queries see window + chunk - 1 positions, which may begin at the last of a page.
        seen = window + (self.chunk if chunk is None else chunk) - 1
        return min(self.columns, (seen - 2) // self.page_size + 2 if seen > 1 else 1)


@dataclass(eq=False)
class PagedText:
    """A request's token ids, of which the first `prompt` were given, and the pages it holds.

    pages: by kind and column, the page that starts at position column * page_size; 0 where the text
    holds none. Sliding kinds hold the columns from `first` to `columns`, the others all.
    version: changes whenever the page tables change.
    """

    tokens: list[int]
    prompt: int
    keys: list[bytes] = field(default_factory=list)  # of the text's full pages, as far as needed
    pages: list[list[int]] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    columns: int = 0
    published: int = 0  # columns whose pages are published
    row: int = -1  # of the page tables
    version: int = 0


@dataclass(frozen=True)
class PageCounts:
    """Pages of one kind of layer: in use by running texts, and cached for later ones."""

    total: int
    used: int
    cached: int


class PageStore:
    """The pages of one kind: each is free, in use by one or more texts, or cached.

    Cached pages are evicted least recently used first. Those that a text is likely to continue
    from (`resume`) go only after all others: see `KVCache`.
    """

    def __init__(self, kind: LayerKind, num_pages: int, page_size: int) -> None:
        self.kind = kind
        self.num_pages = num_pages
        # Pages that a query at the beginning of a page sees before it; None is all.
        self.reach = None if kind.window is None else -(-(kind.window - 1) // page_size)
        self.evictions = 0
        self._free = list(range(num_pages - 1, 0, -1))
        self._users = [0] * num_pages
        self._keys: list[bytes | None] = [None] * num_pages
        self._by_key: dict[bytes, int] = {}
        self._resume: set[int] = set()
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._evictable_last: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._by_key

    @property
    def available(self) -> int:
        """Pages that are free, or cached and in nobody's use."""
        return len(self._free) + len(self._evictable) + len(self._evictable_last)

    @property
    def counts(self) -> PageCounts:
        total = self.num_pages - 1
        cached = len(self._evictable) + len(self._evictable_last)
        return PageCounts(total, total - cached - len(self._free), cached)

    def take(self) -> int:
        """A page for one text to write: a free one, or the evicted least recently used."""
        page = self._free.pop() if self._free else self._evict()
        self._users[page] = 1
        return page

    def share(self, key: bytes, resume: bool) -> int:
        """The published page of this key, now in use by one more text."""
        page = self._by_key[key]
        if not self._users[page]:
            self._queue(page).pop(page)
        self._users[page] += 1
        if resume:
            self._keep(page)
        return page

    def publish(self, page: int, key: bytes, resume: bool) -> None:
        """Let later texts share a page in use, unless one with the same key is published."""
        if key not in self._by_key:
            self._by_key[key] = page
            self._keys[page] = key
        if resume:
            self._keep(self._by_key[key])

    def release(self, page: int, resume: bool = False, forget: bool = False) -> None:
        """One text no longer uses a page. Cached if it is published, unless told to `forget`."""
        if resume and self._keys[page] is not None:
            self._keep(page)
        self._users[page] -= 1
        if self._users[page]:
            return
        if self._keys[page] is None or forget:
            self._unpublish(page)
            self._free.append(page)
        else:
            self._queue(page)[page] = None

    def refresh(self, key: bytes) -> None:
        """Make a cached page the most recently used."""
        page = self._by_key.get(key)
        if page is not None and not self._users[page]:
            self._queue(page).move_to_end(page)

    def _evict(self) -> int:
        page, _ = (self._evictable or self._evictable_last).popitem(last=False)
        self._unpublish(page)
        self.evictions += 1
        return page

    def _keep(self, page: int) -> None:
        """Evict this page after others from now on."""
        self._resume.add(page)
        if page in self._evictable:
            del self._evictable[page]
            self._evictable_last[page] = None

    def _queue(self, page: int) -> OrderedDict[int, None]:
        return self._evictable_last if page in self._resume else self._evictable

    def _unpublish(self, page: int) -> None:
        key = self._keys[page]
        if key is not None:
            del self._by_key[key]
            self._keys[page] = None
        self._resume.discard(page)


class KVCache:
    """The pages of up to `max_texts` open texts, and of closed ones as long as nothing needs them.

    A layer that sees the whole text needs all of a prefix to continue it; a sliding layer only the
    window before the point of continuation. Pages that left a window stay cached. The windows
    before the end of a prompt, before the end of a text, and before a point where a text was
    continued are kept longest, because there the next text is most likely to continue: harmony, for
    example, drops a turn's analysis, so the next prompt departs from the text at the end of the
    last prompt, which the sliding layers have long left behind.

    num_pages: of each kind, with page 0, which belongs to no text: padded rows write to it.
    """

    def __init__(
        self,
        num_pages: Mapping[LayerKind, int],
        limits: CacheLimits,
        *,
        prefix_cache: bool = True,
    ) -> None:
        self.limits = limits
        self.page_size = size = limits.page_size
        self.prefix_cache = prefix_cache
        self.stores = [PageStore(kind, count, size) for kind, count in num_pages.items()]
        # int32 (max_texts, columns), on the CPU: `PagedText.pages` of each open text in its row.
        self.table = {
            kind: torch.zeros(limits.max_texts, limits.columns, dtype=torch.int32)
            for kind in num_pages
        }
        self._sliding = [
            (i, store.kind.window)
            for i, store in enumerate(self.stores)
            if store.kind.window is not None
        ]
        self._rows = list(range(limits.max_texts - 1, -1, -1))

    @property
    def most_positions(self) -> int:
        """The longest text that the cache holds if it is the only open one."""
        return most_positions({store.kind: store.num_pages for store in self.stores}, self.limits)

    def match(self, text: PagedText, most: int | None = None) -> int:
        """Positions of a closed text, at most `most`, that need not be computed again: whole pages,
        for which every kind has what it needs to continue. Never the last one, whose logits are
        wanted.
        """
        if not self.prefix_cache:
            return 0
        pages = (len(text.tokens) - 1) // self.page_size
        if most is not None:
            pages = min(pages, most // self.page_size)
        self._extend_keys(text, pages)
        keys = text.keys
        for store in self.stores:
            if store.reach is None:
                pages = next((i for i in range(pages) if keys[i] not in store), pages)
        agreed = -1
        while agreed != pages:  # until one point suits all sliding kinds
            agreed = pages
            for store in self.stores:
                if store.reach is not None:
                    pages = _last_window(store, keys, pages, store.reach)
        return pages * self.page_size

    def open(self, text: PagedText, reused: int) -> None:
        """Give a closed text a row in the tables, and the `reused` positions that it matched."""
        columns = reused // self.page_size
        text.row = self._rows.pop()
        text.columns = text.published = columns
        text.version += 1
        text.pages, text.first = [], []
        for store in self.stores:
            sliding = store.reach is not None
            first = max(0, columns - store.reach) if store.reach is not None else 0
            shared = [store.share(key, resume=sliding) for key in text.keys[first:columns]]
            text.pages.append([0] * first + shared)
            text.first.append(first)
            row = self.table[store.kind][text.row]
            row.zero_()
            if shared:
                row[first:columns] = torch.tensor(shared, dtype=torch.int32)

    def fits(self, texts: Sequence[tuple[PagedText, int]]) -> bool:
        """Whether open texts can all grow to the given lengths with what is free or evictable."""
        for i, store in enumerate(self.stores):
            window = store.kind.window
            most = None if window is None else self.limits.window_pages(window)
            needed = 0
            for text, length in texts:
                more = min(-(-length // self.page_size), self.limits.columns) - text.columns
                if most is not None:
                    more = min(more, most - (text.columns - text.first[i]))
                needed += max(0, more)
            if needed > store.available:
                return False
        return True

    def grow(self, text: PagedText, length: int) -> bool:
        """Grant an open text the pages for its first `length` positions. False, and nothing
        granted, if a kind has too few that are free or evictable.
        """
        start, end = text.columns, -(-length // self.page_size)
        if end <= start:
            return True
        if any(store.available < end - start for store in self.stores):
            return False
        for store, pages in zip(self.stores, text.pages, strict=True):
            granted = [store.take() for _ in range(end - start)]
            pages += granted
            self.table[store.kind][text.row, start:end] = torch.tensor(granted, dtype=torch.int32)
        text.columns = end
        text.version += 1
        return True

    def shrink(self, text: PagedText, length: int) -> None:
        """Take back an open text's pages after its first `length` positions: those of tokens that
        were drafted and rejected. None of them is published.
        """
        end = -(-length // self.page_size)
        if end >= text.columns:
            return
        for store, pages in zip(self.stores, text.pages, strict=True):
            for page in pages[end:]:
                store.release(page)
            del pages[end:]
            self.table[store.kind][text.row, end : text.columns] = 0
        text.columns = end
        text.version += 1

    def commit(self, text: PagedText, computed: int) -> None:
        """The first `computed` positions of an open text now have keys and values: publish full
        pages, and release those that no later query can see.
        """
        if self.prefix_cache and computed // self.page_size > text.published:
            self._publish(text, computed // self.page_size)
        for i, window in self._sliding:
            column = (computed - window + 1) // self.page_size
            first = text.first[i]
            if column > first:
                store, pages = self.stores[i], text.pages[i]
                for page in pages[first:column]:
                    store.release(page)
                pages[first:column] = [0] * (column - first)
                self.table[store.kind][text.row, first:column] = 0
                text.first[i] = column

    def close(self, text: PagedText, *, forget: bool = False) -> None:
        """Take all pages of an open text back. What it published stays cached, unless told to
        `forget` what no other text uses.
        """
        for store, pages, first in zip(self.stores, text.pages, text.first, strict=True):
            # The end of a text goes first: without it a prefix is useful, but not the reverse.
            end = self._window_before(store, text.published)
            for column in range(text.columns - 1, first - 1, -1):
                store.release(pages[column], resume=column in end, forget=forget)
            for column in self._prompt_window(store, text):
                if column < text.published:
                    store.refresh(text.keys[column])
        self._rows.append(text.row)
        text.row, text.columns, text.published = -1, 0, 0
        text.pages, text.first = [], []

    def tables(self, texts: Sequence[PagedText], length: int) -> dict[LayerKind, Tensor]:
        """For each kind int32 (texts, columns that `length` positions take), on the CPU."""
        rows = torch.tensor([text.row for text in texts])
        columns = -(-length // self.page_size)
        return {kind: table[rows, :columns] for kind, table in self.table.items()}

    def _publish(self, text: PagedText, end: int) -> None:
        self._extend_keys(text, end)
        for store, pages in zip(self.stores, text.pages, strict=True):
            resume = self._prompt_window(store, text)
            for column in range(text.published, end):
                store.publish(pages[column], text.keys[column], column in resume)
        text.published = end

    def _prompt_window(self, store: PageStore, text: PagedText) -> range:
        """The columns that a sliding kind needs to continue where the prompt ended, or a page
        before: the same prompt again matches less than the whole.
        """
        end = text.prompt // self.page_size
        window = self._window_before(store, end)
        return range(max(0, window.start - 1), end) if store.reach is not None else window

    def _window_before(self, store: PageStore, column: int) -> range:
        """The columns that a sliding kind needs to continue at `column`; none of other kinds."""
        return range(max(0, column - store.reach), column) if store.reach is not None else range(0)

    def _extend_keys(self, text: PagedText, pages: int) -> None:
        size, keys = self.page_size, text.keys
        for start in range(len(keys) * size, pages * size, size):
            ids = array("q", text.tokens[start : start + size]).tobytes()
            before = keys[-1] if keys else b""
            keys.append(blake2b(before + ids, digest_size=_KEY_BYTES).digest())


def most_positions(num_pages: Mapping[LayerKind, int], limits: CacheLimits) -> int:
    """The longest text that so many pages of each kind hold, page 0 included."""
    most = limits.columns
    for kind, count in num_pages.items():
        if kind.window is None or count - 1 < limits.window_pages(kind.window):
            most = min(most, count - 1)
    return most * limits.page_size


def _last_window(store: PageStore, keys: Sequence[bytes], pages: int, reach: int) -> int:
    """The most pages, at most `pages`, of which the last `reach` (or all, if fewer) are there."""
    end = pages
    for column in range(pages - 1, -1, -1):
        if end - column > reach:
            return end
        if keys[column] not in store:
            end = column
    return end
