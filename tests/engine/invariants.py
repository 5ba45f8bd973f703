"""What holds of an engine's pages between any two steps."""

from __future__ import annotations

from collections import Counter

from ossia.engine import Engine
from ossia.engine.kv import KVCache, PageCounts, PagedText, PageStore


def check(engine: Engine) -> None:
    """Each page is in one state, and is shared only by texts that agree up to its end."""
    running = engine.scheduler.running
    assert len(running) <= engine.max_batch
    assert [s.id for s in running] == sorted(s.id for s in running)
    waiting = [s.id for s in engine.scheduler.waiting]
    assert waiting == sorted(waiting)
    assert all(s.computed == 0 and s.text.row == -1 for s in engine.scheduler.waiting)
    check_cache(engine.kv, [(s.text, s.computed) for s in running])


def check_cache(kv: KVCache, texts: list[tuple[PagedText, int]]) -> None:
    rows = [text.row for text, _ in texts]
    assert sorted(rows + kv._rows) == list(range(kv.limits.max_texts))
    for i, store in enumerate(kv.stores):
        users: Counter[int] = Counter()
        owners: dict[int, tuple[int, list[int]]] = {}
        for text, computed in texts:
            pages = text.pages[i]
            assert len(pages) == text.columns
            assert text.columns * kv.page_size >= computed
            assert pages[: text.first[i]] == [0] * text.first[i]
            assert kv.table[store.kind][text.row, : text.columns].tolist() == pages
            for column, page in enumerate(pages[text.first[i] :], text.first[i]):
                users[page] += 1
                prefix = text.tokens[: (column + 1) * kv.page_size]
                assert owners.setdefault(page, (column, prefix)) == (column, prefix)
                if (column + 1) * kv.page_size > computed:
                    assert store._users[page] == 1, "a page that will be written is shared"
                    assert store._keys[page] is None, "a page that will be written is published"
            if store.kind.window is not None:
                oldest = max(0, computed - store.kind.window + 1)
                assert text.first[i] * kv.page_size <= oldest, "a visible page was let go"
        check_store(store, users)


def check_store(store: PageStore, users: Counter[int]) -> None:
    cached = [*store._evictable, *store._evictable_last]
    used = [page for page in range(store.num_pages) if store._users[page]]
    assert 0 not in users
    assert sorted(used + cached + store._free) == list(range(1, store.num_pages))
    assert {page: store._users[page] for page in used} == users
    assert store.available == len(cached) + len(store._free)
    assert store.counts == PageCounts(store.num_pages - 1, len(used), len(cached))
    published = {page: key for page, key in enumerate(store._keys) if key is not None}
    assert {key: page for page, key in published.items()} == store._by_key
    assert published.keys() >= set(cached)
    assert not published.keys() & set(store._free)
    assert store._resume <= published.keys()
    assert set(store._evictable_last) == store._resume & set(cached)


def assert_all_free(engine: Engine) -> None:
    """Nothing is at work, and no page in use; cached ones may be left."""
    assert not engine.has_work
    check(engine)
    assert all(counts.used == 0 for counts in engine.stats().pages.values())
