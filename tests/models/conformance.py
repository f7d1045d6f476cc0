"""What every recommender keeps, whatever it is made of.

A backbone's tests inherit `RecommenderConformance` and say how a tiny one is built; they get every
test below for it. Nothing here knows more of a recommender than its protocol.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fellrec.data.interactions import Catalogue, Ragged, Split
from fellrec.federation.client import Client, ClientSettings
from fellrec.models.adapters import adapter, write
from fellrec.models.dropout import StepKey
from fellrec.models.optimiser import OptimiserSettings
from fellrec.models.recommender import Batch, Kind, NoTrunk, Recommender, Trunk
from fellrec.models.stages import Stage
from fellrec.split.trunk import SessionSettings
from tests.builders import (
    LocalTrunk,
    connect,
    gradients,
    install,
    point,
    random_factors,
    serve,
    tiny_catalogue,
)

LAYERS, SEED, ROUND, STEP = 3, 5, 3, 0
CUTS = [(0, 0), (0, 1), (1, 1), (2, 0)]
HISTORIES = Ragged.from_rows(
    [[0, 1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11, 0], [3, 3, 3], [5], [4, 2, 0, 10, 8, 6, 4, 2, 1]]
)
ODD_TITLES = (
    'He said "no, never", twice',
    "l'été, l'hiver; `quoted' \"\" \\",
    "two\nlines\r\nand\ta tab",
    "七人の侍",
    "Солярис",
    "الرسالة",
    "🦉🦉🦉",
    "</s> [SEP] <cls> <pad>",
    "   spaces   around   ",
    "x" * 500,
    '"',
    "%s {} $HOME",
)


@dataclass
class Party:
    """A recommender with the trunk that it works on. stage: the trunk's blocks, here or there."""

    recommender: Recommender
    trunk: Trunk
    stage: Stage | None

    def trained(self) -> dict[str, nn.Parameter]:
        """Return all that learns, on both sides."""
        own = {name: p for name, (_, p) in self.recommender.trained().items() if p.requires_grad}
        return own | (adapter(self.stage) if self.stage is not None else {})

    def serving(self) -> None:
        self.recommender.eval()
        self.trunk.eval()

    def point(self, step: int = STEP, micro: int = 0) -> None:
        keys = (self.recommender.head.key, self.recommender.tail.key, self.trunk.key)
        point(keys, client="a", seed=SEED, round=ROUND, step=step)
        for key in keys:
            key.micro = micro

    def learn(self, batch: Batch, micro_batches: int = 1, step: int = STEP) -> float:
        """Go forward and back over a batch: the mean loss; gradients stay where they are."""
        self.serving()
        self.recommender.begin_epoch(self.trunk)
        self.recommender.train()
        self.trunk.train()
        total = 0.0
        for micro, part in enumerate(batch.micro(micro_batches)):
            self.point(step, micro)
            loss = self.recommender.loss(self.trunk, part) / len(batch.targets)
            loss.backward()
            total += float(loss.detach())
        return total

    def scores(self, histories: Ragged, batch_size: int = 4) -> Tensor:
        """Score the catalogue for each history: (histories, items)."""
        self.serving()
        self.point()
        self.recommender.begin_serving(self.trunk, histories)
        found: dict[int, Tensor] = {}
        for batch in self.recommender.serving_batches(histories, batch_size):
            scores = self.recommender.score(self.trunk, batch, 5)
            found |= dict(zip(batch.rows.tolist(), scores, strict=True))
        assert sorted(found) == list(range(len(histories)))
        return torch.stack([found[row] for row in range(len(histories))])


