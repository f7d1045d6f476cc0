"""Clients who attack, for benchmarks and tests: members of a real federation, one of whom lies.

It trains as all do, and sends something else. What it knows is the worst case: its own start and
every upload of the round, which in a deployment only the coordinator sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fellrec.balance import is_lora
from fellrec.errors import FellrecError
from fellrec.federation.members import Members, Mixed, Start, Trained

Tensors = Mapping[str, Tensor]


class Scene:
    """A round as its attacker sees it. begun: what it began with; own, victim: both' answers."""

    def __init__(self, begun: Tensors, own: Trained, victim: Trained) -> None:
        self.begun = begun
        self.own = own
        self.victim = victim

    def scaled(self, factor: float) -> Trained:
        """Send its own change so many times; a negative factor turns it around."""
        tensors = {
            name: self.begun[name] + factor * (value - self.begun[name])
            for name, value in self.own.tensors.items()
        }
        return replace(self.own, tensors=tensors)


Attack = Callable[[Scene], Trained]


def nothing(scene: Scene) -> Trained:
    """Be honest."""
    return scene.own


def not_a_number(scene: Scene) -> Trained:
    """Send one NaN."""
    tensors = {name: value.clone() for name, value in scene.own.tensors.items()}
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    return replace(scene.own, tensors=tensors)


def copied(scene: Scene) -> Trained:
    """Send the victim's update: harmless in itself, and as close to the victim as can be."""
    return replace(scene.own, tensors=scene.victim.tensors)


def disguised(scene: Scene) -> Trained:
    """Send the victim's factors, which M1 compares, and its own dense change turned around, twice.

    M1 never looks at dense tensors, and M3 mixes them with the attention that factors got.
    """
    turned = scene.scaled(-2).tensors
    tensors = {
        name: value if is_lora(name) else turned[name]
        for name, value in scene.victim.tensors.items()
    }
    return replace(scene.own, tensors=tensors)


def loud(scene: Scene) -> Trained:
    """Turn around, and claim a loss of 100: beside it nobody else struggles, so M2 opens all."""
    turned = scene.scaled(-1)
    return replace(turned, report=replace(turned.report, loss=100.0))


NOBODY = "nobody attacks"
ATTACKS: Mapping[str, Attack] = {
    NOBODY: nothing,
    "NaN": not_a_number,
    "change x 1000": lambda scene: scene.scaled(1000),
    "change x 20": lambda scene: scene.scaled(20),
    "change turned around": lambda scene: scene.scaled(-1),
    "the same, loss of 100": loud,
    "copy of the victim": copied,
    "copy, other dense tensors": disguised,
}


def attacked(
    attack: Attack,
    attacker: str,
    victim: str,
    begun: Tensors,
    answers: Iterable[tuple[str, Trained | FellrecError]],
) -> Iterator[tuple[str, Trained | FellrecError]]:
    """Replace the attacker's answer among those of a round in which it and its victim trained."""
    given = dict(answers)
    own, other = given[attacker], given[victim]
    assert isinstance(own, Trained) and isinstance(other, Trained)
    given[attacker] = attack(Scene(begun, own, other))
    yield from given.items()


class WithAttacker:
    """Members of whom one attacks in every round. begun: reads what it began a round with."""

    def __init__(
        self,
        members: Members,
        attack: Attack,
        attacker: str,
        victim: str,
        begun: Callable[[int], Tensors],
    ) -> None:
        self._members = members
        self._attack = attack
        self._attacker = attacker
        self._victim = victim
        self._begun = begun

    @property
    def names(self) -> Sequence[str]:
        """The clients."""
        return self._members.names

    def start(self) -> Start:
        """Return what every client starts from."""
        return self._members.start()

    def train(self, t: int, drawn: Sequence[str]) -> Iterator[tuple[str, Trained | FellrecError]]:
        """Let all train, and one lie."""
        answers = self._members.train(t, drawn)
        return attacked(self._attack, self._attacker, self._victim, self._begun(t), answers)

    def receive(
        self, t: int, mixtures: Iterable[tuple[str, Mixed]]
    ) -> Iterator[tuple[str, float | FellrecError]]:
        """Hand mixtures out."""
        return self._members.receive(t, mixtures)
