"""What a run promised its users, and what a curious server could tell where it was audited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fellrec.report import words
from fellrec.report.blocks import Block, Figure, Section, Table, Text
from fellrec.report.charts import Mark, Row, Words, interval_chart, interval_legend
from fellrec.report.promised import sentences
from fellrec.report.reading import Line

_WIDE, _NARROW = 680.0, 330.0
_KNOWS = {"base": "public weights", "adapters": "exchanged adapters, too"}
_SPELLED = {"token_accuracy": "tokens", "rouge_l": "ROUGE-L"}
_ATTACKS = {
    "nearest": "nearest item",
    "search": "search",
    "inverter": "inverter",
    "aligned": "fitted to the public head",
    "acquainted": "fitted, some histories known",
    "lookup": "looked up in known histories",
    "prediction": "prediction",
    "gradient": "gradient",
    "reading": "reading",
    "table": "the item table",
    "leaning": "what the model leans to",
    "loss": "loss",
    "gain": "gain over the start",
}


def section(audit: Mapping[str, Any] | None, promised: Mapping[str, Any]) -> Section:
    """Show what the run promised its users, and what `fellrec audit` found if it was audited."""
    blocks: list[Block] = [Text(sentences(promised))] if promised else []
    if audit is None:
        return Section("privacy", "What the run promises its users", blocks)
    blocks += [_histories(audit), _labels(audit)]
    for found in (_touched(audit["touched"]), _members(audit)):
        blocks += [] if found is None else [found]
    return Section("privacy", "What a curious server could tell", blocks)


def _histories(audit: Mapping[str, Any]) -> Figure:
    found, chance = audit["inversion"], audit["chance"]
    best = max(found, key=lambda each: each["recovered"]["mean"])
    point = (
        f"Of a user's items, the best attack recovers {words.percent(best['recovered']['mean'])}; "
        f"guessing what is popular gives {words.percent(chance['mean'])}."
    )
    knows = [key for key in _KNOWS if any(each["knows"] == key for each in found)]
    attacks = list(dict.fromkeys(each["attack"] for each in found))
    rows = []
    for attack in attacks:
        own = [each for each in found if each["attack"] == attack]
        marks = [_mark(each["recovered"], knows.index(each["knows"])) for each in own]
        note = " · ".join(words.percent(each["recovered"]["mean"]) for each in own)
        rows.append(Row(_named(attack), note, marks))
    charts = [
        interval_chart(
            Words(f"read-back-{name}", "Share of a user's items that each attack recovers", point),
            rows,
            width=width,
            reference=chance["mean"],
            span=[1.0],
        )
        for name, width in (("wide", _WIDE), ("narrow", _NARROW))
    ]
    return Figure(
        "Histories, read back at the first cut",
        f"{point} {words.several(audit['users'], 'user')} of the run's own clients, "
        f"{words.several(audit['k_in'], 'block')} before the cut, activations in {audit['codec']}. "
        "The server is honest: it computes what it should, and reads what it gets."
        + ("" if audit["veil"] is None else f" {_price(audit['veil'])}"),
        charts[:1],
        [_inversion_table(found, chance)],
        interval_legend([_KNOWS[key] for key in knows], reference="by chance"),
        layout="full",
        narrow=charts[1:],
    )


def _price(veil: Mapping[str, Any]) -> str:
    difference, name = veil["difference"], words.metric(veil["metric"])
    promised = veil["epsilon"]
    return (
        f"Clients drew noise of {veil['noise']:g} times a typical activation's length over all that"
        f" they sent. That changes {name} from {words.score(veil['without']['mean'])} to "
        f"{words.score(veil['score']['mean'])} ({difference['mean']:+.4f}, 95 % interval "
        f"{difference['low']:+.4f} to {difference['high']:+.4f}), by models that were trained "
        f"without. As differential privacy it promises "
        f"{'nothing' if promised is None else f'a local ε of {promised:,.0f}'} for one history of "
        f"{words.several(veil['positions'], 'position')} that crosses once, at δ = "
        f"{veil['delta']:g}."
    )


def _inversion_table(found: Sequence[Line], chance: Line) -> Table:
    texts = any(each["rouge_l"] is not None for each in found)
    rows = [
        [
            *(_named(each["attack"]), _KNOWS[each["knows"]]),
            *_interval(each["recovered"]),
            words.percent(each["placed"]),
            *(words.percent(each[key]) for key in _SPELLED if texts),
        ]
        for each in found
    ]
    blank = [words.NOTHING] * (3 if texts else 1)
    rows.append(["chance", "what is popular", *_interval(chance), *blank])
    columns = ["attack", "knows", "items recovered", "95 % interval", "at their place"]
    return Table(
        "What each attack recovers of a history, mean over users",
        [*columns, *(_SPELLED.values() if texts else ())],
        rows,
        words=[1],
        folded=True,
    )


def _labels(audit: Mapping[str, Any]) -> Table:
    rows = [
        [
            *(_named(each["attack"]), _KNOWS[each["knows"]]),
            *_interval(each["first"]),
            *_interval(each["ten"]),
        ]
        for each in audit["labels"]
    ]
    nothing = words.NOTHING
    rows.append(["chance", "what is popular", nothing, nothing, *_interval(audit["label_chance"])])
    return Table(
        f"The last target of {words.several(audit['learners'], 'row')} of training, told from "
        "what crossed in one step",
        ["attack", "knows", "first guess", "95 % interval", "among ten", "95 % interval"],
        rows,
        words=[1],
    )


def _touched(found: Sequence[Line]) -> Table | None:
    keys = ("auc", "least", "most", "popularity")
    rows = [[_named(each["attack"]), *(words.fixed(each[k], 3) for k in keys)] for each in found]
    caption = (
        "Items that a client's users touched, told from what it uploads (AUC; 0.5 is guessing)"
    )
    columns = ["told by", "mean of clients", "least", "most", "by popularity"]
    return Table(caption, columns, rows) if rows else None


def _members(audit: Mapping[str, Any]) -> Block | None:
    found = audit["membership"]
    if not found:
        return Text(["Whether one user's history was learned from was not asked."])
    rows = [
        [
            _named(each["attack"]),
            words.fixed(each["auc"]["mean"], 3),
            f"{each['auc']['low']:.3f} to {each['auc']['high']:.3f}",
            words.percent(each["caught"]),
        ]
        for each in found
    ]
    return Table(
        f"{words.several(audit['members'], 'user')} from whom a client learned alone, told from "
        f"{words.several(audit['others'], 'other')} of the same client",
        ["told by", "AUC", "95 % interval", "caught, 1 in 20 others wrongly"],
        rows,
    )


def _named(attack: str) -> str:
    return _ATTACKS.get(attack, attack)


def _mark(value: Line, series: int) -> Mark:
    return Mark(value["mean"], value["low"], value["high"], series)


def _interval(value: Line) -> tuple[str, str]:
    return words.percent(value["mean"]), f"{value['low']:.0%} to {value['high']:.0%}"
