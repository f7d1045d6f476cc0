"""What a recording may hold: declared fields, the ledger's bytes, nothing of what was planted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fellrec.data.client_file import ClientFile
from fellrec.federation.deployment.schema import Explained, Part, explain_folder
from fellrec.split.ledger import Ledger
from fellrec.split.service.recorder import SUFFIX, read_records

TOLERANCE = 1e-5
RUN = 4  # items in a row that nothing but a history has in this order
_FLOATS = {"f32": "<f4", "f64": "<f8"}


def check_recording(
    folder: Path,
    *,
    ledger: Ledger | None = None,
    planted: Mapping[str, bytes] | None = None,
) -> list[Explained]:
    """Check all that the servers of a deployment recorded; return it, explained.

    ledger: of the run, to compare frames' and adapters' bytes with. planted: what must not occur,
    by name, see `texts` and `histories`.
    """
    explained = list(explain_folder(folder))
    assert {"Introduction", "Report", "TestScores"} <= {each.kind for each in explained}
    if ledger is not None:
        assert crossed(explained) == counted(ledger)
    assert found(folder, planted or {}) == []
    return explained


def texts(values: Sequence[str]) -> dict[str, bytes]:
    """Return what each text may be written as: UTF-8, UTF-16, JSON's escapes."""
    written = {}
    for text in values:
        written[f"{text} (UTF-8)"] = text.encode()
        written[f"{text} (UTF-16)"] = text.encode("utf-16-le")
        written[f"{text} (JSON)"] = json.dumps(text)[1:-1].encode()
    return written


def histories(file: ClientFile, run: int = RUN) -> dict[str, bytes]:
    """Return every run of item indices of a client's users as numbers of several kinds."""
    written = {}
    for user, name in enumerate(file.split.users):
        parts = (file.split.train[user], file.split.valid[user], file.split.test[user])
        items = np.concatenate(parts)
        for start in range(len(items) - run + 1):
            for dtype in ("<i4", "<i8", "<f4"):
                key = f"{name}'s items from {start} ({dtype})"
                written[key] = items[start : start + run].astype(dtype).tobytes()
    return written


def found(folder: Path, planted: Mapping[str, bytes]) -> list[str]:
    """Return the names of what occurs in any recorded message."""
    names: set[str] = set()
    for path in folder.glob(f"*{SUFFIX}"):
        everything = b"\0".join(record.payload for record in read_records(path))
        names |= {name for name, data in planted.items() if data in everything}
    return sorted(names)


def crossed(explained: Sequence[Explained]) -> Counter[tuple[str, str, str]]:
    """Add up frames and exchanged adapters: bytes by client, direction and the ledger's kind."""
    sums: Counter[tuple[str, str, str]] = Counter()
    for each in explained:
        stream = {each.sender, each.receiver} == {"client", "trunk"}
        if stream or each.kind in ("Report", "Receive"):
            way = "up" if each.sender == "client" else "down"
            for part in each.parts:
                if part.ledger:
                    sums[each.client, way, part.ledger] += len(part.data)
    return sums


def counted(ledger: Ledger) -> Counter[tuple[str, str, str]]:
    """Add up a ledger over rounds, all but the metrics."""
    sums: Counter[tuple[str, str, str]] = Counter()
    for row in ledger.rows():
        if row.kind != "metrics":
            sums[row.client, row.direction, row.kind] += row.bytes
    return sums


def differences(
    one: Sequence[Explained],
    other: Sequence[Explained],
    *,
    items: npt.NDArray[np.int64] | None = None,
) -> set[str]:
    """Return the fields in which two recordings differ, as "kind.field".

    Left out is what the schema calls loose, and framing. items: where each item of the first
    catalogue is in the second; None says that both have the same, and so its digest. Floats differ
    where one differs by more than 1e-5; of an adapter 1e-4, as AdamW divides by the size of
    gradients, some of which are hardly more than rounding.
    """
    ways = [_by_way(each) for each in (one, other)]
    assert ways[0].keys() == ways[1].keys()
    differ = set()
    for way, messages in ways[0].items():
        others = ways[1][way]
        if [each.kind for each in messages] != [each.kind for each in others]:
            differ.add(f"{way}: kinds")
            continue
        for a, b in zip(messages, others, strict=True):
            fields, others_fields = list(_told(a, items)), list(_told(b, items))
            if [part.name for part in fields] != [part.name for part in others_fields]:
                differ.add(f"{a.kind}: fields")
            pairs = zip(fields, others_fields, strict=False)
            differ |= {f"{a.kind}.{p.name}" for p, q in pairs if not _same(p, q, items)}
    return differ


def _by_way(explained: Sequence[Explained]) -> dict[str, list[Explained]]:
    """Sort messages by who talks to whom: only within these is their order certain."""
    ways: dict[str, list[Explained]] = {}
    for each in explained:
        way = f"{each.client}: {each.sender} to {each.receiver}"
        ways.setdefault(way, []).append(each)
    return ways


def _told(each: Explained, items: npt.NDArray[np.int64] | None) -> Iterator[Part]:
    for part in each.parts:
        if part.dtype != "framing" and (
            not part.loose or (part.loose == "catalogue" and items is None)
        ):
            yield part


def _same(one: Part, other: Part, items: npt.NDArray[np.int64] | None) -> bool:
    if (one.name, one.dtype) != (other.name, other.dtype):
        return False
    if one.dtype == "json":
        return _close(json.loads(one.data), json.loads(other.data))
    if one.shape != other.shape:
        return False
    if one.dtype not in _FLOATS:
        return one.data == other.data
    a, b = (np.frombuffer(each.data, _FLOATS[one.dtype]) for each in (one, other))
    if one.name == "item_residual" and items is not None:
        b = b.reshape(other.shape)[items].ravel()
    tolerance = 1e-4 if one.ledger in ("lora", "dense") else TOLERANCE
    return np.allclose(a, b, rtol=tolerance, atol=tolerance)


def _close(one: object, other: object) -> bool:
    """Compare JSON values, floats with a tolerance; a whole number is never a float."""
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    return one == other
