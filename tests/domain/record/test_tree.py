"""The Merkle tree of RFC 6962: roots and proofs by hand, and those that the RFC's own reference
implementation publishes for eight leaves."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shadow_advisor_client.proof import main, root_of

from app.domain.record.tree import Tree, node, path

INPUTS = (
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
)
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
"""Of the first 0 to 8 leaves."""


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


LEAVES = [sha256(b"\x00" + bytes.fromhex(text)) for text in INPUTS]


def tree_of(leaves: list[bytes]) -> Tree:
    tree = Tree()
    for leaf in leaves:
        tree.add(leaf)
    return tree


def test_roots_are_those_that_are_published_for_every_size() -> None:
    assert [tree_of(LEAVES[:size]).root().hex() for size in range(9)] == list(ROOTS)


def test_the_root_of_five_leaves_is_four_in_pairs_beside_the_fifth() -> None:
    a, b, c, d, e = LEAVES[:5]
    pairs = [sha256(b"\x01" + a + b), sha256(b"\x01" + c + d)]
    four = sha256(b"\x01" + pairs[0] + pairs[1])
    tree = tree_of([a, b, c, d, e])
    assert (tree.size, tree.root()) == (5, sha256(b"\x01" + four + e))


def test_looking_at_the_root_changes_nothing() -> None:
    tree = Tree()
    for size, leaf in enumerate(LEAVES):
        assert tree.root().hex() == ROOTS[size]
        assert tree.root().hex() == ROOTS[size]
        tree.add(leaf)
    assert tree.root().hex() == ROOTS[8]


@pytest.mark.parametrize(
    ("index", "size", "proof"),
    [
        (0, 1, []),
        (0, 2, [LEAVES[1]]),
        (1, 2, [LEAVES[0]]),
        (2, 3, [node(LEAVES[0], LEAVES[1])]),
        (4, 5, [node(node(LEAVES[0], LEAVES[1]), node(LEAVES[2], LEAVES[3]))]),
        (3, 5, [LEAVES[2], node(LEAVES[0], LEAVES[1]), LEAVES[4]]),
    ],
)
def test_a_proof_names_the_neighbours_on_the_way_up(
    index: int, size: int, proof: list[bytes]
) -> None:
    assert path(LEAVES[:size], index) == proof


def test_proofs_in_eight_leaves_are_those_that_are_published() -> None:
    assert [step.hex() for step in path(LEAVES, 0)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    assert [step.hex() for step in path(LEAVES, 5)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        ROOTS[4],
    ]


@given(st.integers(1, 70), st.data())
def test_a_stranger_climbs_every_proof_to_the_root_and_with_another_leaf_elsewhere(
    size: int, data: st.DataObject
) -> None:
    leaves = [sha256(str(number).encode()) for number in range(size)]
    index = data.draw(st.integers(0, size - 1))
    proof, root = path(leaves, index), tree_of(leaves).root()
    assert root_of(leaves[index], index, size, proof) == root
    assert root_of(sha256(b"another"), index, size, proof) != root


@pytest.mark.parametrize(
    "said", ["", "{", "[]", "{}", "[" * 100_000, '{"link": {}, "checkpoint": {"signature": "x"}}']
)
def test_a_document_that_is_no_proof_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str,
) -> None:
    (tmp_path / "proof.json").write_text(said)
    monkeypatch.setattr("sys.argv", ["proof", str(tmp_path / "proof.json"), "00" * 32])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("this is no proof")
