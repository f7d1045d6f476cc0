r"""One of five clients attacks: what each setting of [robust] lets through, on MovieLens-100K.

    python benchmarks/malicious.py [--users 300] [--score] [--quick]
    python benchmarks/malicious.py --only copy --set balance.space=change \
        --set balance.temperature=0.1

Five clients (the recipe `smoke`, of more users and epochs) make two rounds; the second is mixed
again for each attack (`parts/attacks.py`) under each setting, by the coordinator's own code. The
largest client is the victim, the next one attacks. Shown are, over the other four,

    weight   what the victim takes of the attacker (M3), and the mean of all four; in brackets where
             the rule then leaves out most of the attacker's values
    harm     how far their mixtures are from those of the same round with nobody attacking and every
             setting off, in norms of a typical client's change; the mean of the four
    ndcg     their mean validation score, by users, with --score

A row in which nobody attacks shows what a setting itself costs. One core needs one to two minutes.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.parts.attacks import ATTACKS, NOBODY, Attack, attacked, nothing
from fellrec.balance import change_norms
from fellrec.config import RobustConfig, RunConfig, parse_override
from fellrec.errors import FellrecError
from fellrec.federation.coordinator import Coordinator
from fellrec.federation.members import Mixed, Trained
from fellrec.federation.observer import Observer
from fellrec.federation.rounds import Books
from fellrec.federation.shares import share_data
from fellrec.federation.simulation import Simulation
from fellrec.federation.store import RunState, RunStore
from fellrec.federation.turns import ClientModel, stored_model
from fellrec.federation.workspace import Workspace

Tensors = Mapping[str, Tensor]

OFF: Mapping[str, object] = {"robust.clip": 0.0, "robust.refuse": 0.0}
SHIPPED: Mapping[str, object] = {
    f"robust.{key}": value for key, value in RobustConfig().model_dump().items()
}
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "off": OFF,
    "as shipped": SHIPPED,
    "median": {**SHIPPED, "robust.rule": "median"},
    "trimmed-mean": {**SHIPPED, "robust.rule": "trimmed-mean"},
    "krum": {**SHIPPED, "robust.rule": "krum"},
}


class Notes(Observer):
    """Keeps what it is told in passing."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)


@dataclass(frozen=True)
class Found:
    """A round under attack. weights: of the attacker, by client; None where it was left out of the
    round. mixtures: by client.
    """

    weights: Mapping[str, float] | None
    mixtures: Mapping[str, Mixed]
    notes: Sequence[str]


class Stage:
    """A federation after its first round, and what its clients learned in the second.

    config: of the two rounds, with nothing in [robust] on. path: an empty folder.
    """

    def __init__(self, config: RunConfig, path: Path) -> None:
        self._config, self._path = config, path
        shares = share_data(config)
        self._workspace = Workspace(config, shares.dataset)
        self._store = RunStore(path)
        books = Books(self._store, self._workspace.ledger, Observer())
        self.simulation = Simulation(config, shares, self._workspace, self._store, Observer())
        first = config.model_copy(update={"train": config.train.model_copy(update={"rounds": 1})})
        self.state = Coordinator(first, books).run(RunState(), self.simulation)
        self.names = list(self.simulation.names)
        self._answers: list[tuple[str, Trained | FellrecError]] = list(
            self.simulation.train(self.state.round, self.names)
        )

    def begun(self, name: str) -> Tensors:
        """Return what a client began the second round with."""
        model = stored_model(self._store, self._workspace, self.state.round, name)
        return {**model.exchanged, **model.trunk}

    def length(self) -> float:
        """Return the median norm of what clients learned in the second round."""
        norms = [
            float(change_norms(answer.tensors, self.begun(name)).norm())
            for name, answer in self._answers
            if isinstance(answer, Trained)
        ]
        return statistics.median(norms)

    def attacked(self, attack: Attack, overrides: Mapping[str, object]) -> Found:
        """Mix the second round under an attack."""
        config = RunConfig.from_text(self._config.to_toml(), "malicious", overrides=overrides)
        notes = Notes()
        books = Books(self._store, self._workspace.ledger, notes)
        round = Coordinator(config, books).begin(self.state, self.simulation.start(), self.names)
        assert round is not None
        victim, attacker = self.names[:2]
        answers = attacked(attack, attacker, victim, self.begun(attacker), self._answers)
        mixtures = dict(round.collect(answers))
        weights = None
        if attacker in mixtures:
            column = round.mixture.weights[:, list(mixtures).index(attacker)].tolist()
            weights = dict(zip(mixtures, column, strict=True))
        return Found(weights, mixtures, notes.notes)

    def score(self, mixtures: Mapping[str, Mixed], names: Sequence[str]) -> float:
        """Return the mean validation score of these clients' mixtures, each user alike."""
        total = users = 0.0
        for name in names:
            mixed, client = mixtures[name], self.simulation.clients[name]
            model = ClientModel(mixed.exchanged, {}, mixed.trunk)
            score, _ = self.simulation.work.try_on(client, self.state.round, model)
            count = len(client.scored("valid"))
            if count and math.isfinite(score):
                total, users = total + count * score, users + count
        return total / users if users else math.nan


