"""What of the code the scores of a cell depend on."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fellrec
from fellrec.comparison import outcomes
from fellrec.comparison.outcomes import code_of
from fellrec.peers import PEERS
from tests.comparison.made import description

SOURCE = Path(fellrec.__file__).parent
# What decides no score: messages, and types alone.
SPARED = {"errors.py", "extras.py"}


def counted(peer: str) -> set[str]:
    return {*outcomes._PEERS_CODE, *outcomes._PEER_CODE[peer]}


def imported(name: str) -> set[str]:
    """Return the modules of this package that a module takes names from, as files."""
    found = set()
    for node in ast.walk(ast.parse((SOURCE / name).read_text("utf-8"))):
        module = (isinstance(node, ast.ImportFrom) and node.module) or ""
        if module.startswith("fellrec."):
            path = Path(*module.split(".")[1:]).with_suffix(".py")
            if (SOURCE / path).is_file():  # a package hands on what other modules make
                found.add(path.as_posix())
    return found


@pytest.mark.parametrize("peer", PEERS)
def test_what_a_peer_reads_counts(peer: str) -> None:
    files = counted(peer)
    assert all((SOURCE / name).is_file() for name in files)
    own = {name for name in files if name != "peers/running.py"}  # which knows all peers
    for name in own:
        assert imported(name) - SPARED <= files, name


def test_every_file_of_peers_counts_for_one() -> None:
    known = set().union(*(counted(peer) for peer in PEERS))
    there = {f"peers/{path.name}" for path in (SOURCE / "peers").glob("*.py")}
    assert there - known == {"peers/__init__.py"}


def test_each_peer_has_a_digest_of_its_own(tmp_path: Path) -> None:
    peers = ", ".join(f'"{peer}"' for peer in PEERS)
    text = f'name = "mine"\nrecipe = "demo"\npeers = [{peers}]\n[strategies.plain]\n'
    cells = description(tmp_path, text).cells
    assert len({code_of(cell) for cell in cells}) == len(PEERS) + 1
