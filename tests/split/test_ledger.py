"""The ledger: sums, the file, and that the file's lines are what was recorded."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fellrec.errors import RunError
from fellrec.split.ledger import Ledger, LedgerRow
from fellrec.split.wire import Frame, FrameKind, encode_frame, frame_parts

HEADER = "round,client,direction,kind,count,bytes\n"
records = st.lists(
    st.tuples(
        st.sampled_from(["a", "b,c", 'say "x"']),
        st.integers(0, 3),
        st.sampled_from(["up", "down"]),
        st.sampled_from(["activation", "lora"]),
        st.integers(0, 2**40),
        st.integers(0, 3),
    ),
    max_size=12,
)


def test_records_are_summed_by_client_round_direction_and_kind() -> None:
    ledger = Ledger()
    ledger.record("a", 0, "up", "activation", 100)
    ledger.record("a", 0, "up", "activation", 50)
    ledger.record("a", 0, "down", "activation", 70)
    ledger.record("b", 1, "up", "lora", 9, tensors=4)
    assert ledger.rows() == [
        LedgerRow(0, "a", "down", "activation", 1, 70),
        LedgerRow(0, "a", "up", "activation", 2, 150),
        LedgerRow(1, "b", "up", "lora", 4, 9),
    ]
    assert ledger.totals() == {"count_up": 6, "count_down": 1, "bytes_up": 159, "bytes_down": 70}
    assert ledger.totals(client="a")["bytes_up"] == 150
    assert ledger.totals(round=1)["bytes_up"] == 9
    assert ledger.totals(round=0, kind="lora")["bytes_up"] == 0


@given(records)
def test_rows_and_totals_match_a_plain_count(entries: list[Any]) -> None:
    ledger, sums = Ledger(), dict[tuple[int, str, str, str], tuple[int, int]]()
    for client, round_, direction, kind, size, tensors in entries:
        ledger.record(client, round_, direction, kind, size, tensors)
        count, total = sums.get((round_, client, direction, kind), (0, 0))
        sums[round_, client, direction, kind] = (count + tensors, total + size)
    expected = [LedgerRow(*key, *sums[key]) for key in sorted(sums)]
    assert ledger.rows() == expected
    totals = ledger.totals()
    assert totals["bytes_up"] + totals["bytes_down"] == sum(size for _, size in sums.values())


def test_a_frame_counts_as_many_bytes_as_it_has() -> None:
    frame = Frame(FrameKind.GRADIENT, "a", tensor=torch.ones(3, 5))
    ledger = Ledger()
    ledger.record_parts("a", 2, "up", frame_parts(frame))
    assert ledger.totals()["bytes_up"] == len(encode_frame(frame))
    assert [row.kind for row in ledger.rows()] == ["gradient", "layout"]


@pytest.mark.parametrize(("direction", "size"), [("sideways", 1), ("up", -1)])
def test_nonsense_is_not_counted(direction: Any, size: int) -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match="direction"):
        ledger.record("a", 0, direction, "lora", size)
    assert ledger.rows() == []


def test_each_round_is_appended_once(tmp_path: Path) -> None:
    path, ledger = tmp_path / "ledger.csv", Ledger()
    ledger.append_csv(path)
    assert path.read_text() == HEADER
    ledger.record("a", 0, "up", "lora", 10)
    ledger.append_csv(path)
    ledger.append_csv(path)
    assert path.read_text() == HEADER + "0,a,up,lora,1,10\n"
    ledger.record("a", 1, "up", "lora", 30)
    ledger.record("a", 0, "up", "lora", 5)  # late: a line of its own, the sum stays right
    ledger.append_csv(path)
    assert path.read_text() == HEADER + "0,a,up,lora,1,10\n0,a,up,lora,1,5\n1,a,up,lora,1,30\n"
    assert Ledger.read(path).rows() == ledger.rows()
    assert list(tmp_path.iterdir()) == [path]


@given(first=records, second=records)
def test_a_ledger_read_back_goes_on_where_it_ended(
    tmp_path_factory: pytest.TempPathFactory, first: list[Any], second: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.csv"
    undisturbed, before = Ledger(), Ledger()
    for entry in first:
        undisturbed.record(*entry)
        before.record(*entry)
    before.append_csv(path)
    resumed = Ledger.read(path)
    for entry in second:
        undisturbed.record(*entry)
        resumed.record(*entry)
    resumed.append_csv(path)
    # A record of no tensors and no bytes has nothing to write.
    told = [row for row in undisturbed.rows() if row.count or row.bytes]
    assert Ledger.read(path).rows() == told


@given(records, records)
def test_merging_is_recording_both(first: list[Any], second: list[Any]) -> None:
    one, two, both = Ledger(), Ledger(), Ledger()
    for ledger, entries in ((one, first), (two, second)):
        for entry in entries:
            ledger.record(*entry)
            both.record(*entry)
    one.merge(two)
    assert one.rows() == both.rows()


def test_merged_rows_are_still_to_be_written(tmp_path: Path) -> None:
    path, one, two = tmp_path / "ledger.csv", Ledger(), Ledger()
    two.record("b", 0, "down", "dense", 8)
    one.append_csv(path)
    one.merge(two)
    one.append_csv(path)
    assert Ledger.read(path).rows() == two.rows()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "ledger.csv:1: expected the columns"),
        ("a,b\n", "ledger.csv:1: expected the columns round,client"),
        (HEADER + "0,a,up,lora,1\n", "ledger.csv:2: expected"),
        (HEADER + "0,a,up,lora,1,1\n0,a,up,lora,x,1\n", "ledger.csv:3: expected"),
        (HEADER + "0,a,left,lora,1,1\n", "ledger.csv:2: direction"),
        (HEADER + "0,a,up,lora,1,-1\n", "ledger.csv:2: direction"),
    ],
)
def test_files_that_are_no_ledger_are_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text(text)
    with pytest.raises(RunError, match=named):
        Ledger.read(path)


def test_a_missing_ledger_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere\.csv"):
        Ledger.read(tmp_path / "nowhere.csv")


def test_nothing_is_appended_to_another_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("my notes\n")
    with pytest.raises(RunError, match="not a ledger"):
        Ledger().append_csv(path)
    assert path.read_text() == "my notes\n"


def test_threads_lose_nothing() -> None:
    ledger = Ledger()

    def work() -> None:
        for _ in range(2000):
            ledger.record("a", 0, "up", "activation", 3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.totals()["bytes_up"] == 4 * 2000 * 3
