"""What a client's machine has: its data, its keys, and the folder that it keeps runs in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fellrec.config import parse_overrides
from fellrec.errors import ConfigError, RunError
from fellrec.federation.deployment.certificates import name_in
from fellrec.files import read_json, write_json
from fellrec.split.service.settings import TlsFiles

KEYS = ("data", "folder", "certificate", "key", "authority")
"""What a node's configuration has to say: paths."""
LOCAL_KEYS = ("model.base", "model.device", "model.item_encoder", "train.threads")
"""Keys of the recipe that are a machine's own: where weights lie, and what computes."""
_CARD = "client.json"


@dataclass(frozen=True)
class Place:
    """One client's machine.

    data: the client's file (`data.client_file`). folder: where its runs are kept, one folder each.
    tls: by which it is known to the trunk. name: the client's, as its certificate says. overrides:
    of the recipe, for this machine. retry_seconds: how long a trunk may be out of reach before it
    is given up. secret: a file that all clients have alike and no server has, for the recipe's
    `privacy.secret_start`.
    """

    data: Path
    folder: Path
    tls: TlsFiles
    name: str
    overrides: Mapping[str, object] = field(default_factory=dict)
    retry_seconds: float = 60.0
    secret: Path | None = None

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Place:
        """Read it from a node's configuration: `KEYS`, and if wanted `overrides`, `retry-seconds`
        and `secret`.

        Raises ConfigError for a key that is missing or can't be used.
        """
        for key in KEYS:
            if not isinstance(values.get(key), str) or not values[key]:
                raise ConfigError(
                    f"this SuperNode's --node-config lacks {key}; it needs {', '.join(KEYS)}"
                )
        data, folder, *pair = (Path(str(values[each])) for each in KEYS)
        tls = TlsFiles(*pair)
        given = str(values.get("overrides", ""))
        overrides = parse_overrides(given, "overrides of --node-config")
        for key in overrides:
            if key not in LOCAL_KEYS:
                raise ConfigError(
                    f"overrides of --node-config: {key} is for all parties to agree on; a client "
                    f"may set {', '.join(LOCAL_KEYS)}"
                )
        retry = values.get("retry-seconds", 60.0)
        if isinstance(retry, bool) or not isinstance(retry, int | float) or retry < 0:
            raise ConfigError(f"retry-seconds of --node-config: a number of seconds, got {retry!r}")
        secret = values.get("secret")
        if secret is not None and (not isinstance(secret, str) or not secret):
            raise ConfigError(f"secret of --node-config: the path of a file, got {secret!r}")
        name, kept = name_in(tls.certificate), Path(secret) if secret else None
        return cls(data, folder, tls, name, overrides, float(retry), kept)

    def run(self, run: str) -> Path:
        """Return the folder of a run."""
        return self.folder / run

    def note(self, run: str) -> None:
        """Write down, in a run's folder, what serving from it takes later."""
        files = {
            "data": self.data,
            "certificate": self.tls.certificate,
            "key": self.tls.key,
            "authority": self.tls.authority,
        }
        card = {"client": self.name, "run": run}
        card |= {key: str(path.resolve()) for key, path in files.items()}
        write_json(self.run(run) / _CARD, card)


def noted(path: Path) -> tuple[Place, str]:
    """Read back what `Place.note` wrote: the machine, and the run's id.

    Raises RunError for a folder that is not a client's part of a run.
    """
    if not (path / _CARD).is_file():
        raise RunError(f"{path}: not a client's part of a run; give the folder below its own")
    card = read_json(path / _CARD)
    try:
        tls = TlsFiles(*(Path(card[key]) for key in ("certificate", "key", "authority")))
        return Place(Path(card["data"]), path.parent, tls, str(card["client"])), str(card["run"])
    except (KeyError, TypeError) as error:
        raise RunError(f"{path / _CARD}: is damaged ({error!r})") from None


def is_part(path: Path) -> bool:
    """Whether a folder is a client's part of a run."""
    return (path / _CARD).is_file()
