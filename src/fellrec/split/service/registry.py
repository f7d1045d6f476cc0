"""Who may sit at the trunk, with which adapter, and what becomes of it: the coordinator's orders.

A round at the trunk: `prepare` a client's seat, the client comes (`join`) and trains a working
copy, `collect` takes what it learned, `install` puts the mixed adapter beside it, the client may be
prepared again to be served by that, `commit` makes it the client's own. All else is forgotten.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from torch import Tensor, nn

import fellrec
from fellrec.errors import WireError
from fellrec.models.adapters import adapter
from fellrec.split.service import messages
from fellrec.split.service.admission import BusyError, MissingError, check_agreement, check_token
from fellrec.split.service.budget import Budget
from fellrec.split.service.messages import Greeting, Mode, Trained
from fellrec.split.service.metrics import Metrics
from fellrec.split.service.packing import check_finite, unpack_tensors
from fellrec.split.service.seat import Seat, Workshop
from fellrec.split.service.settings import ServiceSettings
from fellrec.split.service.store import AdapterStore, check_name
from fellrec.split.session import Session
from fellrec.split.trunk import TrunkServer


class Registry:
    """The seats of one trunk. Methods may be called from any thread.

    clock: seconds since the epoch, for the tokens' expiry.
    """

    def __init__(
        self,
        trunk: TrunkServer,
        settings: ServiceSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        limits = settings.limits
        self.draining = False
        self.budget = Budget(limits.held_bytes, limits.workers, limits.memory_seconds)
        self._trunk = trunk
        self._settings = settings
        self._clock = clock
        window = trunk.settings.micro_batches + 1
        self._shop = Workshop(
            self.budget, metrics, trunk.settings.max_bytes, window, limits.reply_bytes
        )
        self._key = b""
        self._store: AdapterStore | None = None
        self._stores: dict[str, AdapterStore] = {}
        self._seats: dict[str, Seat] = {}
        self._guests: dict[str, Seat] = {}
        self._uncommitted: set[str] = set()
        self._lock = threading.RLock()

    def begin(self, order: messages.Begin) -> None:
        """Take orders of this coordinator from now on; what another began is forgotten."""
        check_agreement(order, self._settings)
        store = self._store_of(order.run, new=True)
        with self._lock:
            before, self._seats, self._key = self._seats, {}, b""
        for seat in before.values():
            self._dismiss(seat, "the coordinator began anew")
        with self._lock:  # after that: a session may have finished while it was dismissed
            self._uncommitted.clear()
        store.recover()
        with self._lock:
            self._store, self._key = store, bytes.fromhex(order.key)

    def prepare(self, order: messages.Prepare, body: bytes) -> None:
        """Let a client come for a round; its adapter is in `body` unless this server has it.

        Raises MissingError where it has not, BusyError when the server is about to stop and this
        would be the beginning of a round: one that is under way goes on to its commit.
        """
        store, client, label = self._begun(), check_name(order.client), order.label
        if client == self._settings.coordinator:
            raise WireError(f"{client!r} is the coordinator's name; rename the client")
        if self.draining and not self._under_way(client, order.mode):
            raise BusyError("the trunk is about to stop; prepare clients elsewhere")
        given = unpack_tensors(body, self._like()) if body else None
        end = self._end if order.mode == "train" else self._vacate
        end(client, "the coordinator prepared another")
        if order.mode == "train":
            store.drop(client)
            store.rewind(client, label)
        if given is not None:
            store.receive(client, label, given, best=order.best)
        elif label and not store.holds(client, label, best=order.best):
            kind = "best adapter" if order.best else "adapter"
            raise MissingError(
                f"client {client!r}: the {kind} of label {label} is not here; send it"
            )
        seat = self._seat(store, client, order.round, label, order.mode, best=order.best)
        with self._lock:
            self._seats[client] = seat

    def collect(self, order: messages.Collect) -> tuple[Trained, dict[str, Tensor]]:
        """Return what a client's session trained; the session is over then."""
        store, client = self._begun(), check_name(order.client)
        seat = self._seats.get(client)
        if seat is not None and seat.mode == "train" and seat.round == order.round:
            if seat.reason:
                raise WireError(f"client {client!r}: its session ended: {seat.reason}")
            seat.finish()
        found = store.trained(client, order.round + 1)
        if found is None:
            raise WireError(f"client {client!r} has trained nothing in round {order.round} here")
        return found

    def install(self, order: messages.Install, body: bytes) -> None:
        """Put a client's mixed adapter beside what it trained."""
        mixed = unpack_tensors(body, self._like())
        unknown = sorted(set(order.reset) - mixed.keys())
        if unknown:
            raise WireError(f"reset names {unknown[0]!r}, which the adapter does not have")
        self._begun().put_candidate(check_name(order.client), order.label, mixed, order.reset)

    def commit(self, order: messages.Commit) -> None:
        """Make installed adapters the clients' own."""
        self._begun().commit({check_name(client): kept for client, kept in order.labels.items()})
        for client in order.labels:
            self._end(client, "the coordinator ended the round")

    def drop(self, order: messages.Drop) -> None:
        """Forget a client's open session, and what was not committed."""
        store, client = self._begun(), check_name(order.client)
        self._end(client, "the coordinator dropped this client's round")
        store.drop(client)

    def status(self) -> messages.Standing:
        """Tell how things stand."""
        store = self._store
        return messages.Standing(
            run=store.run if store else "",
            version=fellrec.__version__,
            draining=self.draining,
            held_bytes=self.budget.held,
            sessions=tuple(seat.standing() for seat in self._all()),
            labels=store.labels() if store else {},
        )

    def join(self, greeting: Greeting, name: str) -> Seat:
        """Find the seat of the client whose certificate bears this name, its session open.

        Raises WireError with the reason why it has none, BusyError where it may come again.
        """
        check_agreement(greeting, self._settings)
        seat = self._called(greeting, name) if greeting.token else self._guests.get(name)
        if greeting.resume:
            if seat is None or seat.name != greeting.resume:
                raise WireError("the session is over: the trunk restarted, or began another since")
        elif not greeting.token:
            seat = self._welcome(greeting, name, seat)
        if seat is None:
            raise WireError(
                f"the coordinator has not prepared a round for client {name!r} on this trunk"
            )
        if seat.reason:
            raise WireError(f"the session is over: {seat.reason}")
        if seat.answered and not greeting.resume:
            raise WireError(
                f"client {name!r} has begun this round already; end the other process with its "
                "certificate, or let the coordinator prepare the client again"
            )
        self._open(seat)
        return seat

    def expire(self) -> None:
        """End the sessions that have been idle for too long."""
        limit = self._settings.limits.idle_seconds
        for seat in self._all():
            if seat.state == "open" and seat.idle() > limit:
                self._dismiss(seat, f"no frame came for {limit:g} s")
        with self._lock:  # whoever has ended stays as long again, so that the client learns why
            self._guests = {
                name: seat
                for name, seat in self._guests.items()
                if seat.state == "open" or seat.idle() <= limit
            }

    def open_sessions(self) -> int:
        """Count working copies in memory."""
        return sum(seat.state == "open" for seat in self._all())

    def busy(self) -> bool:
        """Whether a client is at work, or a round waits to be committed."""
        return bool(self._uncommitted) or self.open_sessions() > 0

    def close(self) -> None:
        """End all sessions."""
        for seat in self._all():
            self._dismiss(seat, "the trunk stopped")

    def _called(self, greeting: Greeting, name: str) -> Seat | None:
        """Check a client's token and return the seat that it is for."""
        with self._lock:
            key, store, seat = self._key, self._store, self._seats.get(name)
        if store is None or not key:
            raise WireError("no coordinator has begun a run since this trunk started")
        claims = check_token(greeting, name, key, store.run, self._clock())
        if seat is not None and (seat.round, seat.mode) != (claims.round, claims.mode):
            raise WireError(
                f"the token is to {claims.mode} in round {claims.round}, the coordinator prepared "
                f"to {seat.mode} in round {seat.round}"
            )
        return seat

    def _welcome(self, greeting: Greeting, name: str, before: Seat | None) -> Seat:
        """Give a client that comes of its own accord a read-only seat, on its own adapter."""
        if not greeting.run:
            raise WireError("say which run's adapter to use, or bring the coordinator's token")
        store = self._store_of(greeting.run)
        label = max(store.labels().get(check_name(name), ()), default=0)
        best = greeting.adapter == "best"
        if not label or not store.holds(name, label, best=best):
            raise WireError(
                f"this trunk holds no {greeting.adapter} adapter of client {name!r} in run "
                f"{greeting.run!r}"
            )
        if before is not None:
            self._dismiss(before, "another connection of this client took over")
        seat = self._seat(store, name, label, label, "serve", best=best)
        with self._lock:
            self._guests[name] = seat
        return seat

    def _open(self, seat: Seat) -> None:
        with self._lock:
            if seat.state != "awaited":
                return
            called = self._seats.get(seat.client) is seat  # not a guest, which no round waits for
            if self.draining and not (called and self._under_way(seat.client, seat.mode)):
                raise BusyError("the trunk is about to stop")
            limit = self._settings.limits.sessions
            if self.open_sessions() >= limit:
                raise BusyError(f"{limit} sessions are open, which is the trunk's limit; wait")
            seat.open()

    def _seat(
        self, store: AdapterStore, client: str, round: int, label: int, mode: Mode, *, best: bool
    ) -> Seat:
        def make() -> Session:
            factors = store.adapter(client, label, best=best)
            if factors is None and label:
                raise WireError(f"label {label} of client {client!r} is gone; prepare it again")
            moments = store.moments(client, label) if mode == "train" else None
            return self._trunk.session(client, round, factors, moments)

        def keep(session: Session, counted: Trained) -> None:
            factors, moments = session.result()
            try:
                check_finite(factors)
            except WireError as error:
                raise WireError(f"{error}: it diverged, lower train.learning_rate") from None
            store.put_trained(client, round + 1, factors, moments, counted)
            with self._lock:
                self._uncommitted.add(client)

        return Seat(client, round, mode, self._shop, make, keep)

    def _under_way(self, client: str, mode: Mode) -> bool:
        """Whether a client comes to be scored in a round that waits to be committed."""
        return mode == "serve" and client in self._uncommitted

    def _end(self, client: str, reason: str) -> None:
        """End a client's seat, and wait for no commit of its round any more."""
        self._vacate(client, reason)
        with self._lock:  # after that: its session may have finished while it was dismissed
            self._uncommitted.discard(client)

    def _vacate(self, client: str, reason: str) -> None:
        with self._lock:
            seat = self._seats.pop(client, None)
        if seat is not None:
            self._dismiss(seat, reason)

    @staticmethod
    def _dismiss(seat: Seat, reason: str) -> None:
        """End a seat, waiting for the frame in progress: never while holding the lock."""
        seat.end(reason)
        seat.hang_up()

    def _begun(self) -> AdapterStore:
        if self._store is None:
            raise WireError("no coordinator has begun a run since this trunk started; begin first")
        return self._store

    def _store_of(self, run: str, *, new: bool = False) -> AdapterStore:
        """Return a run's part of the folder, recovered; only a coordinator may begin one."""
        with self._lock:
            store = self._stores.get(run)
            if store is None:
                store = AdapterStore(self._settings.folder, run)
                if not (new or store.known):
                    raise WireError(f"this trunk knows no run {run!r}")
                store.agree(self._settings.manifest, self._settings.agreed)
                store.recover()
                self._stores[run] = store
            return store

    def _like(self) -> dict[str, nn.Parameter]:
        return adapter(self._trunk.base)

    def _all(self) -> list[Seat]:
        with self._lock:
            return [*self._seats.values(), *self._guests.values()]
