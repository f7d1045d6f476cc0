"""What a round does about clients who attack or broke, with the parts of `balance.robust`.

Updates are on disk, a row each, so this looks at one client or one block of columns at a time. In a
round in which no client is odd nothing is written, and the mixture is that without any of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fellrec.balance import (
    Mixture,
    change_norms,
    clip_factors,
    excess,
    krum,
    shrink,
    sources,
)
from fellrec.config import RobustConfig
from fellrec.errors import TrainingError
from fellrec.federation.aggregate import distances
from fellrec.federation.members import Trained
from fellrec.federation.rows import Rows

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Findings:
    """What a rule found. left_out: clients that nobody else takes from. trimmed: values left out at
    either end, see `Trimmer`. notes: the same for people.
    """

    left_out: Sequence[str] = ()
    trimmed: int = 0
    notes: Sequence[str] = ()


class Screening:
    """One round's. Who was not admitted is not looked at: with nobody admitted, all stays as it is.

    begun_with: reads what a client began the round with.
    """

    def __init__(self, settings: RobustConfig, begun_with: Callable[[str], Tensors]) -> None:
        self._settings = settings
        self._begun_with = begun_with
        self._norms: dict[str, Tensor] = {}
        self._refused = 0

    def admit(self, name: str, trained: Trained) -> TrainingError | None:
        """Measure a client's change; return why it has to be left out, if its values say so."""
        loss = trained.report.loss
        if not math.isfinite(loss):
            return self._refuse(name, f"its loss is {loss}")
        norms = change_norms(trained.tensors, self._begun_with(name))
        if not torch.isfinite(norms).all():
            return self._refuse(name, "its adapter holds a value that is NaN or infinite")
        self._norms[name] = norms
        return None

    def refuse(self) -> dict[str, TrainingError]:
        """Return whose changes are beyond all measure, and forget these clients."""
        most, found = self._settings.refuse, {}
        for name, times in self._excess().items():
            if most and times > most:
                why = f"it changed {times:,.0f} times as far as the median client"
                found[name] = self._refuse(name, f"{why}, more than robust.refuse = {most:g}")
                del self._norms[name]
        return found

    def clip(self, rows: Rows) -> dict[str, float]:
        """Scale down changes that are too long, in place; rows: in the order of admission.

        Returns what each of these clients' changes was multiplied by.
        """
        found = {}
        times = torch.tensor(list(self._excess().values()), dtype=torch.float64)
        factors = clip_factors(times, self._settings.clip).tolist()
        for row, (name, factor) in enumerate(zip(self._norms, factors, strict=True)):
            if factor < 1:
                found[name] = factor
                begun, values = self._begun_with(name), rows.read_row(row)
                rows.write_row(row, {n: shrink(v, begun[n], factor) for n, v in values.items()})
        return found

    def apply(self, mixture: Mixture, rows: Rows) -> tuple[Mixture, Findings]:
        """Take weights from clients whom nobody should take from; say how many values to trim.

        Clients that were refused are among the malicious ones that were expected: the rest are as
        many fewer. With fewer clients than the rule needs, all keep to themselves: a rule that
        fails open would be switched off by whoever makes others fail.
        """
        rule, malicious = self._settings.rule, max(0, self._settings.malicious - self._refused)
        names, fewest = list(self._norms), self._settings.fewest(malicious)
        if not names or rule == "none":
            return mixture, Findings()
        if len(names) < fewest:
            alone = torch.eye(len(names), dtype=torch.float64)
            note = (
                f"{len(names)} of the {fewest} clients that robust.rule = "
                f'"{rule}" needs are left: all keep to themselves in this round'
            )
            return replace(mixture, weights=alone, dense=None), Findings(notes=[note])
        if rule != "krum":
            most = (len(names) - 1) // 2
            return mixture, Findings(trimmed=most if rule == "median" else malicious)
        selected = krum(distances(rows), malicious)
        left_out = [name for name, kept in zip(names, selected.tolist(), strict=True) if not kept]
        mixture = replace(
            mixture,
            weights=sources(mixture.weights, selected),
            dense=None if mixture.dense is None else sources(mixture.dense, selected),
        )
        notes = [f"client {n}: far from the others, who take nothing from it" for n in left_out]
        return mixture, Findings(left_out=left_out, notes=notes)

    def _excess(self) -> dict[str, float]:
        if not self._norms:
            return {}
        found = excess(torch.stack(list(self._norms.values()))).tolist()
        return dict(zip(self._norms, found, strict=True))

    def _refuse(self, name: str, reason: str) -> TrainingError:
        self._refused += 1
        return TrainingError(
            f"client {name}: {reason}; it is refused: it attacks, or diverged (lower "
            "train.learning_rate)"
        )
