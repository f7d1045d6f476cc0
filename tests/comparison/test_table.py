"""The figures of a comparison, worked out by hand, and what is refused or left empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fellrec.comparison.plan import Comparison
from fellrec.comparison.rows import Compared, Row
from fellrec.comparison.statistics import Estimate
from fellrec.comparison.table import compare
from fellrec.comparison.terminal import remarks
from fellrec.errors import RunError
from tests.comparison.conftest import TEXT, Results
from tests.comparison.made import cell, compared, description, found

FIGURES = (
    *("of_ceiling", "over_floor", "worst", "worst_over_reference", "worst_over_floor"),
    *("gap", "gap_of_reference", "jain"),
)


def means(row: Row) -> dict[str, float | None]:
    """Return a row's figures, without their intervals."""
    values: Mapping[str, Estimate | None] = {name: getattr(row, name) for name in FIGURES}
    return {name: None if v is None else v.interval.mean for name, v in values.items()}


def row(whole: Compared, label: str) -> Row:
    found = whole.tables[0].row(label)
    assert found is not None
    return found


def test_scores_and_differences(whole: Compared) -> None:
    expected = {"popularity": 0.1, "centralised": 0.55, "local": 0.45, "fedavg": 0.5}
    for label, mean in {**expected, "fellrec": 0.6}.items():
        this = row(whole, label)
        for metric in ("recall@10", "ndcg@10"):
            assert this.overall[metric].interval.mean == pytest.approx(mean)
            if label != "fedavg":
                gain = this.over_reference[metric]
                assert gain.interval.mean == pytest.approx(mean - 0.5)
                assert gain.seeds == pytest.approx((mean - 0.5,) * 2)
    assert row(whole, "fedavg").over_reference == {}
    # Everybody gains 0.1, in each draw: the interval has no width, though scores differ.
    gain = row(whole, "fellrec").over_reference["ndcg@10"]
    assert gain.interval == pytest.approx((0.1, 0.1, 0.1)) and gain.clear


def test_figures_of_clients_by_hand(whole: Compared) -> None:
    """Clients' means: fedavg 0.3, 0.7; local 0.2, 0.7; fellrec 0.4, 0.8; peers by those clients."""
    assert means(row(whole, "fedavg")) == pytest.approx(
        {
            "of_ceiling": 0.5 / 0.55,
            "over_floor": 0.0,  # 0.1 and 0
            "worst": 0.3,
            "worst_over_reference": None,
            "worst_over_floor": 0.1,
            "gap": 0.4 / 0.7,
            "gap_of_reference": None,
            "jain": 1.0**2 / (2 * (0.3**2 + 0.7**2)),
        }
    )
    assert means(row(whole, "fellrec")) == pytest.approx(
        {
            "of_ceiling": 0.6 / 0.55,
            "over_floor": 0.1,  # 0.2 and 0.1
            "worst": 0.4,
            "worst_over_reference": 0.1,
            "worst_over_floor": 0.2,
            "gap": 0.5,
            "gap_of_reference": 0.5 / (0.4 / 0.7),
            "jain": 1.2**2 / (2 * (0.4**2 + 0.8**2)),
        }
    )
    # The worst client gains 0.1 as everybody does, in each draw.
    gain = row(whole, "fellrec").worst_over_reference
    assert gain is not None and gain.interval == pytest.approx((0.1, 0.1, 0.1)) and gain.clear
    # One client that has all users is read by the others' clients: 0.5, 0.6.
    central = means(row(whole, "centralised"))
    assert central["worst"] == pytest.approx(0.5) and central["gap"] == pytest.approx(1 / 6)
    assert central["over_floor"] == pytest.approx(-0.1) and central["of_ceiling"] is None
    # So is a peer: 0, 0.2.
    peer = means(row(whole, "popularity"))
    assert (peer["worst"], peer["gap"]) == pytest.approx((0.0, 1.0))
    assert peer["over_floor"] == pytest.approx(-0.5)
    assert means(row(whole, "local"))["over_floor"] is None


