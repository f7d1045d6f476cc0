"""What a coordinator is told, and how it comes through Flower's command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.common.config import parse_config_args

from fellrec.errors import ConfigError
from fellrec.federation.flower.network import _words
from fellrec.federation.flower.server_app import app
from fellrec.federation.flower.settings import DEFAULTS, ServerSettings
from tests.federation.deployment.town import LINK, MemoryGrid

TLS = {"certificate": "c.crt", "key": "c.key", "authority": "ca.crt"}


def test_nothing_said_is_the_demo() -> None:
    told = ServerSettings.of({})
    assert told.config.name == "demo"
    assert (told.out, told.resume, told.clients, told.trunks) == (Path("runs/demo"), False, (), ())
    assert told.tls is None
    assert told.events is None


def test_lists_and_overrides_are_read() -> None:
    told = ServerSettings.of(
        {
            **TLS,
            "clients": " b, a ,",
            "trunk": "h:1, [::1]:2",
            "overrides": "train.rounds=7 'data.source=/a folder/x'",
            "wait-seconds": 3,
        }
    )
    assert told.clients == ("b", "a")
    assert told.trunks == ("h:1", "[::1]:2")
    assert told.wait_seconds == 3.0
    assert told.config.train.rounds == 7
    assert told.config.data.source == "/a folder/x"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"resume": "yes"}, "resume must be a bool"),
        ({"wait-seconds": 0}, "wait-seconds must be a float, above 0"),
        ({"wait-seconds": True}, "wait-seconds must be a float"),
        ({"answer-seconds": -1.0}, "answer-seconds must be a float"),
        ({"answer-seconds": math.nan}, "answer-seconds must be a float"),
        ({"answer-seconds": math.inf}, "answer-seconds must be a float"),
        ({"clients": 3}, "clients must be a str"),
        ({"clients": "a,b,a"}, "clients names 'a' twice"),
        ({"trunk": "h:1"}, "trunk needs certificate, key and authority"),
        ({"overrides": "train.rounds='7"}, "overrides"),
        ({"overrides": "train.rounds=x"}, "train.rounds"),
        ({"recipe": "no-such"}, "no-such"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        ServerSettings.of(given)
    assert "\n" not in str(caught.value)


def test_events_that_can_not_be_written_are_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for events in (tmp_path / "none" / "events.jsonl", tmp_path):
        context = Context(1, LINK, {}, RecordDict(), {"events": str(events)})
        with pytest.raises(ConfigError, match=f"^run configuration: events: {events} can't be"):
            app(MemoryGrid(), context)
        said = capsys.readouterr().out
        assert said.startswith("error: run configuration: events: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    "value",
    [
        "",
        "plain",
        "a b",
        "it's",
        "x=y z=1",
        "a,b",
        "é",
        "/a b/c.toml",
        True,
        60,
        1.5,
        "back\\slash",
    ],
)
def test_values_come_through_flowers_command_line(value: str | int | float | bool) -> None:
    values = {**DEFAULTS, "recipe": value, "out": "/x y/z"}
    assert parse_config_args([_words(values)]) == values
