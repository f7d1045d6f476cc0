"""Messages as Flower's records: what is written is read, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fellrec.errors import WireError
from fellrec.federation.deployment.orders import Failure, Score
from fellrec.federation.flower.post import exchange, letter, opened
from fellrec.federation.flower.records import KINDS, pack, unpack
from tests.federation.deployment.town import MemoryGrid, as_task, carried

SCORE = Score(score=0.5)


def test_tensors_go_and_come_back_bit_by_bit() -> None:
    as_task(1)
    odd = torch.tensor([0.0, -0.0, torch.inf, torch.nan, 1e-45]).view(torch.int32)
    tensors = {
        "a": torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).T,
        "none": torch.empty(0, 5),
        "one": torch.tensor(2.5),
        "odd": odd.view(torch.float32),
    }
    told, found = unpack(carried(Message(pack(SCORE, tensors), 2, "train")).content)
    assert told == SCORE
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape
        assert torch.equal(
            found[name].contiguous().view(torch.int32), tensor.contiguous().view(torch.int32)
        )
    found["a"].add_(1)  # what was read is not Flower's memory
    assert unpack(pack(SCORE, {}))[1] == {}


def test_all_orders_and_answers_are_known() -> None:
    assert set(KINDS) == {
        *("Hello", "Introduction", "Train", "Report", "Receive", "Score", "Test", "TestScores"),
        "Failure",
    }


def of(kind: object, body: object, **more: object) -> RecordDict:
    return RecordDict({"message": ConfigRecord({"kind": kind, "body": body}), **more})  # type: ignore[dict-item]


def with_array(shape: tuple[int, ...], data: bytes, dtype: str, stype: str) -> RecordDict:
    content = pack(SCORE, {})
    content["tensors"] = ArrayRecord({"a": Array(dtype, shape, stype, data)})
    return content


RAW = "fellrec.raw"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: RecordDict(), "other records than fellrec's, first: message"),
        (lambda: RecordDict({"message": MetricRecord({"a": 1})}), "first: message"),
        (lambda: of("Score", '{"score": 1.0}', more=ConfigRecord()), "first: more"),
        (lambda: RecordDict({"message": ConfigRecord({"kind": "Score"})}), "first: message"),
        (lambda: of("Message", "{}"), "unknown kind 'Message'"),
        (lambda: of("x" * 999, "{}"), "unknown kind 'x{64}'"),
        (lambda: of(b"Score", "{}"), "unknown kind"),
        (lambda: of("Score", "{"), "Score refused: JSON"),
        (lambda: of("Score", b'{"score": 1.0}'), "Score refused"),
        (lambda: of("Score", "[" * 100_000), "Score refused"),
        (lambda: of("Score", '{"score": 1.0}', tensors=ConfigRecord()), "whose tensors are none"),
        (lambda: with_array((2,), bytes(8), "float64", RAW), "is float64"),
        (lambda: with_array((2,), bytes(8), "float32", "numpy.ndarray"), "numpy.ndarray"),
        (lambda: with_array((2,), bytes(7), "float32", RAW), "7 bytes for the shape"),
        (lambda: with_array((2**40, 2**40), bytes(8), "float32", RAW), "8 bytes for the shape"),
        (lambda: with_array((-1, -2), bytes(8), "float32", RAW), "expected raw float32"),
        (lambda: with_array((), b"", "float32", RAW), "0 bytes for the shape"),
    ],
)
def test_anything_else_is_refused_in_a_line(make: Callable[[], RecordDict], reason: str) -> None:
    with pytest.raises(WireError, match=reason) as caught:
        unpack(make())
    assert "\n" not in str(caught.value)


def failing(reason: str) -> Callable[[Message], Message]:
    return lambda message: Message(Error(2, reason), reply_to=message)


def test_answers_are_read_by_node_and_bad_ones_are_errors() -> None:
    as_task(1)
    grid = MemoryGrid()
    grid.add(7, lambda message: Message(pack(SCORE, {}), reply_to=message))
    grid.add(8, lambda message: Message(RecordDict(), reply_to=message))
    grid.add(9, failing("Traceback\n  it broke\n"))
    grid.add(10, failing(" \n"))
    grid.add(11, lambda message: None)
    order = Failure(kind="other", reason="")
    letters = [letter(node, "query", order, {}, "0") for node in (7, 8, 9, 10, 11, 12)]
    found = opened(exchange(grid, letters, 0.2))
    assert found[7] == (SCORE, {})
    assert "first: message" in str(found[8])
    assert str(found[9]) == "Flower's code 2: it broke"
    assert str(found[10]) == "Flower's code 2: it gave no reason"
    assert 11 not in found  # it says nothing
    assert 12 not in found  # it is gone, which the SuperLink says in its own name


def test_answers_that_are_there_are_read_however_long_the_writing_took() -> None:
    as_task(1)
    grid = MemoryGrid()
    grid.add(7, lambda message: Message(pack(SCORE, {}), reply_to=message))
    letters = [letter(7, "query", SCORE, {}, "0")]
    assert opened(exchange(grid, letters, 1e-9))[7] == (SCORE, {})