def test_differences_of_scores_alone_are_judged_together(whole: Compared) -> None:
    """What has no draws is judged row by row."""
    fellrec = row(whole, "fellrec")
    assert fellrec.over_reference["ndcg@10"].draws is not None
    for each in (fellrec.worst_over_reference, fellrec.worst_over_floor, fellrec.over_floor):
        assert each is not None and each.draws is None and each.holds


def test_the_gap_by_chance_is_of_all_divisions(whole: Compared) -> None:
    """Three ways to put four users in pairs; fedavg's gaps are 4/7, 2/6 and 0."""
    chance = row(whole, "fedavg").gap_by_chance
    assert chance == pytest.approx((4 / 7 + 2 / 6 + 0) / 3, abs=0.03)


def test_clients_are_those_of_their_seed(whole: Compared) -> None:
    clients = whole.tables[0].clients
    assert [(client.seed, client.name, client.users) for client in clients] == [
        (0, "c0", 2),
        (0, "c1", 2),
        (1, "c0", 2),
        (1, "c1", 2),
    ]
    fedavg = [client.scores["fedavg"].interval.mean for client in clients]
    assert fedavg == pytest.approx([0.3, 0.7, 0.7, 0.3])
    popularity = [client.scores["popularity"].interval.mean for client in clients]
    assert popularity == pytest.approx([0, 0.2, 0.2, 0])
    assert all(list(c.scores) == [r.label for r in whole.tables[0].rows] for c in clients)


def test_whole_and_courses(whole: Compared) -> None:
    assert whole.complete and whole.tables[0].metric == "ndcg@10"
    assert whole.tables[0].data["digest"] == "abc"
    assert row(whole, "popularity").course is None and row(whole, "popularity").peer
    course = row(whole, "fellrec").course
    assert course is not None and course.reached == ((3, 12.0), (3, 12.0))


def test_a_seed_that_disagrees_is_not_clear(comparison: Comparison, results: Results) -> None:
    for seed, change in ((0, 0.5), (1, -0.1)):
        this = results["fellrec", seed]
        assert not isinstance(this, str) and this is not None
        reference = results["fedavg", seed]
        assert not isinstance(reference, str) and reference is not None
        this.scores["ndcg@10"][:] = reference.scores["ndcg@10"] + change
    gain = row(compared(comparison, results), "fellrec").over_reference["ndcg@10"]
    assert gain.interval == pytest.approx((0.2, 0.2, 0.2)) and not gain.clear
    assert gain.seeds == pytest.approx((0.5, -0.1))


def test_a_cell_that_failed_has_no_figure(partly: Compared) -> None:
    failed = next(r for r in partly.tables[0].rows if r.label == "fellrec")
    assert partly.tables[0].row("fellrec") is None and not partly.complete
    assert failed.failures == ((0, "it | diverged"), (1, "it | diverged"))
    assert not failed.cells and not failed.overall and not failed.over_reference
    assert set(means(failed).values()) == {None}
    assert failed.gap_by_chance is None and failed.course is None
    assert all("fellrec" not in client.scores for client in partly.tables[0].clients)


def test_the_rest_is_compared_over_the_seeds_that_are_there(partly: Compared) -> None:
    local = row(partly, "local")
    assert [each.origin["code"] for each in local.cells] == [["now"]]
    assert local.overall["ndcg@10"].seeds == pytest.approx((0.45,))
    assert local.over_reference["ndcg@10"].seeds == pytest.approx((-0.05,))
    fedavg = row(partly, "fedavg")
    assert fedavg.over_floor is not None and len(fedavg.over_floor.seeds) == 1
    assert fedavg.overall["ndcg@10"].seeds == pytest.approx((0.5, 0.5))
    assert fedavg.of_ceiling is None
    missing = next(r for r in partly.tables[0].rows if r.label == "centralised")
    assert missing.missing == (0, 1) and not missing.failures


