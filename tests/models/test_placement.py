"""Where a base lives and in which precision: what comes out is the same model, split or whole.

On a machine with an accelerator everything here runs on it as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fellrec.errors import ConfigError
from fellrec.federation.sizes import held
from fellrec.models.adapters import LoraSettings, adapter, attach
from fellrec.models.cutting import build_stage, outline_stage
from fellrec.models.optimiser import Optimiser, OptimiserSettings
from fellrec.models.placement import DTYPES, Placement, placement, resolve, tensor_size
from fellrec.models.slicing import spans
from fellrec.models.stages import Role, Stage
from fellrec.models.weights import MemoryWeights
from fellrec.split.trunk import SessionSettings
from tests.builders import (
    ENCODERS,
    WIDTH,
    connect,
    gradients,
    install,
    layout_of,
    point,
    random_factors,
    random_hidden,
    serve,
    tiny,
)

DEVICES = ["cpu", *[pytest.param("cuda", marks=pytest.mark.gpu)] * torch.cuda.is_available()]
KINDS = ("bert", "roberta", "longformer", "llama", "qwen3", "gemma")
DECODERS = ("llama", "qwen3", "gemma")
CPU = torch.device("cpu")


@pytest.fixture
def one_order() -> Iterator[None]:
    """Have sums run in one order: on an accelerator Longformer's gradients else differ by run."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def placed(
    kind: str, role: Role, device: str, dtype: torch.dtype, *, dropout: float = 0.0
) -> Stage:
    model = tiny(kind)
    span = spans(6, 2, 1)[role]
    stage = build_stage(
        model.config,
        MemoryWeights(model.state_dict()),
        role,
        span,
        causal=kind not in ENCODERS,
        tokens=True,
        dropout=dropout,
        place=Placement(torch.device(device), dtype),
    )
    attach(stage, LoraSettings(rank=3, dropout=dropout), 0)
    install(stage, random_factors(adapter(stage)))
    return stage.train()


