"""A client that was given its adapter back is served by the private tensors that go with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fellrec.errors import RunError
from fellrec.federation.deployment.client_store import ClientStore
from fellrec.federation.deployment.collect import Part, collect
from fellrec.serving.part import Held, Line, open_part
from fellrec.serving.run import load_run
from tests.federation.deployment.town import town
from tests.toys import Toys, titles

SECRET: dict[str, object] = {
    "model.item_residual": "local",
    "privacy.private_head": True,
    "privacy.secret_start": 3.0,
}


class Labelled(Line):
    """A trunk that serves by the third label."""

    def __init__(self) -> None:
        """Connect to nothing."""

    def open(self) -> int:
        return 3


def test_a_label_that_was_lost_before_the_test_is_served_as_it_was_tested(
    toys: Toys, tmp_path: Path
) -> None:
    with town(toys.recipe(SECRET), tmp_path) as it:

        def after(rounds: int) -> None:
            if rounds == 2:
                shutil.rmtree(it.folder_of("north") / "rounds")

        run = it.conduct(after=after)
        path = it.folder_of("north")
        assert {file.stem for file in (path / "rounds" / "2").iterdir()} == {
            "best_adapter",  # the coordinator's copy
            "best_private",
        }
        collect(tmp_path / "whole", run, [Part(name, it.folder_of(name)) for name in it.names])
        expected = load_run(tmp_path / "whole").client("north").recommend(titles()[:3])
        trunk = f"127.0.0.1:{it.trunks[0].port}"
        with open_part(path, trunk) as part:
            found = part.recommend(titles()[:3])
        assert [each.item for each in found] == [each.item for each in expected]
        assert [e.score for e in found] == pytest.approx([e.score for e in expected], abs=1e-6)
        (path / "rounds" / "2" / "best_private.safetensors").unlink()
        with pytest.raises(RunError, match=r"private tensors .* after 2 rounds are not here"):
            open_part(path, trunk)


@pytest.mark.parametrize("secret", [True, False])
def test_only_a_public_start_can_stand_for_private_tensors(
    toys: Toys, tmp_path: Path, secret: bool
) -> None:
    config = toys.recipe(SECRET if secret else {"model.item_residual": "local"})
    (tmp_path / "config.toml").write_text(config.to_toml())
    store = ClientStore(tmp_path, "north")
    store.take_over(3, "best_adapter", {"a": torch.ones(2)})
    held = Held(store, Labelled())
    if secret:
        with pytest.raises(RunError, match=r"^\S+: the private .*; bring rounds/3 back, or let"):
            held.best()
    else:
        assert held.best()[1].private == {}
    store.complete(3, "best_private", {"b": torch.ones(2)})
    store.complete(3, "best_private", {"b": torch.zeros(2)})
    assert held.best()[1].private["b"].tolist() == [1, 1]
