"""A catalogue's titles as a tree of tokens: what may be written next, and where a title ends.

Items whose titles are the same tokens are one leaf: they stay distinct items, and whoever reads the
result decides how they share its place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fellrec.data.interactions import Ragged

ROOT = 0
Nodes = npt.NDArray[np.int64]


class TitleTrie:
    """All responses of a catalogue.

    responses: (items,) rows of tokens, each ending with the end token, which stands nowhere else in
    them. leaf: (items,) int64, the leaf of each item, counted from 0. members: by leaf, its items.
    depth: most tokens of a response.
    """

    def __init__(self, responses: Ragged) -> None:
        children: list[dict[int, int]] = [{}]
        paths: list[Nodes] = []
        leaf_of: dict[int, int] = {}
        leaves = np.empty(len(responses), np.int64)
        for item in range(len(responses)):
            node, path = ROOT, [ROOT]
            for token in responses[item].tolist():
                found = children[node].get(token)
                if found is None:
                    found = children[node][token] = len(children)
                    children.append({})
                node = found
                path.append(node)
            if node not in leaf_of:
                leaf_of[node] = len(leaf_of)
                paths.append(np.array(path, np.int64))
            leaves[item] = leaf_of[node]
        self.leaf = leaves
        self.members = _members(leaves, len(leaf_of))
        self.depth = int(responses.lengths().max(initial=0))
        lengths = np.array([len(each) for each in children], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._tokens = np.array([t for each in children for t in each], np.int64)
        self._nexts = np.array([n for each in children for n in each.values()], np.int64)
        self._paths = paths
        self._leaf_of_node = np.full(len(children), -1, np.int64)
        self._leaf_of_node[list(leaf_of)] = list(leaf_of.values())
        self._leaves_below = np.zeros(len(children), np.int64)
        for nodes in paths:
            self._leaves_below[nodes] += 1

    def without(self, items: npt.NDArray[np.integer]) -> LiveTitles:
        """Return what may be written for somebody who has taken `items` already.

        A title stays as long as one of its items is not among them.
        """
        taken = np.bincount(self.leaf[np.unique(items)], minlength=len(self.members))
        live = self._leaves_below
        dead = np.flatnonzero(taken >= self.members.lengths())
        if len(dead):
            live = live.copy()
            for leaf in dead.tolist():
                live[self._paths[leaf]] -= 1
        return LiveTitles(self, live)

    def _after(self, node: int) -> tuple[Nodes, Nodes]:
        span = slice(self._starts[node], self._starts[node + 1])
        return self._tokens[span], self._nexts[span]


class LiveTitles:
    """The part of a tree that may be written."""

    def __init__(self, trie: TitleTrie, live: Nodes) -> None:
        self._trie = trie
        self._live = live

    @property
    def count(self) -> int:
        """Titles that may be written."""
        return int(self._live[ROOT])

    def after(self, node: int) -> tuple[Nodes, Nodes]:
        """Return the tokens that may follow a node, and the nodes they lead to."""
        tokens, nexts = self._trie._after(node)
        kept = self._live[nexts] > 0
        return tokens[kept], nexts[kept]

    def leaf(self, node: int) -> int:
        """Return the leaf that ends at a node, or -1."""
        return int(self._trie._leaf_of_node[node])


def _members(leaf: Nodes, leaves: int) -> Ragged:
    order = np.argsort(leaf, kind="stable")
    return Ragged.from_lengths(np.bincount(leaf, minlength=leaves), order.astype(np.int32))
