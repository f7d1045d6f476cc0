"""What the command line shows, apart from any command."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from fellrec import console as show
from fellrec.balance import Spread
from fellrec.federation.client import TrainReport
from fellrec.federation.observer import RoundRecord
from fellrec.progress import LineProgress
from fellrec.serving.ranking import Recommendation
from fellrec.serving.samples import HeldOut, Sample


def rendered(renderable: object, width: int = 80) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False, emoji=False)
    console.print(renderable)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def record(
    losses: dict[str, float],
    before: dict[str, float | None],
    valid: dict[str, float],
    *,
    active: bool = True,
) -> RoundRecord:
    """Return a round in which client number i had 10 (i + 1) examples and warmth i / 10."""
    return RoundRecord(
        round=2,
        reports={
            name: TrainReport(loss, 10 * (i + 1), 40, 1, 1.0, 0.5)
            for i, (name, loss) in enumerate(losses.items())
        },
        warmth={name: i / 10 for i, name in enumerate(losses)},
        spread=Spread(0.1, 0.25, 0.5, active),
        before=before,
        valid=valid,
        dropped=dict.fromkeys(losses, 0.0),
        failed={},
        server_seconds=dict.fromkeys(losses, 0.1),
        seconds=12.34,
    )


def test_a_round_gives_weighted_means() -> None:
    it = record({"a": 1.0, "b": 4.0}, {"a": 0.1, "b": 0.4}, {"a": 0.2, "b": 0.6})
    parts = show.round_parts(it, 5, "ndcg@10", {"a": 30, "b": 10})
    assert parts == [
        "round 3/5",
        "loss 3.000",  # (10 * 1 + 20 * 4) / 30: by examples
        "valid ndcg@10 0.1750 -> 0.3000",  # (30 * .1 + 10 * .4) / 40, (30 * .2 + 10 * .6) / 40
        "12.3 s",
        "attention 0.1000 0.2500 0.5000",
        "warmth a 0.00  b 0.10",
    ]


def test_a_round_without_some_scores() -> None:
    it = record(
        {"a": 1.0, "b": 1.0}, {"a": None, "b": None}, {"a": math.nan, "b": 0.5}, active=False
    )
    parts = show.round_parts(it, 5, "recall@5", {"a": 30, "b": 10})
    assert parts[2] == "valid recall@5 0.5000"  # nothing before mixing; a has no targets
    assert parts[4] == "attention inactive (0.1000 0.2500 0.5000)"
    nothing = record({"a": 1.0}, {"a": None}, {"a": math.nan})
    assert show.round_parts(nothing, 5, "recall@5", {"a": 30})[2] == "valid recall@5 -"


def test_many_clients_are_summed_up() -> None:
    names = [f"c{i}" for i in range(40)]
    flat = dict.fromkeys(names, 1.0)
    parts = show.round_parts(
        record(flat, dict.fromkeys(names), flat), 5, "ndcg@10", dict.fromkeys(names, 1)
    )
    assert parts[-1] == "warmth 0.00 .. 3.90 (40 clients)"
    rows = [{"client": n, "users": 1, "interactions": 5, "share": 0.025} for n in names]
    assert rendered(show.client_table(rows, 3))[-2:] == [
        "and 20 more clients",
        "3 users left out: too few interactions to test",
    ]


def test_lines_are_not_wrapped_in_a_file() -> None:
    file = io.StringIO()
    console = Console(file=file, width=40, markup=False, highlight=False)
    watcher = LineProgress(console, "ndcg@10")
    watcher.clients([{"client": "a", "users": 3, "interactions": 30, "share": 1.0}], 0)
    watcher.round_begins(2, 5, ["a"])
    watcher.working("item texts", 1, 9)
    watcher.working("item texts", 2, 9)
    watcher.round_ends(record({"a": 1.0}, {"a": 0.1}, {"a": 0.2}))
    lines = file.getvalue().splitlines()
    assert lines[-2:] == [
        "preparing item texts (9)",  # once, however often it is told
        "round 3/5   loss 1.000   valid ndcg@10 0.1000 -> 0.2000   12.3 s   "
        "attention 0.1000 0.2500 0.5000   warmth a 0.00",
    ]


SCORES = {f"{name}@{k}": k / 100 for k in (5, 10, 20) for name in ("recall", "ndcg")}


def test_scores_are_sorted_and_missing_ones_marked() -> None:
    clients = [
        {"id": "a", "users": 70, "scored": 7, **SCORES},
        {"id": "b", "users": 5, "scored": 5, **dict.fromkeys(SCORES)},
    ]
    lines = rendered(show.score_table(SCORES, clients, "ndcg@10"))
    assert lines[0].split() == ["Recall"] * 3 + ["NDCG"] * 3
    assert lines[1].split() == ["test", "scores", "users", *["@5", "@10", "@20"] * 2]
    assert lines[3].split() == ["overall", "12", *["0.0500", "0.1000", "0.2000"] * 2]
    assert lines[5].split() == ["b", "5", *["-"] * 6]


def test_many_ks_leave_the_one_that_decides() -> None:
    scores = {f"{name}@{k}": 0.5 for k in range(1, 11) for name in ("recall", "ndcg")}
    lines = rendered(
        show.score_table(scores, [{"id": "a", "users": 7, "scored": 7, **scores}], "recall@3")
    )
    assert lines[1].split()[-2:] == ["@3", "@3"] and "@10" not in lines[1]


@pytest.mark.parametrize("width", [80, 120])
def test_wide_content_stays_within_the_terminal(width: int) -> None:
    long = "A title that goes on and on, as subtitles of films from abroad are known to do " * 2
    sample = Sample(
        "a client with a long name",
        "a user with an even longer id",
        (long, "short"),
        tuple(Recommendation(str(i), long, 1.0) for i in range(5)),
        (HeldOut(long, 2), HeldOut("b", None)),
    )
    for table in (
        show.sample_table([sample], 1682),
        show.recommendation_table(sample.recommended),
        show.recipe_table("recipe", [("name", long)]),
        show.facts([("label", long)]),
    ):
        assert max(map(len, rendered(table, width))) <= width


def test_a_hit_is_marked_at_its_place_only() -> None:
    ranked = tuple(Recommendation(str(i), f"title {i}", 1.0) for i in range(3))
    sample = Sample("c0", "u", ("one",), ranked, (HeldOut("title 1", 2),))
    lines = rendered(show.sample_table([sample], 30), 120)
    assert [line for line in lines if "<- hit" in line] == [lines[3]] and "2 title 1" in lines[3]
    assert any("held out: title 1" in line and "rank 2 of 30" in line for line in lines)


def test_titles_are_neither_markup_nor_control_codes() -> None:
    ranked = [Recommendation("1", "[bold]Se7en[/bold] :smile: \x1b[31mred\x07\r\nnext", 0.5)]
    line = rendered(show.recommendation_table(ranked))[2]
    assert "[bold]Se7en[/bold] :smile: [31mred next" in line and "\x1b" not in line


def test_balance_and_cost_in_words() -> None:
    balance = {
        "metric": "ndcg@10",
        "min": 0.05,
        "max": 0.1,
        "relative_gap": 0.5,
        "std": 0.02,
        "jain": 0.9,
        "relative_gap_by_sampling_alone": 0.4,
    }
    assert show.balance_text(balance) == (
        "ndcg@10 per client from 0.0500 to 0.1000: gap 50% (40% if clients differed by chance "
        "alone), std 0.0200, Jain 0.900"
    )
    assert "chance" not in show.balance_text({**balance, "relative_gap_by_sampling_alone": None})
    cost = {
        "client_parameters": 5_407_489,
        "client_bytes": 21_629_956,
        "server_parameters": 0,
        "server_bytes": 0,
        "bytes_up": 40_826_057,
        "bytes_down": 999,
        "train_seconds": 3.917,
    }
    assert show.cost_text(cost) == (
        "a client holds 5.4 M parameters (21.6 MB), the server 0 (0 bytes); 40.8 MB went up, "
        "999 bytes down; 3.9 s of training"
    )