def test_without_reference_floor_and_ceiling(tmp_path: Path, results: Results) -> None:
    text = TEXT.replace('reference = "fedavg"\n', "").replace('"smoke"', '"demo"')
    plain = description(tmp_path, text.replace("[strategies.local]", "[strategies.alone]"))
    cells = {("alone" if label == "local" else label, s): c for (label, s), c in results.items()}
    cells["centralised", 0] = cells["centralised", 1] = None
    this = compared(plain, cells)
    for label in ("popularity", "alone", "fedavg", "fellrec"):
        kept = {k for k, v in means(row(this, label)).items() if v is not None}
        assert kept == {"worst", "gap", "jain"} and not row(this, label).over_reference
    course = row(this, "fellrec").course
    assert course is not None and course.reached == (None, None)


def test_without_clients_there_are_no_figures_of_them(
    comparison: Comparison, results: Results
) -> None:
    kept = {k: v for k, v in results.items() if k[0] in ("popularity", "centralised")}
    this = compared(comparison, kept)
    assert means(row(this, "centralised")) == dict.fromkeys(FIGURES)
    assert not this.tables[0].clients and row(this, "popularity").gap_by_chance is None
    assert row(this, "popularity").of_ceiling is not None
    nothing = compared(comparison, {})
    assert not nothing.complete and not nothing.tables[0].data
    assert all(not each.cells and each.missing == (0, 1) for each in nothing.tables[0].rows)


def test_scores_of_zero_give_no_quotient(comparison: Comparison, results: Results) -> None:
    for (label, _), each in results.items():
        if label in ("centralised", "fedavg") and each is not None and not isinstance(each, str):
            each.scores["ndcg@10"][:] = 0
    this = compared(comparison, results)
    assert row(this, "fellrec").of_ceiling is None  # a quotient by 0
    assert row(this, "fellrec").gap_of_reference is None
    assert means(row(this, "fedavg"))["gap"] == 0 and means(row(this, "fedavg"))["jain"] == 1


@pytest.mark.parametrize("key", ["dataset", "split", "digest"])
@pytest.mark.parametrize("other", [("fellrec", 0), ("popularity", 0), ("fellrec", 1)])
def test_unlike_data_are_refused(
    comparison: Comparison, results: Results, key: str, other: tuple[str, int]
) -> None:
    """Across seeds as well: they draw clients and batches, not data."""
    label, seed = other
    planned = next(c for c in comparison.cells if (c.label, c.seed) == other)
    whose = None if label == "popularity" else [0, 0, 1, 1]
    results[label, seed] = cell(planned, [0.5] * 4, whose, data={key: "another"})
    with pytest.raises(RunError, match=rf"can't be compared: {key} .* differ") as error:
        compared(comparison, results)
    assert planned.name in str(error.value) and "\n" not in str(error.value)


def test_unlike_users_are_refused(comparison: Comparison, results: Results) -> None:
    """Also where the first cell is a peer's, which scores everybody."""
    planned = next(c for c in comparison.cells if (c.label, c.seed) == ("fellrec", 0))
    results["fellrec", 0] = cell(planned, [0.5] * 3, [0, 0, 1], rows=[0, 1, 3])
    with pytest.raises(RunError, match="they scored different users") as error:
        compared(comparison, results)
    assert planned.name in str(error.value) and "\n" not in str(error.value)
    peer = next(c for c in comparison.cells if c.peer)
    kept: Results = {k: v for k, v in results.items() if k != ("fellrec", 0)}
    kept["popularity", 0] = cell(peer, [0.5] * 3, None, rows=[0, 1, 3])
    with pytest.raises(RunError, match="they scored different users"):
        compared(comparison, kept)


def test_a_peer_is_read_over_the_users_that_the_runs_scored(tmp_path: Path) -> None:
    """Runs may score a sample: what a peer does for others than these is not compared."""
    text = TEXT.replace('"smoke"', '"demo"').replace("[0, 1]", "[0]")
    sampled = description(tmp_path, text)
    results: Results = {}
    for planned in sampled.cells:
        if planned.peer:
            results[planned.label, 0] = cell(planned, [0.2, 1.0, 0.4, 1.0], None)
        elif planned.label in ("local", "fedavg"):
            results[planned.label, 0] = cell(planned, [0.5, 0.5], [0, 1], rows=[0, 2])
    this = compared(sampled, results)
    peer = row(this, "popularity")
    assert peer.overall["ndcg@10"].interval.mean == pytest.approx(0.3)
    assert peer.over_reference["ndcg@10"].interval.mean == pytest.approx(-0.2)
    assert [client.users for client in this.tables[0].clients] == [1, 1]
    low, high = peer.over_reference["ndcg@10"].interval[1:]
    assert (low, high) == pytest.approx((-0.3, -0.1))