class RecommenderConformance(ABC):
    """The tests. `build` gives a recommender over three random blocks and its trunk.

    It reads at most eight items of a history, and whatever it draws at its making depends on
    nothing but its arguments. More arguments of a subclass's own have defaults.
    """

    @abstractmethod
    def build(
        self, catalogue: Catalogue, k_in: int, k_out: int, dropout: float
    ) -> tuple[Recommender, Stage]: ...

    def place(
        self,
        k_in: int = 1,
        k_out: int = 1,
        *,
        dropout: float = 0.0,
        remote: bool = False,
        catalogue: Catalogue | None = None,
        fresh: bool = False,
        optimiser: OptimiserSettings | None = None,
    ) -> Party:
        """Put a recommender and its trunk together, over a wire if `remote`.

        All that is trained is drawn by name, unless `fresh`: as built, half of it is zero.
        """
        recommender, stage = self.build(catalogue or tiny_catalogue(), k_in, k_out, dropout)
        if not fresh:
            for part in (recommender.head, stage, recommender.tail):
                install(part, random_factors(adapter(part)))
            with torch.no_grad():
                for name, (_, parameter) in recommender.own_tensors().items():
                    if parameter.requires_grad:
                        generator = StepKey().generator("test", name)
                        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if stage.blocks == 0:
            return Party(recommender, NoTrunk(), None)
        if not remote:
            return Party(recommender, LocalTrunk(stage), stage)
        settings = SessionSettings(SEED, optimiser or OptimiserSettings(), micro_batches=4)
        server = serve(stage, settings, round=ROUND, factors=adapter(stage))
        return Party(recommender, connect(server, "a", ROUND), server._sessions["a"].stage)

    def batches(
        self, party: Party, histories: Ragged = HISTORIES, size: int = 4, seed: int = 0
    ) -> list[Batch]:
        rng = np.random.default_rng(seed)
        return party.recommender.training_batches(histories, size, 2, rng)

    # --- the split --------------------------------------------------------------------------------

    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    def test_split_equals_whole(self, dropout: float) -> None:
        whole = self.place(LAYERS, 0, dropout=dropout)
        batch = self.batches(whole)[0]
        loss, scores = whole.learn(batch), whole.scores(HISTORIES)
        expected = gradients(whole.trained())
        for block in range(LAYERS):
            own = [g for name, g in expected.items() if f".{block}." in name and ".lora_" in name]
            assert own and max(float(g.abs().max()) for g in own) > 1e-4
        for k_in, k_out in CUTS:
            parted = self.place(k_in, k_out, dropout=dropout, remote=True)
            assert parted.stage is not None and parted.stage.blocks == LAYERS - k_in - k_out
            assert parted.learn(batch) == pytest.approx(loss, rel=1e-5)
            found = gradients(parted.trained())
            assert found.keys() == expected.keys()
            for name, gradient in expected.items():
                assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-5), name
            torch.testing.assert_close(parted.scores(HISTORIES), scores, rtol=1e-5, atol=1e-5)

    def test_micro_batches_add_up(self) -> None:
        whole, parted = self.place(remote=True), self.place(remote=True)
        batch = self.batches(whole)[0]
        loss = whole.learn(batch)
        assert parted.learn(batch, micro_batches=3) == pytest.approx(loss, rel=1e-5)
        expected, found = gradients(whole.trained()), gradients(parted.trained())
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-5), name

    # --- the same again ---------------------------------------------------------------------------

    def test_it_depends_on_its_keys_and_on_nothing_else(self) -> None:
        outcomes = []
        for torchs_own, step in ((0, STEP), (7, STEP), (7, STEP + 1)):
            torch.manual_seed(torchs_own)
            party = self.place(dropout=0.3)
            batch = self.batches(party)[0]
            loss = party.learn(batch, step=step)
            outcomes.append((loss, gradients(party.trained()), party.scores(HISTORIES)))
        (one, its, scores), (again, theirs, same), (other, _, unmoved) = outcomes
        assert one == again != other
        assert all(torch.equal(its[name], theirs[name]) for name in its)
        assert torch.equal(scores, same) and torch.equal(scores, unmoved)

    def test_the_same_generator_gives_the_same_batches(self) -> None:
        party = self.place()

        def drawn(seed: int) -> list[tuple[list[int], list[int]]]:
            batches = self.batches(party, size=2, seed=seed)
            return [(batch.rows.tolist(), batch.targets.tolist()) for batch in batches]

        assert drawn(0) == drawn(0)
        assert drawn(0) != drawn(1)

    def test_scoring_leaves_nothing_behind(self) -> None:
        party = self.place(remote=True)
        first = party.scores(HISTORIES)
        party.scores(Ragged.from_rows([[11], [10, 9]]))
        assert torch.equal(party.scores(HISTORIES), first)
        # nor does it matter what else is in the batch
        torch.testing.assert_close(party.scores(HISTORIES, 1), first, rtol=1e-4, atol=1e-4)

    def test_its_tensors_are_all_of_it(self) -> None:
        trained = self.place(dropout=0.3)
        stored = _copies(trained.recommender.parameters_of(*Kind))
        assert trained.stage is not None
        opened = self.place(dropout=0.3, fresh=True)
        assert opened.stage is not None
        assert not torch.equal(opened.scores(HISTORIES), trained.scores(HISTORIES))
        write(opened.recommender.parameters_of(*Kind), stored)
        write(adapter(opened.stage), adapter(trained.stage))
        assert torch.equal(opened.scores(HISTORIES), trained.scores(HISTORIES))

    def test_each_trained_tensor_has_one_kind(self) -> None:
        recommender = self.place().recommender
        trained = recommender.trained()
        assert len({id(p) for _, p in trained.values()}) == len(trained)
        learning = {id(p) for p in recommender.parameters() if p.requires_grad}
        assert learning == {id(p) for _, p in trained.values() if p.requires_grad}
        for name, (kind, _) in trained.items():
            assert (kind is Kind.LORA) is (".lora_" in name)

    # --- histories --------------------------------------------------------------------------------

    def test_targets_are_items_that_came_later(self) -> None:
        party = self.place()
        for batch in self.batches(party):
            assert len(batch.rows) == len(batch.counts) == len(batch.layout.lengths) <= 4
            assert int(batch.counts.sum()) == len(batch.targets) > 0
            assert set(HISTORIES.lengths()[batch.rows].tolist()) <= set(range(2, 20))
            assert batch.inputs.shape[:2] == (len(batch.rows), batch.layout.width)

    def test_histories_too_short_give_no_batches(self) -> None:
        party = self.place()
        for rows in ([], [[1]], [[1], [2]]):
            assert self.batches(party, Ragged.from_rows(rows)) == []
        assert list(party.recommender.serving_batches(Ragged.from_rows([]), 4)) == []

    def test_what_is_older_than_the_budget_is_not_read(self) -> None:
        party = self.place()
        recent = [*range(10), *range(10)]
        rows = [[*old, *recent] for old in ([5] * 40, [7, 2] * 50, [])]
        rows.append(recent[::-1])
        scores = party.scores(Ragged.from_rows(rows))
        torch.testing.assert_close(scores[0], scores[1])
        torch.testing.assert_close(scores[0], scores[2])
        assert not torch.allclose(scores[0], scores[3], atol=1e-3)
        for batch in self.batches(party, Ragged.from_rows(rows)):
            assert np.isfinite(party.learn(batch))

    def test_the_order_of_a_history_matters(self) -> None:
        scores = self.place().scores(Ragged.from_rows([[1, 2, 3, 4], [4, 3, 2, 1]]))
        assert not torch.allclose(scores[0], scores[1], atol=1e-3)

    # --- scores -----------------------------------------------------------------------------------

    def test_scores_are_numbers_for_every_item(self) -> None:
        scores = self.place(remote=True).scores(HISTORIES)
        assert scores.shape == (len(HISTORIES), 12)
        assert scores.dtype == torch.float32
        assert not scores.isnan().any()
        assert all(len(set(row.tolist())) > 1 for row in scores)

    def test_a_history_is_never_recommended(self) -> None:
        """Of twelve items a user has had ten; the other two make up any list of two."""
        rng = np.random.default_rng(0)
        orders = [rng.permutation(12).astype(np.int32) for _ in range(5)]
        train, left = [order[:10] for order in orders], [order[10:] for order in orders]
        for valid, test, score in ((left, left, 1.0), (train, train, 0.0)):
            data = Split(
                tuple("abcde"),
                Ragged.from_rows(train),
                Ragged.from_rows([row[:1] for row in valid]),
                Ragged.from_rows([row[1:2] for row in test]),
                0,
                {},
            )
            metrics = self.client(data).evaluate("valid")
            assert metrics["recall@2"].tolist() == [score] * 5

    def test_titles_of_all_sorts(self) -> None:
        catalogue = dataclasses.replace(tiny_catalogue(), titles=ODD_TITLES)
        party = self.place(catalogue=catalogue, remote=True)
        assert np.isfinite(party.learn(self.batches(party)[0]))
        scores = party.scores(HISTORIES)
        assert scores.shape == (len(HISTORIES), 12) and not scores.isnan().any()

    def test_a_catalogue_of_one_item_and_a_client_of_one_user(self) -> None:
        train = Ragged.from_rows([[0, 0, 0]])
        data = Split(("u",), train, Ragged.from_rows([[0]]), Ragged.from_rows([[0]]), 0, {})
        client = self.client(data, tiny_catalogue(1))
        report = client.train(ROUND)
        assert report.steps > 0 and np.isfinite(report.loss)
        assert client.evaluate("test")["recall@2"].tolist() == [0.0]  # all is history

    # --- learning ---------------------------------------------------------------------------------

    rate, epochs = 5e-3, 12
    """Of the task below."""
    gain: float | None = 0.2
    """What recall must gain by it; None where that takes more steps than a test has."""

    def test_a_learnable_task_is_learned(self) -> None:
        """Users walk round a ring of items, so that the next one is certain."""
        rng = np.random.default_rng(0)
        walks = [(rng.integers(12) + np.arange(rng.integers(4, 8))) % 12 for _ in range(48)]
        data = Split(
            tuple(f"u{user}" for user in range(48)),
            Ragged.from_rows([walk[:-1] for walk in walks]),
            Ragged.from_rows([walk[-1:] for walk in walks]),
            Ragged.from_rows([[] for _ in walks]),
            0,
            {},
        )
        client = self.client(data, fresh=True, learning_rate=self.rate, local_epochs=self.epochs)
        before = client.evaluate("valid")["recall@2"].mean()
        losses: list[float] = []
        client.train(ROUND, lambda done, total, loss: losses.append(loss))
        tenth = len(losses) // 10
        assert np.mean(losses[-tenth:]) < 0.95 * np.mean(losses[:tenth])
        if self.gain is not None:
            assert client.evaluate("valid")["recall@2"].mean() > before + self.gain

    def client(
        self,
        data: Split,
        catalogue: Catalogue | None = None,
        *,
        fresh: bool = False,
        learning_rate: float = 1e-3,
        local_epochs: int = 1,
    ) -> Client:
        """Return a client whose trunk is across a wire."""
        optimiser = OptimiserSettings(learning_rate)
        party = self.place(catalogue=catalogue, remote=True, fresh=fresh, optimiser=optimiser)
        settings = ClientSettings(
            SEED, optimiser, local_epochs=local_epochs, batch_size=16, windows=2, ks=(2,)
        )
        client = Client("a", data, party.recommender, party.trunk, settings)
        client.install(ROUND, _copies(client.exchanged()), _copies(client.private()))
        return client


def _copies(tensors: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in tensors.items()}
