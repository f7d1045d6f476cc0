"""Mixing from rows on disk, block by block, is mixing in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import mixing as benchmark
from fellrec.balance import FedAvg, FellRec, Local, Mixture, attention, make_strategy, mix, spread
from fellrec.balance.attention import is_lora
from fellrec.balance.mixing import merge_products, mixture
from fellrec.balance.robust import Trimmer, joint_distances
from fellrec.errors import RunError
from fellrec.federation import rows as rows_module
from fellrec.federation.aggregate import distances, mix_rows, similarity
from fellrec.federation.rows import Rows

SHAPES = {
    "layer.0.q.lora_A.weight": (2, 7),
    "layer.0.q.lora_B.weight": (5, 2),
    "layer.1.q.lora_A.weight": (2, 7),
    "layer.1.q.lora_B.weight": (5, 2),
    "projection": (7, 3),
    "scale": (),
}
BLOCKS = [1, 4 * 12, 4 * 40, 1 << 20]  # bytes of all clients' columns at a time


def updates(clients: int, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        for _ in range(clients)
    ]


def stored(path: Path, values: list[dict[str, Tensor]]) -> Rows:
    rows = Rows(path, len(values), {name: torch.Size(shape) for name, shape in SHAPES.items()})
    for client, update in enumerate(values):
        rows.write_row(client, update)
    return rows


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda size: monkeypatch.setattr(rows_module, "_BLOCK_BYTES", size)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("space", ["factors", "update", "change"])
@pytest.mark.parametrize("clients", [1, 2, 5])
def test_similarity(
    runs: Path, small_blocks: Callable[[int], None], block: int, space: str, clients: int
) -> None:
    small_blocks(block)
    values, before = updates(clients, 0), updates(clients, 1)
    rows, starts = stored(runs / "now", values), stored(runs / "before", before)
    found = similarity(rows, space, starts)  # type: ignore[arg-type]  # a parametrised literal
    wanted = attention(values, space, before)  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    if clients > 1:
        assert not torch.allclose(found[0, 1:], torch.ones(clients - 1, dtype=torch.float64))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("merge", ["factors", "product"])
@pytest.mark.parametrize("clients", [1, 2, 5])
def test_mix(
    runs: Path, small_blocks: Callable[[int], None], block: int, merge: str, clients: int
) -> None:
    small_blocks(block)
    values = updates(clients, 2)
    pull = attention(values)
    warmth = torch.linspace(0, 1, clients, dtype=torch.float64)  # client 0 takes nothing
    weights = mixture(pull, warmth)
    rows, mixed = stored(runs / "now", values), stored(runs / "mixed", updates(clients, 3))
    strategy = FellRec(merge=merge)  # type: ignore[arg-type]
    dropped, reset = mix_rows(rows, mixed, Mixture(weights, warmth, pull, spread(pull)), strategy)
    wanted = mix(values, pull, warmth)
    losses = torch.zeros(clients, dtype=torch.float64)
    if merge == "product":
        for layer in ("layer.0.q", "layer.1.q"):
            a, b = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
            stack_a, stack_b = (torch.stack([v[n] for v in values]) for n in (a, b))
            new_a, new_b, lost = merge_products(stack_a, stack_b, weights)
            losses = torch.maximum(losses, lost)
            for client in range(clients):
                wanted[client][a], wanted[client][b] = new_a[client], new_b[client]
        assert reset == {name for name in SHAPES if ".lora_" in name}
    else:
        assert reset == set()
    assert torch.equal(dropped, losses)
    for client in range(clients):
        got = mixed.read_row(client)
        assert got.keys() == SHAPES.keys()
        for name, value in got.items():
            assert torch.equal(value, wanted[client][name]), name
    for name, value in mixed.read_row(0).items():
        assert torch.equal(value, values[0][name])


@pytest.mark.parametrize("block", BLOCKS)
def test_distances(runs: Path, small_blocks: Callable[[int], None], block: int) -> None:
    small_blocks(block)
    values = updates(5, 0)

    def squares(lora: bool) -> Tensor:
        names = [name for name in SHAPES if is_lora(name) is lora]
        flat = torch.stack([torch.cat([v[n].flatten() for n in names]) for v in values]).double()
        return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()

    found = distances(stored(runs / "now", values))
    torch.testing.assert_close(found, joint_distances([squares(True), squares(False)]))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dense", ["mixture", "average"])
def test_trimmed_mix(
    runs: Path, small_blocks: Callable[[int], None], block: int, dense: str
) -> None:
    small_blocks(block)
    values, clients = updates(5, 2), 5
    pull, warmth = attention(values), torch.linspace(0, 1, clients, dtype=torch.float64)
    others = torch.full((clients, clients), 1 / clients).double() if dense == "average" else None
    weights = mixture(pull, warmth)
    rows, mixed = stored(runs / "now", values), stored(runs / "mixed", updates(clients, 3))
    mixture_ = Mixture(weights, warmth, pull, spread(pull), others)
    mix_rows(rows, mixed, mixture_, FellRec(), trimmed=1)
    for name in SHAPES:
        chosen = weights if others is None or is_lora(name) else others
        wanted = Trimmer(chosen, 1)(torch.stack([value[name] for value in values]))
        assert torch.equal(mixed.read(name), wanted), name


@pytest.mark.parametrize("block", [4 * 150 * 9, 1 << 20])
def test_many_clients(runs: Path, small_blocks: Callable[[int], None], block: int) -> None:
    small_blocks(block)
    clients = 150
    values = updates(clients, 2)
    rows, mixed = stored(runs / "now", values), stored(runs / "mixed", updates(clients, 3))
    pull = similarity(rows, "factors")
    torch.testing.assert_close(pull, attention(values), rtol=1e-12, atol=1e-12)
    warmth = torch.linspace(0, 1, clients, dtype=torch.float64)
    mixture_ = Mixture(mixture(pull, warmth), warmth, pull, spread(pull))
    mix_rows(rows, mixed, mixture_, FellRec())
    wanted = mix(values, pull, warmth)
    for client in range(clients):
        for name, value in mixed.read_row(client).items():
            torch.testing.assert_close(value, wanted[client][name], rtol=1.2e-7, atol=1e-12)
    for name, value in mixed.read_row(0).items():
        assert torch.equal(value, values[0][name])


def test_the_benchmark_agrees_with_the_bare_products(tmp_path: Path) -> None:
    # It stops when the two mixtures differ.
    report = benchmark.run(clients=70, columns=13_000, repeats=2, folder=tmp_path)
    assert report.count("coordinator") == report.count("bare") == 2
    assert "(target 2.0)" in report
    assert "(target 512)" in report


def test_strategies_from_the_recipe() -> None:
    assert make_strategy("local") == Local()
    assert make_strategy("fedavg", weighting="examples") == FedAvg("examples")


@settings(max_examples=40)
@given(
    clients=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    block=st.integers(1, 60),
    data=st.data(),
)
def test_rows_give_back_what_they_got(
    tmp_path_factory: pytest.TempPathFactory,
    clients: int,
    sizes: list[int],
    block: int,
    data: st.DataObject,
) -> None:
    shapes = {f"t{i}": torch.Size((size,)) for i, size in enumerate(sizes)}
    path = tmp_path_factory.mktemp("rows") / "rows.f32"
    rows = Rows(path, clients, shapes)
    order = data.draw(st.permutations(range(clients)))
    total = sum(sizes)
    whole = torch.arange(clients * total, dtype=torch.float32).view(clients, total)
    for client in order:
        parts = whole[client].split(sizes)
        rows.write_row(client, dict(zip(shapes, parts, strict=True)))
    assert torch.equal(rows.read_columns(0, total), whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_BLOCK_BYTES", block)
        covered = [span for name in shapes for span in rows.blocks(name)]
    assert [s for s, _ in covered] == [0, *(e for _, e in covered[:-1])]
    assert covered[-1][1] == total
    for name, (start, stop) in rows.spans.items():
        assert torch.equal(rows.read(name), whole[:, start:stop])
    rows.write("t0", -whole[:, : sizes[0]])
    assert torch.equal(rows.read_row(clients - 1)["t0"], -whole[-1, : sizes[0]])
    rows.remove()
    assert not path.exists()


def test_rows_refuse_what_does_not_fit(runs: Path) -> None:
    rows = stored(runs / "rows", updates(2, 0))
    other = updates(1, 0)[0]
    with pytest.raises(RunError, match="projection"):
        rows.write_row(0, {**other, "projection": torch.zeros(3, 7)})
    with pytest.raises(RunError, match="scale"):
        rows.write_row(0, {name: value for name, value in other.items() if name != "scale"})
    with pytest.raises(RunError, match="more"):
        rows.write_row(0, {**other, "more": torch.zeros(1)})
    with pytest.raises(RunError, match="float64"):
        rows.write_row(0, {**other, "scale": torch.tensor(1.0, dtype=torch.float64)})
    (runs / "rows").write_bytes(b"")
    with pytest.raises(RunError, match="shorter"):
        rows.read_row(0)
    with pytest.raises(RunError, match="shorter"):
        rows.read("projection")


@pytest.mark.parametrize("chosen", [[], [0, 1, 2, 3], [1, 3], [0, 3], [2]])
def test_rows_that_are_kept_close_up(runs: Path, chosen: list[int]) -> None:
    values = updates(4, 4)
    rows = stored(runs / "rows", values)
    rows.keep(chosen)
    assert rows.clients == len(chosen)
    for row, source in enumerate(chosen):
        for name, value in rows.read_row(row).items():
            assert torch.equal(value, values[source][name])


def test_rows_of_clients_that_failed_are_forgotten(runs: Path) -> None:
    values = updates(3, 4)
    rows = stored(runs / "rows", values)
    rows.truncate(2)
    assert rows.read("projection").shape == (2, 7, 3)
    assert torch.equal(rows.read("projection")[1], values[1]["projection"])
