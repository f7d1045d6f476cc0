"""The coordinator's side of all trunk servers: which client goes where, and what becomes of it.

Adapters of the trunk go between here and the trunks, never through a client. A client stays with
its trunk while that answers; one that does not is asked again when the next round begins, and its
clients go to the others, with the adapters that the coordinator has of them. Their optimisers'
moments are lost with the server and start anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from fellrec.errors import WireError
from fellrec.federation.members import Mixed
from fellrec.split.service.channel import Link, UnreachableError
from fellrec.split.service.control import TrunkControl
from fellrec.split.service.messages import Kept, Mode, Trained
from fellrec.split.service.tokens import new_key

Tensors = Mapping[str, Tensor]
Copy = Callable[[], Tensors]


class Trunks:
    """All trunks of a run.

    links: ways to them, in the order in which they are filled. like: names and shapes of the
    trunk's adapter. run, manifest, settings: what they begin with, see `TrunkControl.begin`.
    token_seconds: how long a client has to come. note: told of trunks that are lost or back.

    Raises WireError where one refuses, UnreachableError where none is there.
    """

    def __init__(
        self,
        links: Sequence[Link],
        like: Tensors,
        *,
        run: str,
        manifest: str,
        settings: str,
        token_seconds: float,
        note: Callable[[str], None],
    ) -> None:
        self._controls = {link.address: TrunkControl(link, like) for link in links}
        self._run, self._manifest, self._settings = run, manifest, settings
        self._seconds = token_seconds
        self._note = note
        self._key = new_key()
        self._there: set[str] = set()
        self._of: dict[str, str] = {}
        self._settled: dict[str, str] = {}  # where what a client has is known to be ours
        lost: UnreachableError | None = None
        for address in self._controls:
            try:
                self._begin(address)
                self._there.add(address)
            except UnreachableError as error:
                lost = error
                note(f"{error}; the run begins without it")
        if lost is not None and not self._there:
            raise lost

    def attend(self) -> None:
        """Ask every trunk whether it is there and still ours; begin again with one that is back.

        Raises WireError when none answers.
        """
        lost = ""
        for address, control in self._controls.items():
            try:
                standing = control.status()
                if standing.draining:
                    raise WireError(f"the trunk at {address} is about to stop")
                if standing.run != self._run or address not in self._there:
                    self._begin(address)
                    self._note(f"the trunk at {address} is back")
                self._there.add(address)
            except WireError as error:
                lost = str(error)
                if address in self._there:
                    self._note(f"{error}; its clients go elsewhere")
                self._there.discard(address)
        if not self._there:
            raise WireError(f"no trunk is left: {lost}")

    def let_in(
        self, client: str, round: int, label: int, mode: Mode, copy: Copy, *, best: bool = False
    ) -> tuple[str, str]:
        """Prepare a client's seat; return the trunk's address and the token for it.

        copy: reads the coordinator's copy of the client's trunk adapter, for a trunk that lacks it,
        and for one that the client comes to: what that holds under the label may be of a round
        that the coordinator lost. Moments stay there if the adapter is the same.
        Raises WireError when the trunk can't.
        """
        address = self._assign(client)
        comes = bool(label) and self._settled.get(client) != address
        with self._asking(client) as control:
            if comes or not control.prepare(client, round, label, mode, best=best):
                control.prepare(client, round, label, mode, best=best, adapter=copy())
        self._settled[client] = address
        return address, control.token(client, round, mode, self._seconds)

    def collect(self, client: str, round: int) -> tuple[Trained, dict[str, Tensor]]:
        """Return what a client's session trained in a round."""
        with self._asking(client) as control:
            return control.collect(client, round)

    def install(self, client: str, label: int, mixed: Mixed) -> None:
        """Give a client's trunk the mixed adapter."""
        reset = [name for name in mixed.reset if name in mixed.trunk]
        with self._asking(client) as control:
            control.install(client, label, mixed.trunk, reset)

    def commit(self, labels: Mapping[str, Kept]) -> None:
        """Make installed adapters the clients' own.

        A trunk that is lost just now is passed over: it gets the coordinator's copies when it is
        back.
        """
        for address in sorted(self._there):
            own = {name: kept for name, kept in labels.items() if self._of.get(name) == address}
            try:
                if own:
                    self._controls[address].commit(own)
            except WireError as error:
                self._note(f"{error}; it gets the adapters again when it is back")

    def drop(self, clients: Iterable[str]) -> None:
        """Let the trunks forget some clients' round; one that does not answer has forgotten it."""
        for client in clients:
            if client in self._of:
                try:
                    with self._asking(client) as control:
                        control.drop(client)
                except UnreachableError:
                    continue
                except WireError as error:
                    self._note(str(error))

    def close(self) -> None:
        """Hang up."""
        for control in self._controls.values():
            control.close()

    def _begin(self, address: str) -> None:
        control = self._controls[address]
        control.begin(self._run, manifest=self._manifest, settings=self._settings, key=self._key)

    def _assign(self, client: str) -> str:
        """Return the client's trunk, which is there; the least busy one for who has none."""
        if self._of.get(client) not in self._there:
            load = Counter(self._of.values())
            there = [address for address in self._controls if address in self._there]
            if not there:
                raise WireError("no trunk is left")
            self._of[client] = min(there, key=lambda address: load[address])
        return self._of[client]

    @contextmanager
    def _asking(self, client: str) -> Iterator[TrunkControl]:
        """Lend the way to a client's trunk.

        One that can't be reached is not asked again before the next round: with many clients, each
        would wait for it. Raises UnreachableError then.
        """
        address = self._of[client]
        if address not in self._there:
            raise UnreachableError(f"the trunk at {address} is lost")
        try:
            yield self._controls[address]
        except UnreachableError as error:
            self._there.discard(address)
            self._note(f"{error}; its clients go elsewhere at the next round")
            raise
