"""Whatever a message through Flower holds is recorded, whether an order of ours has it or not."""

from __future__ import annotations

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fellrec.federation.deployment.orders import Failure, Score
from fellrec.federation.deployment.schema import Explainer, UndeclaredError
from fellrec.federation.flower.post import letter
from fellrec.federation.flower.recording import LETTER, RecordedGrid, written
from fellrec.federation.flower.records import pack
from fellrec.split.service.recorder import Record
from tests.federation.deployment.town import LINK, MemoryGrid, as_task


def recorded(message: Message) -> Record:
    return Record("received", "7", LETTER, written(message))


@pytest.fixture(autouse=True)
def in_a_task() -> None:
    as_task(LINK)


def test_an_answer_is_explained_and_an_addition_is_not() -> None:
    order = letter(7, "evaluate", Score(score=0.5), {}, "3")
    answer = Message(pack(Score(score=0.5), {}), reply_to=order)
    explained = Explainer().explain(recorded(answer))
    assert (explained.kind, explained.value("score")) == ("Score", 0.5)
    for name, extra in (
        ("more", ConfigRecord({"item": 312})),
        ("more", ConfigRecord({"items": [312, 313]})),
        ("more", ConfigRecord({"raw": b"\x38\x01"})),
        ("metrics", MetricRecord({"item": 312})),
        ("tensors", ArrayRecord({"scale": Array("float32", (), "fellrec.raw", bytes(4))})),
    ):
        content = pack(Score(score=0.5), {})
        content[name] = extra
        odd = recorded(Message(content, reply_to=order))
        assert name.encode() in odd.payload
        with pytest.raises(UndeclaredError, match=f"{name}/"):
            Explainer().explain(odd)
    assert b"[312, 313]" in written(
        Message(RecordDict({"x": ConfigRecord({"y": [312, 313]})}), reply_to=order)
    )


def test_flowers_own_answer_is_explained() -> None:
    order = letter(7, "train", Score(score=0.5), {}, "3")
    for reason in ("", "KeyError: 'söme'"):
        failed = recorded(Message(Error(1, reason), reply_to=order))
        explained = Explainer().explain(failed)
        assert explained.kind == "Error"
        assert explained.parts[-1].data == reason.encode()


def test_a_recorded_grid_passes_everything_on() -> None:
    kept: list[tuple[str, str, bytes]] = []
    inner = MemoryGrid()
    told = Failure(kind="other", reason="no data")
    inner.add(7, lambda message: Message(pack(told, {}), reply_to=message), "north")
    grid = RecordedGrid(inner, lambda way, client, kind, data: kept.append((way, client, data)))
    assert [node.name for node in grid.get_nodes()] == ["north"]
    assert list(grid.get_node_ids()) == [7]
    first = letter(7, "query", Score(score=0.5), {}, "roll")
    (number,) = grid.push_messages([first])
    (answer,) = grid.pull_messages([number])
    assert list(grid.pull_messages([number])) == []
    (second,) = grid.send_and_receive([letter(7, "query", Score(score=0.25), {}, "roll")])
    assert answer.content == second.content == pack(told, {})
    assert [(way, client) for way, client, _ in kept] == [("sent", "7"), ("received", "7")] * 2
    assert kept[0][2] == written(first)
    assert kept[1][2] == written(answer)
