"""The Merkle tree of RFC 6962 over leaves that only ever grow."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


class Tree:
    """The root so far, from as many hashes as the size has bits."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[tuple[int, bytes]] = []

    def add(self, leaf: bytes) -> None:
        """Add a leaf's hash at the end."""
        self.size += 1
        height = 0
        while self._peaks and self._peaks[-1][0] == height:
            leaf = node(self._peaks.pop()[1], leaf)
            height += 1
        self._peaks.append((height, leaf))

    def root(self) -> bytes:
        """Hash of all leaves."""
        if not self._peaks:
            return hashlib.sha256().digest()
        *others, (_, root) = self._peaks
        for _, peak in reversed(others):
            root = node(peak, root)
        return root


def node(left: bytes, right: bytes) -> bytes:
    """Hash of two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that lead from one leaf to the root, the nearest first."""
    if len(leaves) == 1:
        return []
    middle = 1 << (len(leaves) - 1).bit_length() - 1
    if index < middle:
        return [*path(leaves[:middle], index), _root(leaves[middle:])]
    return [*path(leaves[middle:], index - middle), _root(leaves[:middle])]


def _root(leaves: Sequence[bytes]) -> bytes:
    tree = Tree()
    for leaf in leaves:
        tree.add(leaf)
    return tree.root()
