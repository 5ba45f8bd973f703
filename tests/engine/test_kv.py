"""The paged cache by itself: what a text can continue from, what is evicted and what is kept."""

from __future__ import annotations

import random

import pytest

from ossia.engine.kv import CacheLimits, KVCache, PagedText
from ossia.ops.paged import LayerKind
from tests.engine.invariants import check_cache

PAGE = 4
FULL = LayerKind(None, 1, 1)
SLIDING = LayerKind(9, 1, 1)  # 8 positions before a query: 2 pages before the start of a page
WIDE = LayerKind(14, 2, 1)  # 4 pages


def cache(pages: int = 100, kinds=(FULL, SLIDING), **options) -> KVCache:
    limits = CacheLimits(PAGE, chunk=40, max_texts=4, context_length=400)
    return KVCache(dict.fromkeys(kinds, 1 + pages), limits, **options)


def text(tokens: list[int], prompt: int | None = None) -> PagedText:
    return PagedText(list(tokens), len(tokens) if prompt is None else prompt)


def read(
    kv: KVCache,
    tokens: list[int],
    prompt: int | None = None,
    chunk: int = 40,
    beside: tuple[PagedText, ...] = (),
) -> PagedText:
    """An open text, all of it computed, beside others that are."""
    others = [(other, len(other.tokens)) for other in beside]
    opened = text(tokens, prompt)
    computed = kv.match(opened)
    kv.open(opened, computed)
    while computed < len(tokens):
        computed = min(len(tokens), computed + chunk)
        assert kv.grow(opened, computed)
        kv.commit(opened, computed)
        check_cache(kv, [*others, (opened, computed)])
    return opened


def matched(kv: KVCache, tokens: list[int]) -> int:
    return kv.match(text(tokens))


def ids(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1000), k=count)


def churn(kv: KVCache, kind: LayerKind, pages: int) -> None:
    """Evict `pages` pages of one kind, or take free ones."""
    (store,) = (store for store in kv.stores if store.kind == kind)
    taken = [store.take() for _ in range(pages)]
    for page in taken:
        store.release(page)


def test_a_text_continues_from_the_last_full_page_of_what_it_shares():
    kv = cache()
    tokens = ids(30)
    kv.close(read(kv, tokens))
    assert matched(kv, [*tokens, 1, 2, 3]) == 28
    assert matched(kv, [*tokens[:27], 1, 2, 3]) == 24
    assert matched(kv, tokens[:9]) == 8
    assert matched(kv, [1, *tokens]) == 0
    assert matched(kv, [*tokens[:4], 1, *tokens[5:]]) == 4


def test_the_last_token_is_always_computed():
    kv = cache()
    tokens = ids(32)
    kv.close(read(kv, tokens))
    assert matched(kv, tokens) == 28
    assert matched(kv, [*tokens, 5]) == 32
    assert matched(kv, tokens[:1]) == 0


def test_a_page_names_all_that_came_before_it():
    kv = cache()
    kv.close(read(kv, [1] * 8 + [2] * 8))
    assert matched(kv, [2] * 9) == 0
    assert matched(kv, [1] * 20) == 8
    # Ids are not run together: 1, 11 and 11, 1 are different texts.
    kv.close(read(kv, [1, 11, 111, 1111]))
    assert matched(kv, [11, 1, 111, 1111, 7]) == 0


def test_pages_in_use_are_shared_and_outlive_their_first_owner():
    kv = cache(pages=20, kinds=(FULL,))
    tokens = ids(40)
    first = read(kv, tokens)
    second = text([*tokens[:36], 5, 6, 7, 8, 9])
    kv.open(second, kv.match(second))
    assert kv.grow(second, 41)
    check_cache(kv, [(first, 40), (second, 36)])
    assert kv.stores[0].counts.used == 12
    kv.close(first)
    check_cache(kv, [(second, 36)])
    assert second.pages[0][:9] == [kv.stores[0]._by_key[key] for key in second.keys[:9]]
    kv.close(second)
    check_cache(kv, [])


