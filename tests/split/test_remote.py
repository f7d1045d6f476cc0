"""Split equals whole: the central promise of the split (METHOD section 2)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fellrec.errors import WireError
from fellrec.models.adapters import LoraSettings, adapter
from fellrec.models.cutting import cut
from fellrec.models.layout import Layout, Side
from fellrec.models.slicing import spans
from fellrec.models.stages import Role
from fellrec.split.codecs import Codec
from fellrec.split.transport import InProcessTransport
from fellrec.split.trunk import SessionSettings, TrunkServer
from fellrec.split.wire import Frame, FrameKind, decode_frame, encode_frame
from tests.builders import (
    KINDS,
    LAYERS,
    TARGETS,
    WIDTH,
    connect,
    gradients,
    install,
    layout_of,
    point,
    random_factors,
    random_hidden,
    serve,
    stage_of,
    tiny,
    tiny_config,
)

SEED, ROUND, STEP = 5, 3, 0
MODELS = [("bert", True), ("bert", False), ("roberta", False), ("roberta", True)]
MODELS += [(kind, True) for kind in ("llama", "qwen3", "mistral", "smollm3", "gemma")]
CUTS = [(0, 0), (2, 1), (0, 1), (1, 0), (3, 3), (6, 0)]


@dataclass
class Outcome:
    """What one forward and backward pass gives, on valid positions: packed (total, d)."""

    output: Tensor
    entry: Tensor
    factors: dict[str, Tensor]


def lora_for(kind: str, dropout: float = 0.0) -> LoraSettings:
    return LoraSettings(rank=4, alpha=8, dropout=dropout, targets=TARGETS[kind])


def loss_of(packed: Tensor) -> Tensor:
    """A loss whose gradient differs at every position and channel."""
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(9))
    return (packed.tanh() * weights).sum() / 10


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert torch.allclose(found.output, expected.output, rtol=1e-5, atol=1e-5)
    assert torch.allclose(found.entry, expected.entry, rtol=1e-5, atol=1e-5)
    assert found.factors.keys() == expected.factors.keys()
    for name, gradient in expected.factors.items():
        assert torch.allclose(found.factors[name], gradient, rtol=1e-5, atol=1e-5), name


def run_whole(
    kind: str, causal: bool, layout: Layout, dropout: float, factors_seed: int = 1
) -> tuple[Outcome, dict[str, Tensor]]:
    """Run our own stage that holds all blocks."""
    lora = lora_for(kind, dropout)
    stage = stage_of(tiny(kind), "whole", 0, 0, causal=causal, dropout=dropout, lora=lora)
    factors = random_factors(adapter(stage), factors_seed)
    install(stage, factors)
    point([stage.key], client="a", seed=SEED, round=ROUND, step=STEP)
    stage.train()
    entry = random_hidden(layout).requires_grad_()
    output = layout.pack(stage(entry, layout))
    loss_of(output).backward()
    assert entry.grad is not None
    found = Outcome(output.detach(), layout.pack(entry.grad), gradients(adapter(stage)))
    return found, factors


def run_split(
    kind: str,
    causal: bool,
    layout: Layout,
    dropout: float,
    factors: dict[str, Tensor],
    k_in: int,
    k_out: int,
    codec: Codec = Codec.FP32,
) -> Outcome:
    """Run head, remote trunk (if there is one) and tail."""
    lora = lora_for(kind, dropout)
    model = tiny(kind)
    head, tail = (
        stage_of(model, role, k_in, k_out, causal=causal, dropout=dropout, lora=lora)
        for role in ("head", "tail")
    )
    stages = [head, tail]
    for stage in stages:
        install(stage, factors)
    entry = random_hidden(layout).requires_grad_()
    if spans(LAYERS, k_in, k_out)["trunk"]:
        trunk = stage_of(model, "trunk", k_in, k_out, causal=causal, dropout=dropout, lora=lora)
        own = {name: factors[name] for name in adapter(trunk)}
        server = serve(trunk, SessionSettings(seed=SEED), round=ROUND, factors=own)
        remote = connect(server, "a", ROUND, codec)
        point([head.key, tail.key, remote.key], client="a", seed=SEED, round=ROUND, step=STEP)
        for part in (head, remote, tail):
            part.train()
        output = layout.pack(tail(remote(head(entry, layout), layout), layout))
        stages.append(server._sessions["a"].stage)
    else:
        point([head.key, tail.key], client="a", seed=SEED, round=ROUND, step=STEP)
        head.train()
        tail.train()
        output = layout.pack(tail(head(entry, layout), layout))
    loss_of(output).backward()
    assert entry.grad is not None
    found = {n: g for stage in stages for n, g in gradients(adapter(stage)).items()}
    return Outcome(output.detach(), layout.pack(entry.grad), found)


def run_plain(
    kind: str, causal: bool, lengths: list[int], side: Side, factors: dict[str, Tensor]
) -> Outcome:
    """Run the library's own model with the library's own adapter: nothing of ours in it."""
    model: PreTrainedModel = copy.deepcopy(tiny(kind))
    if kind in ("bert", "roberta") and causal:
        # Built anew: its attention modules read `is_decoder` when they are made.
        config = copy.deepcopy(model.config)
        config.is_decoder = True
        weights = model.state_dict()
        model = AutoModel.from_config(config, add_pooling_layer=False).eval()
        model.load_state_dict(weights)
    targets = "|".join(TARGETS[kind])
    plain = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=rf".*\.({targets})"),
    )
    named = dict(plain.named_parameters())
    trained = {}
    for name, factor in factors.items():
        parameter = named[f"base_model.model.{name.replace('.weight', '.default.weight')}"]
        parameter.data.copy_(factor)
        trained[name] = parameter
    assert len(trained) == sum(p.requires_grad for p in named.values())
    width = max(lengths)
    mask = torch.tensor(
        [
            [0] * (width - n) + [1] * n if side == "left" else [1] * n + [0] * (width - n)
            for n in lengths
        ]
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    options: dict[str, Any] = {"use_cache": False}
    if kind in ("roberta", "longformer"):
        positions = positions + 2  # places count from pad_token_id + 1
    if kind == "longformer":
        first = torch.zeros_like(mask)
        first[:, 0] = 1
        options = {"global_attention_mask": first}
    entry = random_hidden(layout_of(lengths, side)).requires_grad_()
    hidden = plain(
        inputs_embeds=entry, attention_mask=mask, position_ids=positions, **options
    ).last_hidden_state[:, :width]
    output = hidden[mask.bool()]
    loss_of(output).backward()
    assert entry.grad is not None
    return Outcome(output.detach(), entry.grad[mask.bool()], gradients(trained))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kind", "causal"), MODELS)
def test_split_equals_whole(kind: str, causal: bool, side: Side, dropout: float) -> None:
    lengths = [7, 1, 4, 7]
    layout = layout_of(lengths, side)
    whole, factors = run_whole(kind, causal, layout, dropout)
    assert all(gradient.abs().max() > 1e-4 for gradient in whole.factors.values())
    for k_in, k_out in CUTS:
        assert_same(run_split(kind, causal, layout, dropout, factors, k_in, k_out), whole)
    plain = run_plain(kind, causal, lengths, side, factors)
    if dropout:  # the masks did something, so that the comparison above was not of nothing
        assert (plain.output - whole.output).abs().max() > 0.01
    else:
        assert_same(whole, plain)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [[11, 1, 6, 19], [8, 8], [3]])
def test_split_equals_whole_in_windows(lengths: list[int], dropout: float) -> None:
    layout = layout_of(lengths)
    whole, factors = run_whole("longformer", False, layout, dropout)
    assert all(gradient.abs().max() > 1e-4 for gradient in whole.factors.values())
    for k_in, k_out in CUTS:
        found = run_split("longformer", False, layout, dropout, factors, k_in, k_out)
        assert_same(found, whole)
    if not dropout:
        assert_same(whole, run_plain("longformer", False, lengths, "right", factors))


@pytest.mark.parametrize("lengths", [[5, 5, 5], [1], [1, 1], [12]])
def test_split_equals_whole_without_padding(lengths: list[int]) -> None:
    for kind in ("bert", "mistral"):
        layout = layout_of(lengths)
        whole, factors = run_whole(kind, True, layout, 0.0)
        assert_same(run_split(kind, True, layout, 0.0, factors, 2, 1), whole)
        assert_same(whole, run_plain(kind, True, lengths, "right", factors))


def test_a_bidirectional_model_looks_ahead_and_a_causal_one_does_not() -> None:
    layout = layout_of([5])
    changed = random_hidden(layout)
    changed[0, -1, 0] += 5
    for causal in (True, False):
        stage = stage_of(tiny("bert"), "whole", 0, 0, causal=causal).eval()
        same = torch.allclose(
            stage(changed, layout)[0, 0], stage(random_hidden(layout), layout)[0, 0]
        )
        assert same is causal


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_in_the_padding_does_not_matter(side: Side) -> None:
    layout = layout_of([3, 6], side)
    noise = torch.where(layout.valid[..., None], 0.0, 50.0)
    for kind, causal in MODELS:
        stage = stage_of(tiny(kind), "whole", 0, 0, causal=causal).eval()
        clean = layout.pack(stage(random_hidden(layout), layout))
        torch.testing.assert_close(layout.pack(stage(random_hidden(layout) + noise, layout)), clean)


@pytest.mark.parametrize("k_in", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_cut_in_memory_gives_the_models_own_outputs(kind: str, k_in: int) -> None:
    model = tiny(kind)
    parts = cut(model, k_in, 1)
    tokens = torch.randint(2, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    layout = layout_of([6, 6])
    assert parts.trunk is not None
    hidden = parts.head(parts.head.embed(tokens), layout)
    found = parts.tail(parts.trunk(hidden, layout), layout)
    torch.testing.assert_close(found, model(tokens).last_hidden_state)
    assert parts.trunk.causal is (kind not in ("bert", "roberta"))
    own = dict(model.named_parameters())
    for stage in (parts.head, parts.trunk, parts.tail):  # the stages share the model's tensors
        for name, parameter in stage.body.named_parameters():
            assert parameter.data_ptr() == own[stage.whole_name(name)].data_ptr()
    assert all(parameter.requires_grad for parameter in own.values())


def test_cut_takes_a_model_with_an_output_layer() -> None:
    torch.manual_seed(0)
    config = tiny_config("llama")
    assert isinstance(config, LlamaConfig)
    model = LlamaForCausalLM(config).eval()
    parts = cut(model, 6, 0)
    assert parts.trunk is None
    tokens = torch.randint(0, 50, (2, 5))
    layout = layout_of([5, 5])
    hidden = parts.tail(parts.head(parts.head.embed(tokens), layout), layout)
    torch.testing.assert_close(model.lm_head(hidden), model(tokens).logits)


def test_cut_can_turn_an_encoder_into_a_decoder() -> None:
    assert cut(tiny("bert"), 1, 1, causal=True).tail.causal
    decoder = copy.deepcopy(tiny("bert"))
    decoder.config.is_decoder = True
    assert cut(decoder, 1, 1).tail.causal


# --- codecs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "share"), [(Codec.BF16, 0.004), (Codec.FP16, 0.0005), (Codec.INT8, 0.015)]
)
def test_lossy_codecs_stay_near(codec: Codec, share: float) -> None:
    # Values lose up to 2**-9, 2**-12 of themselves, with int8 about 1/250 of the block's largest,
    # twice on the way to the output. Weights as large as these make gradients ten times as touchy.
    layout = layout_of([7, 2, 4])
    whole, factors = run_whole("bert", True, layout, 0.0)
    found = run_split("bert", True, layout, 0.0, factors, 1, 1, codec)
    assert 0 < distance(found.output, whole.output) < share
    errors = [distance(found.factors[name], exact) for name, exact in whole.factors.items()]
    assert 0 < max(*errors, distance(found.entry, whole.entry)) < 20 * share


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


# --- the client's side ----------------------------------------------------------------------------


class Recorder:
    """Keeps what crosses and, if asked to, answers with something else."""

    def __init__(self, inner: InProcessTransport, answer: Frame | None = None) -> None:
        self.inner = inner
        self.answer = answer
        self.sent: list[bytes] = []
        self.received: list[bytes] = []

    def exchange(self, frame: bytes) -> bytes:
        self.sent.append(frame)
        reply = self.inner.exchange(frame) if self.answer is None else encode_frame(self.answer)
        self.received.append(reply)
        return reply


def tiny_trunk_server(micro_batches: int = 1) -> TrunkServer:
    trunk = stage_of(tiny("bert", 3), "trunk", 1, 1, lora=lora_for("bert"))
    return serve(trunk, SessionSettings(micro_batches=micro_batches))


def test_padding_does_not_cross_and_the_ledger_counts_every_byte() -> None:
    server = tiny_trunk_server()
    remote = connect(server)
    recorder = Recorder(InProcessTransport(server))
    remote._transport = recorder
    remote.train()
    layout = layout_of([9, 1, 2])
    hidden = random_hidden(layout).requires_grad_()
    remote(hidden, layout).sum().backward()
    remote.end_step(1.0)
    frames = [decode_frame(f, max_bytes=1 << 20) for f in recorder.sent + recorder.received]
    assert [f.kind for f in frames] == [
        FrameKind.FORWARD,
        FrameKind.GRADIENT,
        FrameKind.NORM,
        FrameKind.OUTPUT,
        FrameKind.INPUT_GRADIENT,
        FrameKind.NORM,
    ]
    assert all(f.tensor.shape == (12, WIDTH) for f in frames if f.tensor is not None)
    by_direction = {"up": 0, "down": 0}
    for row in remote.ledger.rows():
        by_direction[row.direction] += row.bytes
    assert by_direction["up"] == sum(map(len, recorder.sent))
    assert by_direction["down"] == sum(map(len, recorder.received))
    assert remote.seconds > 0


def test_an_answer_that_does_not_fit_is_refused() -> None:
    layout, hidden = layout_of([2, 1]), torch.zeros(2, 2, WIDTH)
    wrong = Frame(FrameKind.OUTPUT, "a", tensor=torch.zeros(4, WIDTH))
    other = Frame(FrameKind.INPUT_GRADIENT, "a", tensor=torch.zeros(3, WIDTH))
    for answer, reason in ((wrong, "does not fit"), (other, "OUTPUT was due")):
        server = tiny_trunk_server()
        remote = connect(server)
        remote._transport = Recorder(InProcessTransport(server), answer)
        with pytest.raises(WireError, match=reason):
            remote(hidden, layout)


def test_the_trunk_learns_even_where_nothing_before_it_does() -> None:
    server = tiny_trunk_server()
    remote = connect(server).train()
    layout = layout_of([3, 2])
    remote(random_hidden(layout), layout).square().sum().backward()
    assert remote.end_step(0.0) > 0


def test_micro_batches_may_wait_for_their_gradients() -> None:
    # Both go forward before the first goes back: each gradient has to name its own micro-batch.
    layout, other = layout_of([3, 2]), layout_of([4])
    norms = []
    for waiting in (False, True):
        server = tiny_trunk_server(micro_batches=2)
        remote = connect(server).train()
        losses = []
        for micro, part in enumerate((layout, other)):
            remote.key.micro = micro
            loss = remote(random_hidden(part).requires_grad_(), part).square().sum()
            if waiting:
                losses.append(loss)
            else:
                loss.backward()
        for loss in losses:
            loss.backward()
        norms.append(remote.end_step(0.0))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_serving_crosses_without_a_gradient() -> None:
    server = tiny_trunk_server()
    remote = connect(server).eval()
    layout = layout_of([3, 2])
    hidden = random_hidden(layout).requires_grad_()
    assert not remote(hidden, layout).requires_grad
    with torch.no_grad():
        remote.train()
        assert not remote(hidden, layout).requires_grad
    assert server._sessions["a"].expected == 0


def test_which_blocks_each_stage_holds() -> None:
    roles: tuple[Role, ...] = ("head", "trunk", "tail", "whole")
    assert [list(spans(6, 2, 1)[role]) for role in roles] == [
        [0, 1], [2, 3, 4], [5], [0, 1, 2, 3, 4, 5],
    ]  # fmt: skip
