from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiockpt.testing.listing import Page, page_of

KEYS = ["a", "b/1", "b/2", "b/c/3", "d", "e/1"]


def test_everything_fits_one_page() -> None:
    assert page_of(KEYS, prefix="", delimiter="", after="", limit=10) == Page(KEYS, [], None)


def test_a_delimiter_rolls_up() -> None:
    assert page_of(KEYS, prefix="", delimiter="/", after="", limit=10) == Page(["a", "d"], ["b/", "e/"], None)
    assert page_of(KEYS, prefix="b/", delimiter="/", after="", limit=10) == Page(["b/1", "b/2"], ["b/c/"], None)


def test_a_page_ends_at_its_limit() -> None:
    assert page_of(KEYS, prefix="", delimiter="/", after="", limit=2) == Page(["a"], ["b/"], "b/")
    assert page_of(KEYS, prefix="", delimiter="/", after="b/", limit=2) == Page(["d"], ["e/"], None)


@given(
    st.lists(st.text("ab/", min_size=1, max_size=5), unique=True),
    st.text("ab/", max_size=2),
    st.sampled_from(["", "/", "ab"]),
    st.integers(1, 4),
)
def test_pages_together_are_the_whole(keys: list[str], prefix: str, delimiter: str, limit: int) -> None:
    keys.sort(key=str.encode)
    whole = page_of(keys, prefix=prefix, delimiter=delimiter, after="", limit=1000)
    seen_keys, seen_prefixes, after = [], [], ""
    for _ in range(len(keys) + 1):
        page = page_of(keys, prefix=prefix, delimiter=delimiter, after=after, limit=limit)
        seen_keys += page.keys
        seen_prefixes += page.prefixes
        if page.next_after is None:
            break
        after = page.next_after
    assert (seen_keys, seen_prefixes) == (whole.keys, whole.prefixes)