def test_seeds_that_draw_their_own_users_may_differ(tmp_path: Path) -> None:
    text = TEXT.replace('"smoke"', '"demo"') + '[set]\n"data.max_users" = 4\n'
    drawn = description(tmp_path, text)
    results: Results = {
        (c.label, c.seed): cell(c, [0.5, 0.7, 0.2, 0.4], [0, 0, 1, 1], data={"digest": f"{c.seed}"})
        for c in drawn.cells
        if c.label in ("local", "fedavg")
    }
    this = row(compared(drawn, results), "local")
    # Other users in either seed: two halve the variance, which the same users twice do not.
    one = row(compared(drawn, {k: v for k, v in results.items() if k[1] == 0}), "local")
    widths = [np.ptp(each.overall["ndcg@10"].interval[1:]) for each in (one, this)]
    assert widths[1] < 0.85 * widths[0]


def test_axes_make_tables_of_their_own(tmp_path: Path) -> None:
    text = (
        'name = "two"\nrecipe = "demo"\nreference = "fedavg"\n'
        '[strategies.local]\n"balance.strategy" = "local"\n'
        '[strategies.fedavg]\n"balance.strategy" = "fedavg"\n'
        '[axes]\n"clients.count" = [2, 3]\n"train.rounds" = [1, 2]\n'
    )
    comparison = description(tmp_path, text)
    outcomes = []
    for planned in comparison.cells:
        point: dict[str, Any] = dict(planned.axes)
        level = 0.1 * point["clients.count"] + 0.01 * point["train.rounds"]
        scores = [level + (planned.label == "fedavg") * 0.05] * 6
        whose = [user % point["clients.count"] for user in range(6)]
        data = {"digest": f"of {point['clients.count']}"}  # tables need not agree
        outcomes.append(found(planned, cell(planned, scores, whose, data=data)))
    this = compare(comparison, outcomes)
    assert [dict(table.axes) for table in this.tables] == [
        {"clients.count": count, "train.rounds": rounds} for count in (2, 3) for rounds in (1, 2)
    ]
    for table in this.tables:
        point = dict(table.axes)
        local = table.row("local")
        assert local is not None and len(table.clients) == point["clients.count"]
        level = 0.1 * point["clients.count"] + 0.01 * point["train.rounds"]
        assert local.overall["ndcg@10"].interval.mean == pytest.approx(level)
        assert local.over_reference["ndcg@10"].interval.mean == pytest.approx(-0.05)


def test_a_row_by_earlier_code_says_so(comparison: Comparison, results: Results) -> None:
    outcomes = [
        found(each, results[each.label, each.seed], current=each.label != "fedavg")
        for each in comparison.cells
    ]
    assert [r.label for r in compare(comparison, outcomes).tables[0].rows if r.old] == ["fedavg"]


def test_a_row_of_vouched_code_names_the_cells_that_showed_it(
    comparison: Comparison, results: Results
) -> None:
    outcomes = [found(each, results[each.label, each.seed]) for each in comparison.cells]
    shown = {("local", 0): ("b",), ("local", 1): ("a", "b"), ("fellrec", 0): ("a", "b")}
    outcomes = [
        replace(each, shown_by=shown.get((each.planned.label, each.planned.seed), ()))
        for each in outcomes
    ]
    this = compare(comparison, outcomes)
    rows = {row.label: row.shown_by for row in this.tables[0].rows}
    assert rows.pop("local") == rows.pop("fellrec") == ("a", "b") and not any(rows.values())
    assert list(remarks(this)) == [
        "made by earlier code that today's gives the same as: local, fellrec (shown by a, b)"
    ]
