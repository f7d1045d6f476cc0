from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import save

from fellrec.data.tensor_files import BLOCK, read_blocks, read_header

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
SHAPES = st.lists(st.integers(0, 3), max_size=3)


def as_file(listed: Any, body: bytes) -> io.BytesIO:
    header = json.dumps(listed).encode()
    return io.BytesIO(len(header).to_bytes(8, "little") + header + body)


def entry(dtype: str, shape: list[Any], start: Any, stop: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8")), st.tuples(st.sampled_from(DTYPES), SHAPES)
    )
)
def test_every_tensor_is_where_the_header_says(drawn: dict[str, Any]) -> None:
    tensors = {
        name: torch.randint(0, 2, shape).to(dtype)
        for name, (dtype, shape) in drawn.items()
        if name != "__metadata__"
    }
    file = io.BytesIO(save(tensors, {"made by": "a test"}))
    header = read_header(file)
    assert header.metadata == {"made by": "a test"}
    assert header.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        span = header.tensors[name]
        assert span.shape == tuple(tensor.shape)
        found = b"".join(map(bytes, read_blocks(file, span)))
        assert found == tensor.flatten().view(torch.uint8).numpy().tobytes()


def test_a_large_tensor_comes_in_blocks() -> None:
    tensor = torch.arange(BLOCK // 2 + 3, dtype=torch.float32)
    file = io.BytesIO(save({"a": tensor}))
    sizes = [len(block) for block in read_blocks(file, read_header(file).tensors["a"])]
    assert sizes == [BLOCK, BLOCK, 12]


def test_a_file_cut_short_while_it_is_read() -> None:
    file = io.BytesIO(save({"a": torch.zeros(4)}))
    span = read_header(file).tensors["a"]
    file.truncate(span.start + 5)
    with pytest.raises(ValueError, match="cut short"):
        list(read_blocks(file, span))


@pytest.mark.parametrize(
    ("listed", "body", "reason"),
    [
        ([], b"", "not a JSON object"),
        ({"__metadata__": []}, b"", "metadata are not texts"),
        ({"__metadata__": {"a": 1}}, b"", "metadata are not texts"),
        ({"a": 1}, b"", "not described by"),
        ({"a": {"dtype": "F32"}}, b"", "not described by"),
        ({"a": entry("F33", [1], 0, 4)}, b"1234", "unknown dtype"),
        ({"a": {**entry("F32", [1], 0, 4), "dtype": ["F32"]}}, b"1234", "unknown dtype"),
        ({"a": entry("F32", [True], 0, 4)}, b"1234", "no sizes"),
        ({"a": entry("F32", [-1], 0, 4)}, b"1234", "no sizes"),
        ({"a": entry("F32", [1.0], 0, 4)}, b"1234", "no sizes"),
        ({"a": entry("F32", [10**30], 0, 4)}, b"1234", "no sizes"),
        ({"a": entry("F32", [1], 0, "4")}, b"1234", "no sizes"),
        ({"a": {**entry("F32", [1], 0, 4), "data_offsets": [4]}}, b"1234", "no sizes"),
        ({"a": entry("F32", [2], 0, 4)}, b"1234", "do not fit its shape"),
        ({"a": entry("F32", [0], 4, 0)}, b"1234", "do not fit its shape"),
        ({"a": entry("F4", [3], 0, 1)}, b"1", "do not fit its shape"),
        ({"a": entry("F32", [1], 4, 8)}, b"1234", "leaves a gap"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("U8", [4], 0, 4)}, b"1234", "overlaps"),
        ({"a": entry("F32", [1], 0, 4)}, b"123", "bytes where the header describes"),
        ({"a": entry("F32", [1], 0, 4)}, b"12345", "bytes where the header describes"),
    ],
)
def test_a_header_that_can_not_be(listed: Any, body: bytes, reason: str, tmp_path: Path) -> None:
    file = as_file(listed, body)
    with pytest.raises(ValueError, match=reason):
        read_header(file)
    (tmp_path / "file").write_bytes(file.getvalue())
    with pytest.raises(SafetensorError), safe_open(tmp_path / "file", framework="np"):
        pass


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"1234567",
        (9).to_bytes(8, "little") + b"{}",
        b"\xff" * 16,
        (2).to_bytes(8, "little") + b"\xff\xff",
        (6).to_bytes(8, "little") + b'{"a":1'[:6],
        (13).to_bytes(8, "little") + b'{"a":1,"a":2}',
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)
def test_no_header_at_all(raw: bytes) -> None:
    with pytest.raises(ValueError, match="the header is"):
        read_header(io.BytesIO(raw))


@given(st.data())
def test_what_is_accepted_is_what_the_library_reads(data: st.DataObject) -> None:
    whole = bytearray(save({"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.int8)}))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_header(io.BytesIO(bytes(whole)))
    except ValueError:
        return
    theirs = dict(deserialize(bytes(whole)))  # type: ignore[no-untyped-call]
    assert found.tensors.keys() == theirs.keys()
    for name, span in found.tensors.items():
        assert list(span.shape) == theirs[name]["shape"]
        assert whole[span.start : span.start + span.size] == theirs[name]["data"]


def test_more_dimensions_than_any_tensor_has() -> None:
    with pytest.raises(ValueError, match="no sizes"):
        read_header(as_file({"a": entry("F32", [1] * 40, 0, 4)}, b"1234"))
