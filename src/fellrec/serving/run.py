"""A finished run, ready to recommend: split inference with each client's own best adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fellrec.config import RunConfig
from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, RunError
from fellrec.federation.client import Scores
from fellrec.federation.runs import finished
from fellrec.federation.same_data import check_data, check_items
from fellrec.federation.shares import Shares, share_data
from fellrec.federation.store import CLIENT, SERVER
from fellrec.federation.turns import ClientModel, published_model, turn
from fellrec.federation.workspace import Workspace
from fellrec.models.recommender import Kind
from fellrec.privacy import Secret
from fellrec.serving.ranking import Recommends, score

# What may differ from the recipe that was trained: how it is served, and who is scored.
SERVING_KEYS = (
    "bigrec.beams",
    "bigrec.decode",
    "bigrec.popularity",
    "bigrec.prompts",
    "evaluation.batch_size",
    "evaluation.test_users",
    "evaluation.valid_users",
    "model.device",
    "model.dtype",
    "model.quantize",
    "split.codec",
)


class Run:
    """A run directory. Data and weights are loaded when first needed.

    overrides: values by dotted key that replace the recipe's, of those in `SERVING_KEYS`; a
    ConfigError names another. ready: the client that the recommender last made itself ready for.
    What that took, such as a pass over all titles, serves as long as no other client's turn comes.
    """

    def __init__(self, path: Path, overrides: Mapping[str, object] | None = None) -> None:
        self.path = path
        self.overrides = dict(overrides or {})
        self.config, summary = finished(path)
        for key in self.overrides:
            if key not in SERVING_KEYS:
                raise ConfigError(
                    f"{key}: a finished run keeps it; what can be set is {', '.join(SERVING_KEYS)}"
                )
        if self.overrides:
            self.config = RunConfig.from_toml(path / "config.toml", self.overrides)
        self.summary: dict[str, Any] = summary
        self.ready: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The clients of which the run has a model, largest first: a deployment may lose some."""
        return tuple(str(line["id"]) for line in self.summary["clients"])

    @cached_property
    def shares(self) -> Shares:
        """The run's data, split and partitioned again from its recipe; RunError for others."""
        check_data(self.path, self.present)
        return self.present

    @cached_property
    def present(self) -> Shares:
        """The same, with what users may have taken since; RunError for other items."""
        shares = share_data(self.config)
        check_items(self.path, shares)
        return shares

    @cached_property
    def workspace(self) -> Workspace:
        """The run's model, cut."""
        secret = Secret.of_seed(self.config.seed)
        return Workspace(self.config, self.present.dataset, secret=secret)

    def client(self, name: str) -> RunClient:
        """Return one client; RunError lists those there are."""
        if name not in self.names:
            some = ", ".join(self.names[:10]) + (" …" if len(self.names) > 10 else "")
            raise RunError(f"{self.path}: no client {name!r}; there are: {some}")
        return RunClient(self, name)

    def clients(self) -> list[RunClient]:
        """Return all clients, largest first."""
        return [RunClient(self, name) for name in self.names]


class RunClient(Recommends):
    """One client of a finished run, with its own adapter."""

    def __init__(self, run: Run, name: str) -> None:
        present = run.present
        if name not in present.partition.names:
            raise RunError(f"{run.path}: the data have no users of client {name} any more")
        number = present.partition.names.index(name)
        client = run.workspace.client(name, present.of(number), present.quotas[number])
        super().__init__(client, present.dataset.catalogue)
        self.run = run

    @cached_property
    def model(self) -> ClientModel:
        """The client's best model; RunError where its files are of another model.

        Where scores are weighed otherwise than in the run, validation chooses how once more.
        """
        workspace, stored = self.run.workspace, published_model(self.run.path, self.name)
        if self.run.overrides:
            private = {
                name: stored.private.get(name, start)
                for name, start in workspace.initial(Kind.PRIVATE).items()
            }
            stored = replace(stored, private=private)
        self._check(stored)
        if not self.run.overrides or self.client.recommender.choices == 1:
            return stored
        check_data(self.run.path, self.run.present)
        with turn(workspace, self.client, 0, stored) as it:
            self.client.validate(self.run.config.evaluation.metric)
        return replace(stored, private=it.finished().private)

    def _check(self, stored: ClientModel) -> None:
        """Raise RunError where a file has tensors of other names or shapes than the run's model."""
        workspace = self.run.workspace
        exchanged = workspace.initial(Kind.LORA, Kind.DENSE)
        for side, file, found, wanted in (
            (CLIENT, "best_adapter", stored.exchanged, exchanged),
            (CLIENT, "best_private", stored.private, workspace.initial(Kind.PRIVATE)),
            (SERVER, "best_adapter", stored.trunk, workspace.initial_trunk()),
        ):
            path = self.run.path / side / self.name / f"{file}.safetensors"
            _check_fits(found, wanted, path)

    def items_of(self, user: str) -> list[int]:
        """Return all that a user of this client interacted with, oldest first.

        Raises RunError where users may be other clients' since histories changed: all but a
        column's.
        """
        if self.run.config.clients.partition != "column":
            check_data(self.run.path, self.run.present)
        return super().items_of(user)

    def evaluate(self) -> Scores:
        """Score the client's best model on its test targets: metric -> (users,) float64.

        What it sends is covered as it was in the run's own test.
        """
        check_data(self.run.path, self.run.present)
        self.run.ready = None
        round = int(self.run.summary["rounds"])
        with turn(self.run.workspace, self.client, round, self.model, doing="test"):
            return self.client.evaluate("test")

    def _scores(self, history: Ragged, k: int) -> Tensor:
        with turn(self.run.workspace, self.client, 0, self.model):
            if self.run.ready != self.name:
                self.client.begin_serving()
                self.run.ready = self.name
            return score(self.client, history, k)


def _check_fits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    """Raise RunError unless a file's tensors have the names and shapes of the model's."""
    shapes, right = ({n: tuple(t.shape) for n, t in each.items()} for each in (found, wanted))
    for name in sorted(shapes.keys() | right.keys()):
        if shapes.get(name) != right.get(name):
            was, due = (each.get(name, "none") for each in (shapes, right))
            raise RunError(
                f"{file}: does not fit the run's model, {name} has shape {was}, expected {due}; "
                "restore the file, or train the recipe again"
            )


def load_run(path: str | Path, overrides: Mapping[str, object] | None = None) -> Run:
    """Open a finished run; RunError when the folder is none.

    overrides: see `Run`, such as {"bigrec.decode": "retrieve"}.
    """
    return Run(Path(path), overrides)
