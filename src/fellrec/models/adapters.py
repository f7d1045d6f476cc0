"""LoRA on a stage: attach it, read it, write it (with `peft`).

Tensors go by their names in the whole model (`encoder.layer.3….lora_A.weight`), so that head, trunk
and tail together are one adapter of the untouched base. All clients start from the same factors: A
is drawn from a generator keyed by the seed and the tensor's name, B is 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from fellrec.errors import ModelError
from fellrec.models.dropout import StepKey, key_dropouts
from fellrec.models.families import Family
from fellrec.models.stages import Stage


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters: ΔW = alpha / rank · B A on each target module.

    targets: `query-value` (as in the paper), `attention`, `mlp`, or names of modules as the base
    spells them. freeze_a: train B only.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = field(default=("query-value",))
    freeze_a: bool = False


def target_pattern(family: Family, targets: tuple[str, ...]) -> str:
    """Return the regular expression of the module paths that `targets` names."""
    query, _, value, _ = family.attention
    groups = {
        "query-value": (query, value),
        "attention": family.attention,
        "mlp": family.mlp,
    }
    paths: list[str] = []
    for target in targets:
        group = groups.get(target)
        if group:  # Longformer's first position has modules of its own, called the same and global
            paths += [rf"{re.escape(path)}(?:_global)?" for path in group]
        else:
            paths.append(rf"(?:.*\.)?{re.escape(target)}")
    return rf"{re.escape(family.layers)}\.\d+\.(?:{'|'.join(paths)})"


def attach(stage: Stage, settings: LoraSettings, seed: int) -> None:
    """Add trainable factors to a stage, drawn from (seed, name of the tensor).

    A stage of 0 blocks stays as it is. Raises ModelError when no module matches.
    """
    if stage.blocks == 0:
        return
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_pattern(stage.family, settings.targets),
        bias="none",
    )
    try:
        inject_adapter_in_model(config, stage.body)
    except ValueError as error:
        leaves = sorted(
            {
                n.rpartition(".")[2]
                for n, m in stage.body.named_modules()
                if isinstance(m, nn.Linear)
            }
        )
        raise ModelError(
            f"lora.targets {list(settings.targets)} match no module; the base has {leaves}"
        ) from error
    for name, parameter in adapter(stage).items():
        parameter.data = parameter.data.float()  # peft makes them of the base's precision
        with torch.no_grad():
            # Drawn on the CPU, so that the start is the same wherever the stage is.
            parameter.copy_(start_factor(name, parameter.shape, seed))
        if ".lora_A." in name:
            parameter.requires_grad_(not settings.freeze_a)
    key_dropouts(stage.body, stage.key, stage.whole_name)
    stage.to(stage.place.device)  # the new dropout modules' tables, too
    stage.train(stage.body.training)  # what peft adds starts in training mode


def start_factor(name: str, shape: torch.Size, seed: int) -> Tensor:
    """Return what a factor starts as: B as 0; A from U(-1/√in, 1/√in), as peft's (Kaiming, a = √5).

    It depends on seed, name and shape alone: whoever knows these need not hold the base.
    """
    if ".lora_A." not in name:
        return torch.zeros(shape)
    bound = 1 / math.sqrt(shape[1])
    generator = StepKey(seed=seed).generator("init", name)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def start(stage: Stage, seed: int) -> dict[str, Tensor]:
    """Return what a stage's adapter starts as; the stage may be shapes without values."""
    return {name: start_factor(name, each.shape, seed) for name, each in adapter(stage).items()}


def adapter(stage: Stage) -> dict[str, nn.Parameter]:
    """Return the LoRA factors of a stage by whole-model name: A (r, in), B (out, r), float32."""
    return {
        stage.whole_name(name).replace(".default.", "."): parameter
        for name, parameter in stage.body.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def take_turns(factors: Mapping[str, nn.Parameter], round: int) -> None:
    """Train one half of each adapter and hold the other: B in even rounds, A in odd ones.

    Chen et al. 2024 (RoLoRA, arXiv 2409.02346): where all clients share A, the average of their B
    is the average of their products exactly, and the other way round. B comes first, since it
    starts at 0 and A learns nothing from it.
    """
    for name, parameter in factors.items():
        parameter.requires_grad_((".lora_A." in name) == bool(round % 2))


def write(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into `parameters`; names and shapes must agree (ModelError otherwise)."""
    if parameters.keys() != tensors.keys():
        odd = sorted(parameters.keys() ^ tensors.keys())
        raise ModelError(f"the adapter's tensors do not fit the stage, first difference: {odd[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if tensors[name].shape != parameter.shape:
                raise ModelError(
                    f"{name} has shape {tuple(tensors[name].shape)}, "
                    f"expected {tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])
