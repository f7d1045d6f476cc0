"""Ctrl-C: raised at once, or noted and raised where a run says something."""

from __future__ import annotations

import gc
import inspect
import io
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from fellrec import interrupts
from fellrec.federation.observer import Observer
from fellrec.interrupts import Interrupts, noting
from fellrec.progress import Heeding, watch

CALLS = [name for name, _ in inspect.getmembers(Observer, inspect.isfunction) if name[0] != "_"]


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    """As a shell in front starts a program, whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # it was given back
    signal.signal(signal.SIGINT, before)


def press() -> None:
    """Ctrl-C, as the terminal sends it; its handler runs before this returns."""
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):  # handlers run between bytecodes
        pass


def silent(text: str) -> None:
    raise AssertionError(text)


class Swallowing:
    """What Python ends while it collects, where an exception has nowhere to go."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        press()


def test_without_a_run_at_work_it_is_raised_at_once() -> None:
    with noting() as noted:
        with pytest.raises(KeyboardInterrupt):
            press()
        assert (noted.arrived, noted.raised) == (1, True)


def test_the_first_waits_to_be_heeded() -> None:
    with noting() as noted, pytest.raises(KeyboardInterrupt), noted.patient(silent):
        noted.heed()
        noted.wait()
        noted.heed()
        press()
        assert (noted.arrived, noted.raised) == (1, False)
        noted.heed()
        pytest.fail("it was not heeded")
    assert noted.raised


def test_the_second_does_not_wait() -> None:
    with noting() as noted, pytest.raises(KeyboardInterrupt), noted.patient(silent):
        noted.wait()
        press()
        press()
        pytest.fail("it waited")
    assert (noted.arrived, noted.raised) == (2, True)


def test_what_nobody_heeded_is_raised_at_the_end() -> None:
    with noting() as noted, pytest.raises(KeyboardInterrupt):
        with noted.patient(silent):
            noted.wait()
            press()
        pytest.fail("it is forgotten")


def test_after_the_block_none_waits() -> None:
    with noting() as noted:
        with noted.patient(silent):
            noted.wait()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_an_error_while_one_waits_is_an_error() -> None:
    with noting() as noted, pytest.raises(ValueError, match="disk"), noted.patient(silent):
        noted.wait()
        press()
        raise ValueError("disk")
    assert not noted.raised


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("waits", [True, False])
def test_one_that_comes_where_exceptions_are_dropped_is_heeded(waits: bool) -> None:
    with noting() as noted, pytest.raises(KeyboardInterrupt), noted.patient(silent):
        if waits:
            noted.wait()
        Swallowing()
        gc.collect()
        assert (noted.arrived, noted.raised) == (1, not waits)  # dropped where it was raised
        noted.heed()
        pytest.fail("it is lost")


def test_one_is_told_that_it_was_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "PATIENCE", 0.001)
    told, said = threading.Event(), list[str]()

    def say(text: str) -> None:
        said.append(text)
        told.set()

    with noting() as noted, pytest.raises(KeyboardInterrupt), noted.patient(say):
        noted.wait()
        press()
        assert told.wait(60)
    assert said == [interrupts.WAITS]


def test_another_handler_is_left_in_peace() -> None:
    came = list[int]()
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    with noting() as noted:
        press()
        noted.heed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert came == [signal.SIGINT] and noted.arrived == 0


def test_a_thread_leaves_the_signal_alone() -> None:
    handlers = list[object]()

    def work() -> None:
        with noting():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


class Heard(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[object, ...]]] = []

    def __getattribute__(self, name: str) -> object:
        if name not in CALLS:
            return object.__getattribute__(self, name)
        return lambda *given: self.told.append((name, given))


@pytest.mark.parametrize("name", CALLS)
def test_whatever_an_observer_is_told_is_passed_on_and_heeds(name: str) -> None:
    heard, noted = Heard(), Interrupts()
    given = (object(),) * (len(inspect.signature(getattr(Observer, name)).parameters) - 1)
    heeding = Heeding(heard, noted)
    getattr(heeding, name)(*given)
    assert heard.told == [(name, given)]
    noted.wait()
    noted.arrive()
    with pytest.raises(KeyboardInterrupt):
        getattr(heeding, name)(*given)
    assert len(heard.told) == 1


def test_it_waits_once_the_clients_are_there() -> None:
    """What comes before may be a download of minutes."""
    console = Console(file=io.StringIO())
    with (
        noting() as noted,
        pytest.raises(KeyboardInterrupt),
        watch(console, "ndcg@10", noted) as observer,
    ):
        observer.note("loading")
        press()
        pytest.fail("it waited")
    with (
        noting() as noted,
        pytest.raises(KeyboardInterrupt),
        watch(console, "ndcg@10", noted) as observer,
    ):
        observer.clients([{"client": "a", "users": 3, "interactions": 9, "share": 1.0}], 0)
        press()
        observer.scoring("a", "test")
        pytest.fail("it was not heeded")
