"""The trunk server: sessions, their order, and what is refused; and training across the cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fellrec.data.interactions import Ragged
from fellrec.errors import WireError
from fellrec.models.adapters import LoraSettings, adapter
from fellrec.models.hllm import Hllm
from fellrec.models.optimiser import Optimiser, OptimiserSettings
from fellrec.models.recommender import Batch, Trunk
from fellrec.split.codecs import Codec
from fellrec.split.remote import RemoteTrunk
from fellrec.split.trunk import SessionSettings, TrunkServer
from fellrec.split.wire import Frame, FrameKind, decode_frame, encode_frame
from tests.builders import (
    WIDTH,
    LocalTrunk,
    connect,
    install,
    layout_of,
    point,
    random_factors,
    random_hidden,
    stage_of,
    tiny,
    tiny_hllm,
)

LORA = LoraSettings(rank=4, alpha=8, dropout=0.2)
LIMIT = 1 << 16


@pytest.fixture
def server() -> TrunkServer:
    trunk = stage_of(tiny("bert", 3), "trunk", 1, 1, dropout=0.2, lora=LORA)
    install(trunk, random_factors(adapter(trunk)))
    settings = SessionSettings(
        seed=3, optimiser=OptimiserSettings(0.01), micro_batches=2, max_bytes=LIMIT
    )
    server = TrunkServer(trunk, settings)
    for client in ("a", "b"):
        server.open(client, 4)
    return server


def forward(**changes: object) -> Frame:
    fields: dict[str, object] = {
        "kind": FrameKind.FORWARD,
        "client": "a",
        "round": 4,
        "training": True,
        "lengths": np.array([2, 1], np.int32),
        "tensor": torch.ones(3, WIDTH),
    }
    return Frame(**(fields | changes))  # type: ignore[arg-type]  # fields of different types


def gradient(**changes: object) -> Frame:
    fields: dict[str, object] = {
        "kind": FrameKind.GRADIENT,
        "client": "a",
        "round": 4,
        "training": True,
        "tensor": torch.ones(3, WIDTH),
    }
    return Frame(**(fields | changes))  # type: ignore[arg-type]  # fields of different types


def norm(**changes: object) -> Frame:
    fields: dict[str, object] = {"kind": FrameKind.NORM, "client": "a", "round": 4, "scalar": 1.0}
    return Frame(**(fields | changes))  # type: ignore[arg-type]  # fields of different types


def ask(server: TrunkServer, frame: Frame | bytes) -> Frame:
    data = frame if isinstance(frame, bytes) else encode_frame(frame)
    return decode_frame(server.handle(data), max_bytes=1 << 24)


def factors_of(server: TrunkServer, client: str) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in adapter(server._sessions[client].stage).items()}


STEP = (forward(), gradient(), norm())
VIOLATIONS: dict[str, tuple[tuple[Frame, ...], Frame, str]] = {
    "wrong round": ((), forward(round=5), "round 5 in a session of 4"),
    "a later step": ((), forward(step=1), r"step 1\.0 came, 0\.0 was next"),
    "a step again": (STEP, forward(), r"step 0\.0 came, 1\.0 was next"),
    "a micro-batch left out": ((), forward(micro=1), r"0\.1 came, 0\.0 was next"),
    "a micro-batch again": ((forward(),), forward(), r"0\.0 came, 0\.1 was next"),
    "too many micro-batches": (
        (forward(), forward(micro=1)),
        forward(micro=2),
        "more than 2 micro-batches",
    ),
    "a gradient of nothing": ((), gradient(), r"gradient of step 0\.0"),
    "a gradient again": ((forward(), gradient()), gradient(), r"gradient of step 0\.0"),
    "another step's gradient": ((forward(),), gradient(step=1), r"gradient of step 1\.0"),
    "another micro-batch's gradient": ((forward(),), gradient(micro=1), r"gradient of step 0\.1"),
    "a gradient of another shape": (
        (forward(),),
        gradient(tensor=torch.ones(2, WIDTH)),
        "does not fit",
    ),
    "a step without a gradient": ((forward(),), norm(), "gradients are missing"),
    "a step with one gradient of two": (
        (forward(), forward(micro=1), gradient(micro=1)),
        norm(),
        "gradients are missing",
    ),
    "a step of nothing": ((), norm(), "gradients are missing"),
    "another step's norm": ((forward(), gradient()), norm(step=1), "step 1 can't end"),
    "another width": (
        (),
        forward(tensor=torch.ones(3, WIDTH + 1)),
        "33 channels, the trunk has 32",
    ),
    "positions": ((), forward(positions=np.zeros(2, np.int32)), "reads whole texts"),
    "beams": ((), forward(beams=np.zeros(2, np.int32)), "a training frame reads whole texts"),
    "padding that passes the limit": (
        (),
        # 40 + 99 rows of activations fit into 64 KiB; 100 rows of 40 positions do not.
        forward(lengths=np.array([40, *[1] * 99], np.int32), tensor=torch.ones(139, WIDTH)),
        "max_frame_mib",
    ),
    "more positions than the base has": (
        (),
        forward(lengths=np.array([41], np.int32), tensor=torch.ones(41, WIDTH)),
        "41 positions, the base has 40",
    ),
    "a kind that only a server sends": (
        (),
        Frame(FrameKind.OUTPUT, "a", 4, tensor=torch.ones(1, WIDTH)),
        "OUTPUT frame is not for the server",
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_ends_its_session_and_no_other(server: TrunkServer, name: str) -> None:
    before, wrong, reason = VIOLATIONS[name]
    for frame in before:
        assert ask(server, frame).kind is not FrameKind.ERROR
    ask(server, forward(client="b"))  # another client is in the middle of a step
    reply = ask(server, wrong)
    assert reply.kind is FrameKind.ERROR
    assert reply.client == "a"
    with pytest.raises(WireError, match=reason):
        raise WireError(reply.message)
    assert "no open session" in ask(server, forward()).message
    untouched = factors_of(server, "b")
    assert ask(server, gradient(client="b")).kind is FrameKind.INPUT_GRADIENT
    assert ask(server, norm(client="b")).kind is FrameKind.NORM
    learned = factors_of(server, "b")
    assert any(not torch.equal(learned[n], t) for n, t in untouched.items())


def test_an_unknown_client(server: TrunkServer) -> None:
    reply = ask(server, forward(client="c"))
    assert reply.kind is FrameKind.ERROR
    assert "client 'c' has no open session" in reply.message
    assert ask(server, forward()).kind is FrameKind.OUTPUT


@pytest.mark.parametrize("data", [b"", b"nonsense", b"FLRC" + bytes(40), bytes(LIMIT + 1)])
def test_what_is_no_frame_harms_nobody(server: TrunkServer, data: bytes) -> None:
    assert ask(server, data).kind is FrameKind.ERROR
    for client in ("a", "b"):
        assert ask(server, forward(client=client)).kind is FrameKind.OUTPUT


def test_a_frame_too_large_names_the_limit(server: TrunkServer) -> None:
    rows = LIMIT // (4 * WIDTH) + 1
    frame = forward(lengths=np.ones(rows, np.int32), tensor=torch.ones(rows, WIDTH))
    assert "max_frame_mib" in ask(server, frame).message
    small = forward(lengths=frame.lengths, tensor=frame.tensor, codec=Codec.INT8)
    assert len(encode_frame(small)) < LIMIT  # small on the wire, too large once it is decoded
    assert str(LIMIT) in ask(server, small).message


def test_a_value_that_is_no_number(server: TrunkServer) -> None:
    data = bytearray(encode_frame(forward()))
    data[-4:] = b"\x00\x00\xc0\x7f"  # the last value becomes NaN
    before = factors_of(server, "a")
    assert "NaN" in ask(server, bytes(data)).message
    assert all(torch.equal(factors_of(server, "b")[n], t) for n, t in before.items())


def step_frames(client: str, step: int) -> Iterator[Frame]:
    tensor = random_hidden(layout_of([3]), seed=step + (10 if client == "b" else 0))[0]
    yield forward(client=client, step=step, tensor=tensor)
    yield gradient(client=client, step=step, tensor=tensor.flip(0))
    yield norm(client=client, step=step)


def test_interleaved_clients_are_as_one_after_the_other() -> None:
    def run(interleaved: bool) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        trunk = stage_of(tiny("bert", 3), "trunk", 1, 1, dropout=0.2, lora=LORA)
        server = TrunkServer(trunk, SessionSettings(seed=1))
        server.open("a", 4)
        server.open("b", 4)
        streams = [[f for s in range(3) for f in step_frames(c, s)] for c in ("a", "b")]
        if interleaved:
            frames = [frame for pair in zip(*streams, strict=True) for frame in pair]
        else:
            frames = streams[0] + streams[1]
        for frame in frames:
            assert ask(server, frame).kind is not FrameKind.ERROR
        return [server.close(client)[:2] for client in ("a", "b")]

    for one, other in zip(run(True), run(False), strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    a, b = (factors for factors, _ in run(True))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_serving_between_training_frames_changes_nothing(server: TrunkServer) -> None:
    serving = forward(training=False, step=77, micro=9, tensor=torch.full((3, WIDTH), 2.0))

    def run(disturbed: bool) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        server.open("a", 4)
        replies = []
        for frame in (frame for step in range(2) for frame in step_frames("a", step)):
            replies.append(ask(server, frame).tensor)
            if disturbed:
                assert ask(server, serving).kind is FrameKind.OUTPUT
        return replies, factors_of(server, "a")

    (replies, factors), (undisturbed, expected) = run(True), run(False)
    for mine, other in zip(replies, undisturbed, strict=True):
        assert mine is other is None or (
            mine is not None and other is not None and torch.equal(mine, other)
        )
    assert all(torch.equal(factors[name], tensor) for name, tensor in expected.items())


def fields(frame: Frame) -> dict[str, object]:
    return {name: getattr(frame, name) for name in Frame.__dataclass_fields__}


def test_serving_has_no_dropout_and_training_has(server: TrunkServer) -> None:
    served = [ask(server, forward(training=False)).tensor for _ in range(2)]
    trained = ask(server, forward()).tensor
    assert served[0] is not None and served[1] is not None and trained is not None
    assert torch.equal(served[0], served[1])
    assert not torch.allclose(served[0], trained)


def test_a_session_starts_from_what_it_is_given_and_leaves_the_base_alone() -> None:
    trunk = stage_of(tiny("bert", 3), "trunk", 1, 1, lora=LORA)
    server = TrunkServer(trunk, SessionSettings())
    initial = {name: t.clone() for name, t in server.initial().items()}
    server.open("a", 0)
    assert all(torch.equal(factors_of(server, "a")[n], t) for n, t in initial.items())
    for frame in step_frames("a", 0):
        ask(server, Frame(**{**fields(frame), "round": 0}))  # type: ignore[arg-type]  # all fields
    factors, moments, seconds = server.close("a")
    assert seconds > 0
    assert any(not torch.equal(factors[n], t) for n, t in initial.items())
    assert all(torch.equal(server.initial()[n], t) for n, t in initial.items())
    server.open("a", 1, factors, moments)
    session = server._sessions["a"]
    assert all(torch.equal(t, factors[n]) for n, t in factors_of(server, "a").items())
    state = session.optimiser.state()
    assert state.keys() == moments.keys() != set()
    assert all(torch.equal(t, moments[k]) for k, t in state.items())
    server.drop("a")
    server.drop("a")
    assert "no open session" in ask(server, forward(round=1)).message


# --- training across the cut ----------------------------------------------------------------------


def cycle(users: int = 24, items: int = 12, seed: int = 0) -> Ragged:
    """Histories that a model can learn: each item is followed by the next one of a ring."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(items, size=users), rng.integers(3, 7, size=users)
    return Ragged.from_rows(
        [(s + np.arange(n)) % items for s, n in zip(starts, lengths, strict=True)]
    )


