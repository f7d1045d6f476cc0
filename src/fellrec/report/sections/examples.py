"""Real users: what they watched or bought, what they are recommended, what they took next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fellrec.errors import FellrecError
from fellrec.report.blocks import Block, Entry, People, Person, Section, Text
from fellrec.report.reading import FinishedRun

if TYPE_CHECKING:
    from fellrec.serving.samples import Sample

MOST = 24
"""Users on a page, however many clients there are."""


def section(run: FinishedRun, per_client: int) -> Section:
    """Serve so many users of each client, fewer where there are many clients."""
    return Section("examples", "Real recommendations", _blocks(run, per_client))


def _blocks(run: FinishedRun, per_client: int) -> list[Block]:
    # What serves a run brings torch and its models, which a page without examples does not need.
    from fellrec.serving.run import load_run
    from fellrec.serving.samples import samples

    count = min(per_client * len(run.clients), MOST)
    try:
        drawn = samples(load_run(run.path), count)
    except FellrecError as error:
        return [Text([f"No user can be served from this folder: {error}."])]
    if not drawn:
        return [Text(["No user has a history and a held-out item."])]
    hits = sum(any(sample.hit(entry) for entry in sample.recommended) for sample in drawn)
    lead = (
        f"{len(drawn)} users, drawn by the run's seed, served by their own client's model. "
        f"{hits} of them find what they took next among the first {len(drawn[0].recommended)}. "
        "These are histories of users: keep the page where their data may be."
    )
    items = run.summary["items"]
    order = {name: place for place, name in enumerate(run.names)}
    drawn = sorted(drawn, key=lambda sample: order.get(sample.client, len(order)))
    return [Text([lead]), People([_person(sample, items) for sample in drawn])]


def _person(sample: Sample, items: int) -> Person:
    offered: Sequence[Entry] = [
        Entry(entry.title, "taken next" if sample.hit(entry) else "")
        for entry in sample.recommended
    ]
    after = [
        Entry(
            target.title,
            f"rank {target.rank:,} of {items:,}" if target.rank else "in the history already",
        )
        for target in sample.held_out
    ]
    return Person(sample.user, sample.client, sample.history, offered, after)