def learn(parts: list[Stage], kind: str, *, remote: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Run stages over a batch with padding: outputs at valid positions, and adapters' gradients."""
    layout = layout_of([5, 9, 2])
    hidden = random_hidden(layout)
    point([part.key for part in parts], client="a")
    if remote:
        head, trunk, tail = parts
        factors = {name: p.detach().clone() for name, p in adapter(trunk).items()}
        server = serve(trunk, SessionSettings(), factors=factors)
        there = connect(server)
        there.train()
        outputs = tail(there(head(hidden, layout), layout), layout)
        parts = [head, server._sessions["a"].stage, tail]
    else:
        outputs = hidden
        for part in parts:
            outputs = part(outputs, layout)
    assert outputs.dtype == torch.float32
    packed = layout.pack(outputs)
    weights = random_hidden(layout_of([len(packed)]), seed=1)[0]
    (packed * weights.to(packed.device)).sum().backward()
    found = {name: g for part in parts for name, g in gradients(adapter(part)).items()}
    return packed.detach().cpu(), {name: gradient.cpu() for name, gradient in found.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("one_order")
def test_split_equals_whole_in_any_precision(kind: str, dtype: str, device: str) -> None:
    """What crosses is float32, which holds all of bf16: nothing is lost at a cut."""
    roles: tuple[Role, ...] = ("head", "trunk", "tail")
    own = DTYPES[dtype]  # type: ignore[index]  # one of its own keys
    parts = [placed(kind, role, device, own, dropout=0.2) for role in roles]
    split, theirs = learn(parts, kind, remote=True)
    whole, its = learn([placed(kind, "whole", device, own, dropout=0.2)], kind, remote=False)
    assert theirs.keys() == its.keys()
    if own == torch.bfloat16:
        assert torch.equal(split, whole)
    tolerance = 1e-5 if own == torch.float32 else 2e-2
    torch.testing.assert_close(split, whole, rtol=tolerance, atol=tolerance)
    for name, gradient in its.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(theirs[name], gradient, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_another_place_gives_nearly_the_same(kind: str, dtype: str, device: str) -> None:
    """One block: random ones in a row blow up every last bit."""
    plain, its = learn([placed(kind, "tail", "cpu", torch.float32)], kind, remote=False)
    own = DTYPES[dtype]  # type: ignore[index]  # one of its own keys
    other, theirs = learn([placed(kind, "tail", device, own)], kind, remote=False)
    lost = 1e-5 if own == torch.float32 else 2**-5  # 2**-9 in each of some dozens of operations
    assert float((other - plain).norm()) <= lost * float(plain.norm())
    assert torch.equal(other, plain) is (device == "cpu" and own == torch.float32)
    for name, gradient in its.items():
        assert theirs[name].dtype == torch.float32
        assert float((theirs[name] - gradient).norm()) <= 4 * lost * float(gradient.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_writing_remembers_in_the_bases_precision(dtype: str, device: str) -> None:
    own = DTYPES[dtype]  # type: ignore[index]  # one of its own keys
    stage = placed("llama", "whole", device, own).eval()
    hidden = random_hidden(layout_of([6, 6]))
    with torch.no_grad():
        whole = stage(hidden, layout_of([6, 6]))[:, 3:]
        stage.prefill(hidden[:, :3], layout_of([3, 3], "left"))
        steps = []
        for place in range(3, 6):
            order = torch.tensor([0, 1]).numpy().astype("int32")
            steps.append(stage.extend(hidden[:, place : place + 1], order))
        found = torch.cat(steps, dim=1)
    tolerance = 1e-4 if own == torch.float32 else 0.1
    assert found.dtype == torch.float32
    assert float((found - whole).norm()) <= tolerance * float(whole.norm())
    full = placed("llama", "whole", "cpu", torch.float32)
    assert stage.cache_bytes * 4 == full.cache_bytes * own.itemsize
    keys = stage.cache.blocks.layers[0].update(*[hidden.new_zeros(2, 2, 0, 8)] * 2)[0]  # type: ignore[union-attr]  # it remembers
    assert keys.dtype == own and keys.device.type == device


@pytest.mark.parametrize("device", DEVICES)
def test_moments_are_kept_on_the_cpu_and_go_on_anywhere(device: str) -> None:
    stage = placed("bert", "tail", device, torch.bfloat16)
    layout = layout_of([4])

    def step(state: dict[str, Tensor]) -> dict[str, Tensor]:
        optimiser = Optimiser(adapter(stage), OptimiserSettings())
        optimiser.load(state)
        stage(random_hidden(layout), layout).square().sum().backward()
        optimiser.step(optimiser.squared_norm())
        return optimiser.state()

    first = {key: tensor.clone() for key, tensor in step({}).items()}
    second = step(first)
    assert {tensor.device for tensor in second.values()} == {CPU}
    assert {float(t) for key, t in second.items() if key.startswith("step/")} == {2.0}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_base_takes_its_precision_and_the_adapter_does_not(dtype: str) -> None:
    own = DTYPES[dtype]  # type: ignore[index]  # one of its own keys
    for kind in KINDS:
        stage = placed(kind, "head", "cpu", own)
        assert {p.dtype for p in stage.base_parameters()} == {own}
        assert {p.dtype for p in adapter(stage).values()} == {torch.float32}
        assert stage.embed(torch.tensor([[3, 4]])).dtype == torch.float32
        drawn = placed(kind, "head", "cpu", torch.float32)
        attach(stage, LoraSettings(rank=3), 0)
        attach(drawn, LoraSettings(rank=3), 0)
        for name, factor in adapter(drawn).items():  # whatever the precision, the same start
            assert torch.equal(adapter(stage)[name], factor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_outline_has_the_sizes_and_no_memory(kind: str, dtype: str) -> None:
    own = DTYPES[dtype]  # type: ignore[index]  # one of its own keys
    for role, span in spans(6, 2, 1).items():
        outline = outline_stage(
            tiny(kind).config, role, span, causal=kind not in ENCODERS, tokens=True, dtype=own
        )
        attach(outline, LoraSettings(rank=3), 0)
        assert {t.device.type for t in [*outline.parameters(), *outline.buffers()]} == {"meta"}
        real = placed(kind, role, "cpu", own)
        assert held([outline]) == held([real])
        shapes = {name: (p.shape, p.dtype, p.requires_grad) for name, p in real.named_parameters()}
        assert shapes == {
            name: (p.shape, p.dtype, p.requires_grad) for name, p in outline.named_parameters()
        }


# --- settings -------------------------------------------------------------------------------------


def test_settings_are_resolved_on_this_machine() -> None:
    there = torch.cuda.is_available()
    assert placement("cpu", "fp32", "none") == Placement()
    assert placement("auto", "bf16", "none").device.type == ("cuda" if there else "cpu")
    assert placement("auto", "bf16", "none").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("device", "quantize", "accelerator", "bitsandbytes", "said"),
    [
        ("cuda", "none", False, True, "model.device: torch sees no accelerator"),
        ("auto", "8bit", False, True, 'model.quantize: "8bit" needs an accelerator'),
        ("cpu", "4bit", True, True, 'model.quantize: "4bit" needs an accelerator'),
        ("auto", "4bit", True, False, "needs bitsandbytes; run pip install 'fellrec"),
    ],
)
def test_what_a_machine_lacks_is_one_line(
    device: str, quantize: str, accelerator: bool, bitsandbytes: bool, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(
            device,  # type: ignore[arg-type]  # one of them
            "fp32",
            quantize,  # type: ignore[arg-type]  # one of them
            accelerator=accelerator,
            bitsandbytes=bitsandbytes,
        )
    assert said in str(error.value) and "\n" not in str(error.value)


def test_settings_that_a_machine_has() -> None:
    place = resolve("auto", "bf16", "4bit", accelerator=True, bitsandbytes=True)
    assert place == Placement(torch.device("cuda"), torch.bfloat16, "4bit")
    assert resolve("cpu", "fp32", "none", accelerator=True, bitsandbytes=True) == Placement()


def test_plain_tensors_are_counted_as_they_are() -> None:
    linear = torch.nn.Linear(WIDTH, 3, dtype=torch.bfloat16)
    assert tensor_size(linear.weight, linear) == (3 * WIDTH, 6 * WIDTH)
    assert tensor_size(linear.bias, linear) == (3, 6)
