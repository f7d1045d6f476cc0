"""The tree of titles: what may follow, what ends where, what somebody has taken."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fellrec.data.interactions import Ragged
from fellrec.models.titles import ROOT, LiveTitles, TitleTrie

END = 9
words = st.lists(st.integers(0, 3), max_size=5).map(tuple)


def trie_of(titles: list[tuple[int, ...]]) -> TitleTrie:
    return TitleTrie(Ragged.from_rows([[*title, END] for title in titles]))


def written(live: LiveTitles, node: int = ROOT) -> dict[tuple[int, ...], int]:
    """Walk all paths: what can be written, without the end, and the leaf it ends at."""
    found: dict[tuple[int, ...], int] = {}
    for token, after in zip(*live.after(node), strict=True):
        if token == END:
            found[()] = live.leaf(int(after))
        else:
            rest = written(live, int(after))
            assert rest, "a path that leads nowhere"
            found |= {(int(token), *tail): leaf for tail, leaf in rest.items()}
    return found


@given(titles=st.lists(words, min_size=1, max_size=8), taken=st.sets(st.integers(0, 7)))
def test_what_can_be_written_is_what_is_left(
    titles: list[tuple[int, ...]], taken: set[int]
) -> None:
    trie = trie_of(titles)
    gone = np.array([item for item in taken if item < len(titles)], np.int32)
    live = trie.without(gone)
    left = {title for item, title in enumerate(titles) if item not in taken}
    found = written(live)
    assert found.keys() == left
    assert live.count == len(left)
    for title, leaf in found.items():
        assert {titles[item] for item in trie.members[leaf]} == {title}
        same = [item for item, other in enumerate(titles) if other == title]
        assert trie.members[leaf].tolist() == same
        assert trie.leaf[same].tolist() == [leaf] * len(same)


def test_a_title_stays_while_one_of_its_items_is_new() -> None:
    trie = trie_of([(1, 2), (1, 2), (1,)])
    assert set(written(trie.without(np.array([0])))) == {(1, 2), (1,)}
    assert set(written(trie.without(np.array([0, 1, 1])))) == {(1,)}
    assert set(written(trie.without(np.array([0])))) == {(1, 2), (1,)}  # nobody else lost it
    assert trie.depth == 3 and len(trie.members) == 2


def test_nothing_left_and_nothing_there() -> None:
    assert trie_of([(1,)]).without(np.array([0])).count == 0
    empty = trie_of([])
    assert empty.without(np.array([], np.int32)).count == 0 and empty.depth == 0
