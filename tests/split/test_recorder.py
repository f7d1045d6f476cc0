"""A recording holds every message as it was, and whoever reads it believes nothing."""

from __future__ import annotations

import stat
import struct
import threading
from pathlib import Path

import pytest

from fellrec.errors import RunError, WireError
from fellrec.split.service import messages
from fellrec.split.service.control import TrunkControl
from fellrec.split.service.handlers import without_key
from fellrec.split.service.packing import pack_call, unpack_call
from fellrec.split.service.recorder import Record, Recorder, read_records
from tests.split.running import Authority, running

MESSAGES = [
    Record("received", "north", "Greeting", b"{}"),
    Record("sent", "north", "Welcome", b""),
    Record("received", "ö", "Step", bytes(range(256)) * 300),
    Record("sent", "", "Reply", b"\n\0"),
]


def written(folder: Path) -> Path:
    with Recorder(folder, "trunk") as record:
        for each in MESSAGES:
            record(each.direction, each.client, each.kind, each.payload)
    return record.path


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    path = written(tmp_path / "new" / "folder")
    assert list(read_records(path)) == MESSAGES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_start_of_a_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert [written(tmp_path).name for _ in range(2)] == ["trunk-0.recording", "trunk-1.recording"]
    assert list(read_records(tmp_path / "trunk-0.recording")) == MESSAGES


def test_many_threads_write_whole_records(tmp_path: Path) -> None:
    with Recorder(tmp_path, "trunk") as record:

        def talk(name: str) -> None:
            for number in range(50):
                record("received", name, "Step", name.encode() * (1 + number * 400))

        threads = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = list(read_records(record.path))
    for name in "abcd":
        own = [each.payload for each in found if each.client == name]
        assert own == [name.encode() * (1 + number * 400) for number in range(50)]


def test_nothing_is_written_once_it_is_closed(tmp_path: Path) -> None:
    path = written(tmp_path)
    recorder = Recorder(tmp_path, "trunk")
    recorder.close()
    recorder.close()
    recorder("sent", "north", "Reply", b"late")
    assert list(read_records(recorder.path)) == []
    assert list(read_records(path)) == MESSAGES


def test_a_recording_that_was_cut_off_says_so(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    ends = [8]
    for each in MESSAGES:
        names = f"{each.kind}{each.client}".encode()
        ends.append(ends[-1] + 12 + len(names) + len(each.payload))
    assert ends[-1] == len(whole)
    for size in [*range(150), *range(len(whole) - 30, len(whole))]:
        path.write_bytes(whole[:size])
        if size in ends:
            assert list(read_records(path)) == MESSAGES[: ends.index(size)]
        else:
            with pytest.raises(WireError, match=r"ends within|no recording"):
                list(read_records(path))


@pytest.mark.parametrize(
    ("head", "line"),
    [
        (struct.pack("<BBHQ", 3, 4, 1, 0), "unknown direction 3"),
        (struct.pack("<BBHQ", 0, 4, 1, 0), "unknown direction 0"),
        (struct.pack("<BBHQ", 1, 4, 1, 2**63), "the limit is 1000"),
        (struct.pack("<BBHQ", 1, 4, 1, 1001), "the limit is 1000"),
        (struct.pack("<BBHQ", 1, 4, 1, 1000), "ends within"),
        (struct.pack("<BBHQ", 1, 4, 65_535, 0), "ends within"),
        (struct.pack("<BBHQ", 1, 4, 1, 0) + b"Step\xff", "not UTF-8"),
    ],
)
def test_a_record_is_believed_nothing(tmp_path: Path, head: bytes, line: str) -> None:
    path = tmp_path / "trunk-0.recording"
    path.write_bytes(b"FLRREC1\n" + head)
    with pytest.raises(WireError, match=line):
        list(read_records(path, max_bytes=1000))


def test_what_can_not_be_written_or_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="can't be recorded to"):
        Recorder(tmp_path / "file", "trunk")
    with pytest.raises(RunError, match="can't be read"):
        list(read_records(tmp_path / "missing"))


def test_the_key_of_tokens_is_not_recorded() -> None:
    key = "0123456789abcdef" * 4
    begin = messages.Begin(run="r", settings="s", manifest="m", version="1", key=key)
    call = pack_call(begin)
    recorded = without_key(messages.Begin, call)
    assert len(recorded) == len(call)
    assert unpack_call(messages.Begin, recorded)[0] == begin.model_copy(update={"key": "0" * 64})
    escaped = call.replace(b"4567", b"\\u0034567", 1)
    escaped = struct.pack("<I", len(escaped) - 4) + escaped[4:]
    assert unpack_call(messages.Begin, escaped)[0].key == key
    for odd in (escaped, call[:-1], b"", b"key: " + key.encode()):
        assert without_key(messages.Begin, odd) == b""
    status = pack_call(messages.Status())
    assert without_key(messages.Status, status) == status


def test_a_trunk_records_refusals_too(tmp_path: Path, authority: Authority) -> None:
    folder = tmp_path / "recording"
    with running(tmp_path / "trunk", authority, record=folder) as trunk:
        trunk.prepare("a")
        with pytest.raises(WireError, match="has not prepared"):
            trunk.client("b", token=trunk.token("b")).open()
        other = TrunkControl(trunk.link("a"), {})
        with pytest.raises(WireError, match="is for the coordinator"):
            other.status()
        other.close()
        trunk.client("a").finish()
    records = list(read_records(folder / "trunk-0.recording"))
    assert [(each.direction, each.client, each.kind) for each in records] == [
        ("received", "coordinator", "Begin"),
        ("sent", "coordinator", "Done"),
        ("received", "coordinator", "Prepare"),
        ("sent", "coordinator", "Done"),
        ("received", "b", "Greeting"),
        ("sent", "b", "Welcome"),
        ("received", "a", "Status"),
        ("sent", "a", "Refusal"),
        ("received", "a", "Greeting"),
        ("sent", "a", "Welcome"),
        ("received", "a", "Step"),
        ("sent", "a", "Reply"),
    ]
    assert b"PERMISSION_DENIED" in records[7].payload
    assert not messages.Welcome.model_validate_json(records[5].payload).ok
