"""The file of what is vouched for: entries chain, and a damaged one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fellrec.errors import RunError
from fellrec.results.vouched import SAME, Vouched, entry_of, write_down

OLD, OLDER, OTHER = (16 * digit for digit in "0ab")


def test_entries_chain(tmp_path: Path) -> None:
    today = "c" * 16
    write_down(tmp_path, [entry_of("hllm", OLD, OLDER, ["b"])])
    write_down(tmp_path, [entry_of("hllm", today, OLD, ["a"]), entry_of("bigrec", OLD, OTHER, "x")])
    found = Vouched.read(tmp_path)
    assert found.shown_by("hllm", today, [today]) == ()
    assert found.shown_by("hllm", today, [OLD, today]) == ("a",)
    assert found.shown_by("hllm", today, [OLDER]) == ("a", "b")
    assert found.shown_by("hllm", OLD, [OLDER]) == ("b",)
    # Newer code is not what earlier code gave, one recommender's is not another's.
    for recommender, code, others in (
        ("hllm", OLD, [today]),
        ("hllm", today, [OTHER]),
        ("hllm", today, [OLD, OTHER]),
        ("hllm", today, []),
        ("bigrec", today, [OLDER]),
        ("recformer", today, [OLD]),
    ):
        assert found.shown_by(recommender, code, others) is None
    assert found.link("hllm", OLDER, today) == found.link("hllm", today, OLDER) == ("a", "b")
    assert found.link("hllm", OLD, OTHER) is None
    # Two that a third gave are linked by it.
    side = "d" * 16
    write_down(tmp_path, [entry_of("hllm", today, side, ["e"])])
    found = Vouched.read(tmp_path)
    assert found.link("hllm", side, OLDER) == found.link("hllm", OLDER, side) == ("a", "b", "e")
    assert found.shown_by("hllm", side, [OLDER]) is None
    # A code that came back, with its own results, is no endless search.
    write_down(tmp_path, [entry_of("hllm", OLDER, today, ["c"])])
    assert Vouched.read(tmp_path).shown_by("hllm", OLD, [today]) == ("b", "c")


ENTRY = {"recommender": "hllm", "code": OLD, "as": OLDER, "shown_by": ["a"]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[3]",
        "[{}]",
        json.dumps([{**ENTRY, "code": "today"}]),
        json.dumps([{**ENTRY, "as": OLD + "0"}]),
        json.dumps([{**ENTRY, "as": 7}]),
        json.dumps([{**ENTRY, "shown_by": []}]),
        json.dumps([{**ENTRY, "shown_by": ["../a"]}]),
        json.dumps([{**ENTRY, "shown_by": "a"}]),
        json.dumps([{**ENTRY, "always": True}]),
        json.dumps([ENTRY, {**ENTRY, "recommender": ""}]),
    ],
)
def test_a_damaged_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / SAME).write_text(text)
    for call in (
        lambda: Vouched.read(tmp_path),
        lambda: write_down(tmp_path, [entry_of("hllm", OLD, OLDER, ["a"])]),
    ):
        with pytest.raises(RunError, match=SAME) as error:
            call()
        assert "\n" not in str(error.value)
    assert (tmp_path / SAME).read_text() == text
