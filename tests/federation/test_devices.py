"""Whole runs in bf16 and, where there is one, on an accelerator: trained, split, stored, served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import fellrec
from fellrec.config import RunConfig
from fellrec.federation.runs import train
from fellrec.files import read_tensors
from fellrec.serving.rescore import rescore
from tests.federation.crashes import metrics
from tests.toys import SHOPS, Toys, titles

DEVICES = ["cpu", *[pytest.param("cuda", marks=pytest.mark.gpu)] * torch.cuda.is_available()]
RECOMMENDERS: Mapping[str, dict[str, object]] = {
    "hllm": {},
    "recformer": {"model.recommender": "recformer", "recformer.fixed_after": 1},
    "bigrec": {
        "model.recommender": "bigrec",
        "bigrec.popularity": [0.0, 0.5],
        "evaluation.valid_users": 6,
        "evaluation.test_users": 6,
    },
    "bigrec, ground": {
        "model.recommender": "bigrec",
        "bigrec.decode": "ground",
        "evaluation.valid_users": 3,
        "evaluation.test_users": 3,
    },
}


def recipe(toys: Toys, name: str, overrides: dict[str, object]) -> RunConfig:
    values = {**RECOMMENDERS[name], **overrides}
    if name.startswith("bigrec"):
        values["model.base"] = str(toys.lm)
    return toys.recipe(values)


# In fp32 on the CPU: test_recommenders.py; grounded scores: tests/models/test_conformance.py.
@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", "bf16"),
        *[
            pytest.param("cuda", dtype, marks=pytest.mark.gpu)
            for dtype in ("fp32", "bf16")
            if torch.cuda.is_available()
        ],
    ],
)
@pytest.mark.parametrize("name", RECOMMENDERS)
def test_a_run_is_split_stored_and_served(
    toys: Toys, runs: Path, name: str, dtype: str, device: str
) -> None:
    shared: dict[str, object] = {"model.device": device, "model.dtype": dtype}
    done = train(recipe(toys, name, shared), runs / "split")
    whole = train(recipe(toys, name, {**shared, "model.k_in": 3, "model.k_out": 0}), runs / "whole")
    # After steps whose clipping norm was summed in another order.
    tolerance = 1e-5 if dtype == "fp32" else 1e-2
    for one, other in zip(metrics(done.path), metrics(whole.path), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
    for client in SHOPS:
        for side in ("clients", "server"):
            stored = read_tensors(done.path / side / client / "last_adapter.safetensors")
            assert {t.dtype for t in stored.values()} == {torch.float32}
            assert all(bool(t.isfinite().all()) for t in stored.values())
    run = fellrec.load_run(done.path)
    assert run.config.model.dtype == dtype
    if device == "cpu":
        assert rescore(run).differences == ()
    found = run.client(SHOPS[0]).recommend(titles()[:3], k=5)
    assert len({entry.item for entry in found}) == 5


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_learns_about_what_fp32_learns(toys: Toys, runs: Path, device: str) -> None:
    losses = {}
    for dtype in ("fp32", "bf16"):
        shared: dict[str, object] = {"model.device": device, "model.dtype": dtype}
        lines = metrics(train(recipe(toys, "hllm", shared), runs / dtype).path)
        losses[dtype] = [line["loss"] for line in lines]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]
