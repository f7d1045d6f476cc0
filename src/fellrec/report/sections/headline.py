"""What a run came to, in a few sentences and four figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fellrec.evaluation.bootstrap import Interval
from fellrec.report import words
from fellrec.report.blocks import Tile, Tiles
from fellrec.report.reading import FinishedRun


def kicker(run: FinishedRun) -> str:
    """Say what was run."""
    summary = run.summary
    parts = [
        f"{summary['recommender']} on {summary['dataset']}",
        f"strategy {summary['strategy']}",
        words.several(summary["rounds"], "round"),
        f"seed {summary['seed']}",
    ]
    return " · ".join(parts)


def lead(run: FinishedRun) -> list[str]:
    """Say how good it is, for whom most and least, and what of that may be chance."""
    return [_how_good(run), *([] if len(run.clients) < 2 else [_how_even(run)])]


def tiles(run: FinishedRun) -> Tiles:
    """Return the figures to remember."""
    cost, balance = run.summary["cost"], run.summary["balance"]
    names = shown_metrics(run)
    found = [
        Tile(
            f"{words.metric(name)}, all users",
            words.score(run.summary["overall"][name]),
            _interval_note(run.overall(name)),
        )
        for name in names
    ]
    if len(run.clients) > 1:
        chance = balance.get("relative_gap_by_sampling_alone")
        note = "by sampling alone: " + ("not known" if chance is None else words.percent(chance))
        found.append(
            Tile("Gap, best to worst client", words.percent(balance.get("relative_gap")), note)
        )
    found.append(
        Tile(
            "A client's share of the model",
            words.percent(cost.get("client_parameter_share")),
            f"{words.size(cost['bytes_up'])} went up, {words.size(cost['bytes_down'])} down",
        )
    )
    return Tiles(found)


def shown_metrics(run: FinishedRun) -> list[str]:
    """Return the run's metric and the other one of the same length."""
    kind, _, length = run.metric.partition("@")
    other = f"{'recall' if kind == 'ndcg' else 'ndcg'}@{length}"
    return [name for name in (run.metric, other) if name in run.summary["overall"]]


def best_and_worst(run: FinishedRun) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Return the clients with the highest and the lowest score; None unless two have one."""
    scored = [client for client in run.clients if client.get(run.metric) is not None]
    if len(scored) < 2:
        return None
    ranked = sorted(scored, key=lambda client: float(client[run.metric]))
    return ranked[-1], ranked[0]


def _how_good(run: FinishedRun) -> str:
    summary = run.summary
    clients = words.several(len(run.clients), "client")
    users = words.several(summary["users"], "user")
    if not summary["rounds"]:
        begin = f"The base was scored as it comes, before any training, for {clients} with {users}."
    elif len(run.clients) == 1:
        begin = f"One client with {users} trained for {words.several(summary['rounds'], 'round')}."
    else:
        rounds = words.several(summary["rounds"], "round")
        how = "each for itself" if summary["strategy"] == "local" else "together"
        begin = f"{clients} with {users} between them trained {how} for {rounds}."
    scores = []
    for name in shown_metrics(run):
        value, interval = summary["overall"][name], run.overall(name)
        sure = f" (95 % interval {words.between(interval)})" if interval else ""
        scores.append(f"{words.metric(name)} of {words.score(value)}{sure}")
    scored = sum(client["scored"] or 0 for client in run.clients)
    who = "all users" if scored == summary["users"] else words.several(scored, "scored user")
    items = words.several(summary["items"], "item")
    return f"{begin} Over {who}, ranking all {items}, it reached {' and '.join(scores)}."


def _how_even(run: FinishedRun) -> str:
    pair = best_and_worst(run)
    if pair is None:
        return "Fewer than two clients have a test score, so nothing can be said about balance."
    (best, worst), name, balance = pair, words.metric(run.metric), run.summary["balance"]
    said = (
        f"Client {best['id']} is served best ({name} {words.score(best[run.metric])}), client "
        f"{worst['id']} worst ({words.score(worst[run.metric])})"
    )
    gap, chance = balance.get("relative_gap"), balance.get("relative_gap_by_sampling_alone")
    if gap is None:
        return f"{said}."
    said += f", a gap of {words.percent(gap)}."
    if chance is None:
        return f"{said} How much of it is chance is not known: users' scores are not in the folder."
    said += f" Equally good clients of these sizes would show {words.percent(chance)} by sampling"
    if gap <= chance:
        return f"{said} alone, so the gap is no sign of imbalance."
    return f"{said} alone, on average" + (
        f"; this is {gap / chance:.1f} times that." if chance else "."
    )


def _interval_note(interval: Interval | None) -> str:
    if interval is None:
        return "no interval: users' scores are not in the folder"
    return f"95 % interval {words.between(interval)}"