def train(
    recommender: Hllm,
    trunk: Trunk,
    optimiser: Optimiser,
    epochs: int,
    micro: int = 1,
    after: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Train as a client does; return each epoch's mean loss."""
    recommender.train()
    trunk.train()
    losses, step = [], 0
    for epoch in range(epochs):
        sums, targets = 0.0, 0
        batches = recommender.training_batches(cycle(), 8, 1, np.random.default_rng(epoch))
        for batch in batches:
            for number, part in enumerate(batch.micro(micro)):
                for key in (recommender.head.key, recommender.tail.key, trunk.key):
                    key.step, key.micro = step, number
                loss = recommender.loss(trunk, part) / len(batch.targets)
                loss.backward()
                sums += float(loss.detach()) * len(batch.targets)
            norm = optimiser.squared_norm()
            optimiser.step(norm + trunk.end_step(norm))
            targets += len(batch.targets)
            after(step)
            step += 1
        losses.append(sums / targets)
    return losses


def trained(recommender: Hllm) -> dict[str, nn.Parameter]:
    return {name: parameter for name, (_, parameter) in recommender.trained().items()}


def split_model(
    settings: OptimiserSettings, *, dropout: float, codec: Codec = Codec.FP32, micro: int = 1
) -> tuple[Hllm, RemoteTrunk, TrunkServer]:
    recommender, stage = tiny_hllm(dropout=dropout)
    server = TrunkServer(stage, SessionSettings(2, settings, micro))
    server.open("a", 1)
    remote = connect(server, "a", 1, codec)
    point([recommender.head.key, recommender.tail.key, remote.key], client="a", seed=2, round=1)
    return recommender, remote, server


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_split_training_equals_whole_training_step_by_step(dropout: float) -> None:
    settings = OptimiserSettings(learning_rate=1e-3, clip=0.05)
    mine, remote, server = split_model(settings, dropout=dropout)
    history: list[dict[str, Tensor]] = []

    def snapshot(step: int) -> None:
        own = {name: p.detach().clone() for name, p in trained(mine).items()}
        history.append(own | factors_of(server, "a"))

    train(mine, remote, Optimiser(trained(mine), settings), 2, after=snapshot)

    whole, stage = tiny_hllm(dropout=dropout)
    point([whole.head.key, whole.tail.key, stage.key], client="a", seed=2, round=1)
    everything = trained(whole) | adapter(stage)
    assert history[0].keys() == everything.keys()
    reference = torch.optim.AdamW(everything.values(), lr=1e-3, weight_decay=0.01)
    clipped = []

    class Union(Optimiser):
        """One AdamW of torch's own over the union, clipped by torch."""

        def step(self, squared_norm: float) -> None:
            total = nn.utils.clip_grad_norm_(everything.values(), settings.clip)
            clipped.append(float(total) > settings.clip)
            reference.step()
            reference.zero_grad()

    def compare(step: int) -> None:
        for name, tensor in everything.items():
            found = history[step][name]
            assert torch.allclose(found, tensor, rtol=0, atol=1e-6), f"step {step}, {name}"

    train(whole, LocalTrunk(stage), Union({}, settings), 2, after=compare)
    assert all(clipped) and len(clipped) == len(history) == 6


@pytest.mark.parametrize("micro", [2, 3, 8])
def test_micro_batches_add_up_to_the_batch(micro: int) -> None:
    settings = OptimiserSettings(learning_rate=1e-3)
    norms, found = [], []
    for count in (1, micro):
        recommender, remote, server = split_model(settings, dropout=0.0, micro=count)
        batch = recommender.training_batches(cycle(), 8, 1, np.random.default_rng(0))[0]
        recommender.train()
        remote.train()
        for number, part in enumerate(batch.micro(count)):
            remote.key.micro = number
            loss = recommender.loss(remote, part) / len(batch.targets)
            loss.backward()
        own = trained(recommender) | adapter(server._sessions["a"].stage)
        found.append({n: p.grad.clone() for n, p in own.items() if p.grad is not None})
        norms.append(remote.end_step(1.0))
    assert found[0].keys() == found[1].keys()
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole, rtol=1e-4, atol=1e-6)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_int8_learns_as_well_as_fp32() -> None:
    settings = OptimiserSettings(learning_rate=5e-3)
    losses = {}
    for codec in (Codec.FP32, Codec.BF16, Codec.INT8):
        recommender, remote, _ = split_model(settings, dropout=0.0, codec=codec)
        losses[codec] = train(recommender, remote, Optimiser(trained(recommender), settings), 8)
    assert losses[Codec.FP32][-1] < 0.8 * losses[Codec.FP32][0]
    for codec in (Codec.BF16, Codec.INT8):
        assert losses[codec][-1] == pytest.approx(losses[Codec.FP32][-1], rel=0.01)
        assert losses[codec] != losses[Codec.FP32]


def test_scores_across_the_cut_are_the_whole_models() -> None:
    recommender, remote, server = split_model(OptimiserSettings(), dropout=0.2)
    twin, stage = tiny_hllm(dropout=0.2)
    for part in (recommender, remote, twin, stage):
        part.eval()
    for model, trunk in ((recommender, remote), (twin, LocalTrunk(stage))):
        model.begin_serving(trunk, cycle())
    batch: Batch = next(iter(recommender.serving_batches(cycle(), 8)))
    assert torch.allclose(
        recommender.score(remote, batch, 3),
        twin.score(LocalTrunk(stage).eval(), batch, 3),
        atol=1e-5,
    )
    assert server.base is not stage