def distance(one: Mixed, other: Mixed) -> float:
    """Return the norm of the difference of two mixtures."""
    pairs = [
        *((one.exchanged[n], other.exchanged[n]) for n in one.exchanged),
        *((one.trunk[n], other.trunk[n]) for n in one.trunk),
    ]
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in pairs))


def outcome(found: Found, attacker: str) -> str:
    """Say in a word what became of the attacker."""
    told = [note for note in found.notes if f"client {attacker}:" in note]
    for word, sign in (("refused", "refused"), ("left out", "take nothing"), ("clipped", "multip")):
        if any(sign in note for note in told):
            return word
    return ""


def table(stage: Stage, attacks: Sequence[str], score: bool) -> str:
    """Mix every attack under every setting."""
    victim, attacker = stage.names[:2]
    honest = [name for name in stage.names if name != attacker]
    calm, length = stage.attacked(nothing, OFF), stage.length()
    head = f"{'attack':<27}{'setting':<14}{'attacker':<10}{'victim':>8}{'mean':>8}{'harm':>10}"
    lines = [head + ("    ndcg" if score else "")]
    for label in attacks:
        for setting, overrides in SETTINGS.items():
            try:
                found = stage.attacked(ATTACKS[label], overrides)
            except FellrecError as error:
                lines.append(f"{label:<27}{setting:<14}the run ends: {error}")
                continue
            weights = found.weights or dict.fromkeys(honest, 0.0)
            own, mean = weights[victim], statistics.mean(weights[name] for name in honest)
            trimmed = setting in ("median", "trimmed-mean") and found.weights is not None
            shown = [f"({each:.3f})" if trimmed else f"{each:.3f} " for each in (own, mean)]
            far = [distance(found.mixtures[n], calm.mixtures[n]) / length for n in honest]
            line = f"{label:<27}{setting:<14}{outcome(found, attacker):<10}"
            line += f"{shown[0]:>8}{shown[1]:>8}{statistics.mean(far):>10.3f}"
            lines.append(line + (f"{stage.score(found.mixtures, honest):8.4f}" if score else ""))
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], help="section.key=value of a recipe")
    parser.add_argument("--only", default="", help="attacks whose names hold this text")
    parser.add_argument("--score", action="store_true", help="validation scores of the mixtures")
    parser.add_argument("--quick", action="store_true", help="60 users")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the same sums everywhere
    overrides = {
        **OFF,
        "clients.count": 5,
        "data.max_users": 60 if options.quick else options.users,
        "train.local_epochs": 3,
        "train.learning_rate": 2e-3,
        "evaluation.before_mixing": False,
        **dict(map(parse_override, options.set)),
    }
    attacks = [name for name in ATTACKS if options.only in name or name == NOBODY]
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(RunConfig.from_toml("smoke", overrides), Path(folder) / "run")
        print(table(stage, attacks, options.score))


if __name__ == "__main__":
    main()