def test_without_a_prefix_cache_nothing_is_matched_or_kept():
    kv = cache(prefix_cache=False)
    kv.close(read(kv, ids(30)))
    assert matched(kv, ids(40)) == 0
    assert [store.counts.cached for store in kv.stores] == [0, 0]
    check_cache(kv, [])


def test_a_sliding_kind_needs_only_the_window_before_the_point_of_continuation():
    kv = cache()
    tokens = ids(200)
    kv.close(read(kv, tokens))
    sliding = kv.stores[1]
    # Whatever lies before the last two pages is of no use to it.
    for key in text_keys(kv, tokens)[:48]:
        if key in sliding:
            drop(sliding, key)
    assert matched(kv, [*tokens, 1]) == 200
    drop(sliding, text_keys(kv, tokens)[48])
    assert matched(kv, [*tokens, 1]) == 0
    # At the beginning of a text there is less to need.
    other = cache()
    other.close(read(other, tokens))
    for key in text_keys(other, tokens)[1:]:
        drop(other.stores[1], key)
    assert matched(other, tokens) == 4


def test_the_longest_prefix_that_suits_all_kinds_is_found():
    chance = random.Random(1)
    tokens = ids(120)
    for _ in range(200):
        kv = cache(kinds=(FULL, SLIDING, WIDE))
        kv.close(read(kv, tokens))
        keys = text_keys(kv, tokens)
        for store in kv.stores:
            for key in chance.sample(keys, chance.choice([0, 1, 3, 8])):
                drop(store, key)
        full, sliding, wide = kv.stores
        suits = [
            pages
            for pages in range(len(keys))
            if all(key in full for key in keys[:pages])
            and all(key in sliding for key in keys[max(0, pages - 2) : pages])
            and all(key in wide for key in keys[max(0, pages - 4) : pages])
        ]
        assert matched(kv, tokens) == max(suits) * PAGE


def test_a_window_of_one_needs_nothing():
    kv = cache(kinds=(FULL, LayerKind(1, 1, 1)))
    tokens = ids(50)
    kv.close(read(kv, tokens))
    for key in text_keys(kv, tokens):
        drop(kv.stores[1], key)
    assert matched(kv, tokens) == 48


def test_grow_grants_all_or_nothing():
    kv = KVCache({FULL: 11, SLIDING: 7}, CacheLimits(PAGE, 12, 4, 400))
    opened = text(ids(50))
    kv.open(opened, 0)
    assert kv.grow(opened, 24)
    assert not kv.grow(opened, 25)
    check_cache(kv, [(opened, 0)])
    assert opened.columns == 6
    kv.commit(opened, 24)  # all but two pages of the sliding kind go
    check_cache(kv, [(opened, 24)])
    assert kv.fits([(opened, 40)])
    assert not kv.fits([(opened, 41)])
    assert kv.grow(opened, 36)
    check_cache(kv, [(opened, 24)])


def test_the_least_recently_used_text_is_evicted_first_and_each_from_its_end():
    kv = cache(pages=20, kinds=(FULL,))
    old, used, new = ids(24, 1), ids(24, 2), ids(24, 3)
    for tokens in (old, used, new):
        kv.close(read(kv, tokens))
    assert kv.stores[0].counts.cached == 18
    kv.close(read(kv, [*used, 5]))
    churn(kv, FULL, 2 + 3)
    assert kv.stores[0].evictions == 3
    assert [matched(kv, [*tokens, 1]) for tokens in (old, used, new)] == [12, 24, 24]
    churn(kv, FULL, 5 + 5)
    assert [matched(kv, [*tokens, 1]) for tokens in (old, used, new)] == [0, 24, 16]
    check_cache(kv, [])


