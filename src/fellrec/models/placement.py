"""Where the frozen tensors of a base live, and how their values are written.

Three choices, all of them about the base alone. Device: the CPU, where one machine gives the same
to the last bit each time, or an accelerator. Precision: float32, or bf16 for half the memory.
Quantisation: the linear layers of the blocks in 8 or 4 bits, by `bitsandbytes`.

Adapters, whatever else is trained, and all that crosses a cut stay float32: a stage takes float32
in, computes in the precision of its base, and hands float32 out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fellrec.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
Quantize = Literal["none", "8bit", "4bit"]

DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_CPU = torch.device("cpu")
_BLOCK = 64  # weights that share a scale in 4 bits


@dataclass(frozen=True)
class Placement:
    """device: where a stage computes. dtype: of its frozen floating-point tensors, and of what it
    computes. quantize: how the linear layers of its blocks are kept.
    """

    device: torch.device = _CPU
    dtype: torch.dtype = torch.float32
    quantize: Quantize = "none"


HERE = Placement()
"""The CPU, in float32."""


def placement(device: Device, precision: Precision, quantize: Quantize) -> Placement:
    """Resolve settings on this machine; "auto" is an accelerator where torch sees one.

    Raises ConfigError for an accelerator that is not there, and for quantisation without one or
    without `bitsandbytes`.
    """
    return resolve(
        device,
        precision,
        quantize,
        accelerator=torch.cuda.is_available(),
        bitsandbytes=find_spec("bitsandbytes") is not None,
    )


def device_name(device: Device) -> str:
    """Return what a setting means on this machine: "cpu", or what the accelerator is called."""
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return str(torch.cuda.get_device_name())


def resolve(
    device: Device,
    precision: Precision,
    quantize: Quantize,
    *,
    accelerator: bool,
    bitsandbytes: bool,
) -> Placement:
    """Resolve settings for a machine that has these. Raises as `placement` does."""
    if device == "cuda" and not accelerator:
        raise ConfigError(
            'model.device: torch sees no accelerator; use "cpu", or a build of torch for yours'
        )
    if quantize != "none":
        if device == "cpu" or not accelerator:
            raise ConfigError(
                f'model.quantize: "{quantize}" needs an accelerator; use "none", or model.device = '
                '"cuda" on a machine with one'
            )
        if not bitsandbytes:
            raise ConfigError(
                f'model.quantize: "{quantize}" needs bitsandbytes; run '
                "pip install 'fellrec[gpu]', or use \"none\""
            )
    return Placement(
        torch.device("cuda" if accelerator and device != "cpu" else "cpu"),
        DTYPES[precision],
        quantize,
    )


def quantise(body: nn.Module, layers: str, place: Placement) -> None:
    """Put the linear layers below the path `layers` into 8 or 4 bits, and move `body` there.

    bitsandbytes quantises a weight on its way to the device.
    """
    bnb: Any = import_module("bitsandbytes")
    blocks = body.get_submodule(layers)
    for path, linear in _linears(blocks):
        bias = linear.bias is not None
        smaller: nn.Module
        if place.quantize == "8bit":
            smaller = bnb.nn.Linear8bitLt(
                linear.in_features, linear.out_features, bias, has_fp16_weights=False
            )
            weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False)
        else:
            smaller = bnb.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias,
                compute_dtype=place.dtype,
                compress_statistics=False,
                quant_type="nf4",
            )
            weight = bnb.nn.Params4bit(
                linear.weight.data,
                requires_grad=False,
                blocksize=_BLOCK,
                compress_statistics=False,
                quant_type="nf4",
            )
        smaller.register_parameter("weight", weight)
        smaller.register_parameter("bias", linear.bias)
        blocks.set_submodule(path, smaller)
    # How peft knows which of its layers to put around them.
    setattr(body, f"is_loaded_in_{place.quantize}", True)
    body.to(place.device)


def quantised_modules(body: nn.Module) -> list[nn.Module]:
    """Return the modules below `body` whose weights are in 8 or 4 bits."""
    return [module for module in body.modules() if _scales(module) is not None]


def tensor_size(tensor: Tensor, owner: nn.Module) -> tuple[int, int]:
    """Count the parameters of a tensor of a module, and the bytes that it takes: of a quantised
    weight its scales' too.
    """
    count, size = tensor.numel(), tensor.numel() * tensor.element_size()
    scales = _scales(owner)
    if scales is None or tensor is not owner.get_parameter("weight"):  # its bias is as it was
        return count, size
    state = getattr(tensor, "quant_state", None)
    whole = count if state is None else int(state.shape.numel())
    return whole, size + scales.numel() * scales.element_size()


def quantised_saving(body: nn.Module, layers: str, quantize: Quantize, dtype: torch.dtype) -> int:
    """Return by how many bytes `quantise` makes a body of `dtype` smaller, by its shapes."""
    saved = 0
    for _, linear in _linears(body.get_submodule(layers)):
        count, rows = linear.weight.numel(), linear.out_features
        scales = rows if quantize == "8bit" else -(-count // _BLOCK)
        packed = count if quantize == "8bit" else (count + 1) // 2
        saved += count * dtype.itemsize - packed - 4 * scales
    return saved


def _linears(blocks: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The frozen linear layers: an adapter's factors are linear layers, too."""
    return [
        (path, module)
        for path, module in blocks.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in path
    ]


def _scales(module: nn.Module) -> Tensor | None:
    """The scales of a module's quantised weight; None where it has none.

    In 4 bits they are with the weight; in 8, from the first use on, in the module's state.
    """
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is None:  # peft's layers show the weight of the one that they stand around
        return None
    for holder, name in (
        (getattr(weight, "quant_state", None), "absmax"),
        (weight, "SCB"),
        (getattr(module, "state", None), "SCB"),
    ):
        scales = getattr(holder, name, None)
        if isinstance(scales, Tensor):
            return scales
    return None
