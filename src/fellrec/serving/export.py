"""Join a client's parts into one adapter of the whole, untouched base, in `peft`'s own form."""

from __future__ import annotations

import re
from pathlib import Path

from peft import LoraConfig

from fellrec.data.folders import new_folder
from fellrec.errors import RunError
from fellrec.federation.settings import lora_settings
from fellrec.files import write_tensors
from fellrec.models.adapters import target_pattern
from fellrec.serving.run import Run, RunClient, load_run


def export_adapter(run: Run | str | Path, client: str, path: str | Path) -> Path:
    """Write a client's best adapter so that `PeftModel.from_pretrained(base, path)` loads it.

    The base is the bare model (`AutoModel`), for BIGRec the causal language model.
    `adapter_model.safetensors` holds the LoRA factors of head, trunk and tail under the base
    model's own names; `recommender.safetensors` what else is the recommender's (HLLM: projection,
    scale, item residual; RecFormer: embeddings of places and types, fixed item vectors). Where any
    of it is private the export is as private as the client's folder.

    Raises RunError when `path` exists, or the client's files are missing, damaged or of another
    model.
    """
    target = Path(path)
    if target.exists():
        raise RunError(f"{target} exists already; choose another folder")
    opened = run if isinstance(run, Run) else load_run(run)
    member = opened.client(client)
    with new_folder(target) as partial:
        _write(member, partial)
    return target


def _write(member: RunClient, folder: Path) -> None:
    model, workspace = member.model, member.run.workspace
    tensors = {**model.exchanged, **model.private, **model.trunk}
    under = workspace.recommender.exported_under
    lora = {f"base_model.model.{under}{n}": t for n, t in tensors.items() if ".lora_" in n}
    others = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    write_tensors(folder / "adapter_model.safetensors", lora)
    write_tensors(folder / "recommender.safetensors", others)
    settings = lora_settings(member.run.config)
    LoraConfig(
        base_model_name_or_path=member.run.config.model.base,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=re.escape(under)
        + target_pattern(workspace.recommender.head.family, settings.targets),
        bias="none",
        inference_mode=True,
    ).save_pretrained(str(folder))