def test_windows_before_the_end_of_a_prompt_are_evicted_last():
    """harmony: after 40 tokens of prompt and 100 of analysis, the next prompt has other tokens
    from 40 on. Nobody needs the sliding layers' pages in between.
    """
    kv = cache(pages=60)
    sliding = kv.stores[1]
    tokens = ids(140)
    kv.close(read(kv, tokens, prompt=40, chunk=7))
    assert sliding.counts.cached == 35
    # All but the windows before 40 and before 140, and one page more before a prompt's end.
    churn(kv, SLIDING, 25 + 30)
    assert sliding.counts.cached == 5
    assert matched(kv, [*tokens[:40], *ids(60, 1)]) == 40
    assert matched(kv, tokens[:40]) == 36
    assert matched(kv, [*tokens, 1]) == 140
    churn(kv, SLIDING, 55 + 2)
    assert matched(kv, [*tokens, 1]) == 40
    churn(kv, SLIDING, 57 + 3)
    assert matched(kv, [*tokens, 1]) == 0


def test_a_point_where_a_text_was_continued_is_kept_too():
    kv = cache(pages=60)
    system = ids(20)
    kv.close(read(kv, [*system, *ids(60, 1)]))
    kv.close(read(kv, [*system, *ids(60, 2)]))
    # Kept are the windows before two prompts' ends, with a page more, and that before 20.
    churn(kv, SLIDING, kv.stores[1].available - (3 + 3 + 2))
    assert matched(kv, [*system, *ids(60, 3)]) == 20
    check_cache(kv, [])


def test_what_is_forgotten_leaves_the_cache_unless_another_text_uses_it():
    kv = cache()
    tokens = ids(40)
    kept = read(kv, tokens[:20])
    failed = read(kv, tokens, beside=(kept,))
    kv.close(failed, forget=True)
    check_cache(kv, [(kept, 20)])
    assert matched(kv, [*tokens, 1]) == 20
    kv.close(kept)
    assert matched(kv, [*tokens, 1]) == 20


def test_tables_hold_each_texts_pages():
    kv = cache()
    first = read(kv, ids(30, 1))
    second = read(kv, ids(10, 2), beside=(first,))
    tables = kv.tables([second, first], 30)
    assert tables[FULL].tolist() == [second.pages[0] + [0] * 5, first.pages[0]]
    assert tables[SLIDING].tolist() == [second.pages[1] + [0] * 5, first.pages[1]]
    assert tables[SLIDING][1, :5].tolist() == [0] * 5


@pytest.mark.parametrize("page_size", [1, 3, 4])
@pytest.mark.parametrize("window", [1, 2, 7, 8])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_the_bound_of_a_window_holds_for_any_division_into_steps(page_size, window, chunk):
    limits = CacheLimits(page_size, chunk, max_texts=1, context_length=50)
    bound = limits.window_pages(window)
    kind = LayerKind(window, 1, 1)
    held = 0
    for step in range(1, chunk + 1):
        for begin in range(min(chunk, 4)):
            kv = KVCache({kind: 1 + bound}, limits)
            assert kv.most_positions >= 50
            opened = text(ids(50))
            kv.open(opened, 0)
            computed = 0
            while computed < 50:
                length = min(50, computed + (step if computed or not begin else begin))
                assert kv.fits([(opened, 50)])
                assert kv.grow(opened, length)
                held = max(held, kv.stores[0].counts.used)
                row = kv.tables([opened], length)[kind][0].tolist()
                for position in range(max(0, computed - window + 1), length):
                    assert row[position // page_size] > 0
                kv.commit(opened, length)
                computed = length
            kv.close(opened)
            check_cache(kv, [])
    assert held == bound


def text_keys(kv: KVCache, tokens: list[int]) -> list[bytes]:
    keyed = text(tokens)
    kv._extend_keys(keyed, len(tokens) // PAGE)
    return keyed.keys


def drop(store, key: bytes) -> None:
    page = store._by_key[key]
    store._queue(page).pop(page)
    store._unpublish(page)
    store._free.append(page)
