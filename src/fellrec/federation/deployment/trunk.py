"""A trunk server's process: the middle blocks of a recipe's base, checked, behind a service.

It reads the recipe and the base's middle blocks; no data, no catalogue, no other block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fellrec.config import RunConfig
from fellrec.data.sources import fetch_model
from fellrec.errors import ModelError
from fellrec.federation.deployment.agreement import agreed
from fellrec.federation.deployment.allocator import give_back_what_is_freed
from fellrec.federation.recommenders import outline_part
from fellrec.federation.workspace import trunk_server
from fellrec.models import manifest
from fellrec.models.bases import load_config
from fellrec.split.service.server import TrunkService, serve
from fellrec.split.service.settings import ServiceSettings


def check_trunk(config: RunConfig) -> tuple[str, str]:
    """Check the tensors that a trunk server will read; return the digests it greets clients with.

    They are of the base's weights and of the settings that both sides share. Raises ModelError for
    a tensor of the trunk's blocks that is not the one of the base's manifest.
    """
    base = fetch_model(config.model.base)
    stage = outline_part(config, load_config(base), "trunk")
    manifest.check(base, manifest.stage_tensors(base, [stage]))
    return manifest.digest(base), agreed(config)


def run_trunk(
    config: RunConfig,
    settings: ServiceSettings,
    ready: Callable[[TrunkService], None] = lambda running: None,
) -> None:
    """Serve a recipe's trunk until SIGTERM or SIGINT; see `split.service.server.serve`.

    Raises ConfigError for what can't be served as asked, ModelError where no block is left for it.
    """
    give_back_what_is_freed()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    trunk = trunk_server(config)
    if trunk is None:
        raise ModelError("clients hold all blocks of this recipe's base; lower model.k_in or k_out")
    serve(trunk, settings, ready)
