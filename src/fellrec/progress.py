"""Shows a run while it goes on: bars in a terminal, a line per round elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from fellrec.console import LEGEND, client_table, is_live, plain, print_parts, round_parts
from fellrec.federation.observer import Observer, RoundRecord
from fellrec.interrupts import Interrupts


class LineProgress(Observer):
    """Prints the clients, then a line per round; no control codes.

    metric: the validation score that rounds are judged by.
    """

    def __init__(self, console: Console, metric: str) -> None:
        self.console = console
        self.metric = metric
        self.rounds = 0
        self.users: dict[str, int] = {}
        self._announced = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is open."""

    def note(self, text: str) -> None:
        """Print it."""
        self.console.print(plain(text), soft_wrap=True, style="dim")

    def working(self, what: str, done: int, total: int) -> None:
        """Announce preparation once: it may take a while."""
        if what != self._announced:
            self._announced = what
            self.console.print(f"preparing {what} ({total:,})", soft_wrap=True, style="dim")

    def clients(self, table: Sequence[Mapping[str, str | int | float]], dropped: int) -> None:
        """Print the table of clients."""
        self.users = {str(row["client"]): int(row["users"]) for row in table}
        self.console.print()
        self.console.print(client_table(table, dropped))
        self.console.print()
        self.console.print(LEGEND, style="dim", soft_wrap=not is_live(self.console))

    def round_begins(self, round: int, rounds: int, drawn: Sequence[str]) -> None:
        """Remember how many there will be."""
        self.rounds = rounds

    def round_ends(self, record: RoundRecord) -> None:
        """Print the round."""
        print_parts(self.console, round_parts(record, self.rounds, self.metric, self.users))


class _Clock(ProgressColumn):
    """Time elapsed and left of a task; nothing for one whose length is not known."""

    def __init__(self) -> None:
        super().__init__(Column(min_width=28, no_wrap=True))

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        elapsed, left = (
            "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))
            for seconds in (task.elapsed, task.time_remaining)
        )
        return Text(f"{elapsed} elapsed, {left} left", style="dim")


class LiveProgress(LineProgress):
    """The same lines above bars: rounds with the time left, and the client at work."""

    def __init__(self, console: Console, metric: str) -> None:
        super().__init__(console, metric)
        self._bars = Progress(
            # Fixed widths: bars that grow and shrink with each text are hard to read.
            TextColumn("{task.description}", markup=False, table_column=Column(min_width=14)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}", markup=False, table_column=Column(min_width=11)),
            _Clock(),
            console=console,
            transient=True,
            refresh_per_second=4,
            # A round may take minutes: a guess from the last seconds alone would jump about.
            speed_estimate_period=3600,
        )
        self._drawn: Sequence[str] = ()
        self._round = 0
        self._overall: TaskID | None = None
        self._current: TaskID | None = None
        self._subject = ""

    def __enter__(self) -> Self:
        self._bars.start()
        self._show("preparing", None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bars away; the lines stay."""
        self._bars.stop()

    def working(self, what: str, done: int, total: int) -> None:
        """Move the bar of a preparation."""
        self._show(what, total, done, f"{done:,}/{total:,}")

    def round_begins(self, round: int, rounds: int, drawn: Sequence[str]) -> None:
        """Set the bar of all rounds to the finished ones."""
        super().round_begins(round, rounds, drawn)
        self._drawn, self._round = drawn, round
        if self._overall is None:
            self._hide()
            self._overall = self._bars.add_task(
                "rounds", total=rounds, completed=round, state=f"{round}/{rounds}"
            )

    def step(self, client: str, done: int, total: int, loss: float) -> None:
        """Move the client's bar, and with it that of all rounds."""
        self._show(f"{plain(client)} training", total, done, f"loss {loss:.3f}")
        if self._overall is not None:
            share = (self._drawn.index(client) + done / total) / len(self._drawn)
            self._bars.update(self._overall, completed=self._round + share)

    def scoring(self, client: str, what: str) -> None:
        """Name the client that is being scored; its length is not known."""
        self._show(f"{plain(client)} {what}", None)

    def round_ends(self, record: RoundRecord) -> None:
        """Print the round above the bars."""
        super().round_ends(record)
        if self._overall is not None:
            done = record.round + 1
            self._bars.update(self._overall, completed=done, state=f"{done}/{self.rounds}")

    def _show(self, subject: str, total: int | None, done: int = 0, state: str = "") -> None:
        if subject != self._subject or self._current is None:
            self._hide()
            self._subject = subject
            self._current = self._bars.add_task(subject, total=total, state=state)
        self._bars.update(self._current, completed=done, state=state)

    def _hide(self) -> None:
        if self._current is not None:
            self._bars.remove_task(self._current)
            self._current = None


class Heeding(Observer):
    """Passes on what it is told, where Ctrl-C has not asked to stop.

    Preparation may download and is interrupted at once; once the clients are there, a first Ctrl-C
    waits for what is told next: the end of a step, at most that of scoring a client.
    """

    def __init__(self, shown: Observer, interrupts: Interrupts) -> None:
        self._shown = shown
        self._interrupts = interrupts

    def note(self, text: str) -> None:
        """Pass it on."""
        self._interrupts.heed()
        self._shown.note(text)

    def working(self, what: str, done: int, total: int) -> None:
        """Pass it on."""
        self._interrupts.heed()
        self._shown.working(what, done, total)

    def clients(self, table: Sequence[Mapping[str, str | int | float]], dropped: int) -> None:
        """Pass it on; from here on Ctrl-C waits."""
        self._interrupts.heed()
        self._shown.clients(table, dropped)
        self._interrupts.wait()

    def round_begins(self, round: int, rounds: int, drawn: Sequence[str]) -> None:
        """Pass it on."""
        self._interrupts.heed()
        self._shown.round_begins(round, rounds, drawn)

    def step(self, client: str, done: int, total: int, loss: float) -> None:
        """Pass it on."""
        self._interrupts.heed()
        self._shown.step(client, done, total, loss)

    def scoring(self, client: str, what: str) -> None:
        """Pass it on."""
        self._interrupts.heed()
        self._shown.scoring(client, what)

    def round_ends(self, record: RoundRecord) -> None:
        """Pass it on."""
        self._interrupts.heed()
        self._shown.round_ends(record)


@contextmanager
def watch(console: Console, metric: str, interrupts: Interrupts) -> Iterator[Observer]:
    """Lend what suits the console, to be given to a run; what it is told heeds Ctrl-C."""
    shown = (LiveProgress if is_live(console) else LineProgress)(console, metric)
    with shown, interrupts.patient(shown.note):
        yield Heeding(shown, interrupts)
