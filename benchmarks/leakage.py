"""What a server that knows the public head reads back, over blocks on the client and defences.

    python benchmarks/leakage.py [--quick] [--only RECOMMENDER] [--histories N] [--secret]

Histories of MovieLens-100K's items that nobody had, through the untrained head of each recommender
(`audit.calibration`), behind noise; with --secret, behind private heads that start away from the
public one. Target: where nothing is hidden, at least 0.95 of all items by the best attack at
k_in = 0 for all three, and at k_in = 1 for the causal ones.
"""

from __future__ import annotations

import argparse
import time

TARGET = 0.95
CAUSAL = ("hllm", "bigrec")
RECIPES = {"hllm": "demo", "bigrec": "bigrec-ml100k", "recformer": "recformer-ml100k"}
BLOCKS = {"hllm": (0, 1, 2, 3), "bigrec": (0, 1, 2, 4), "recformer": (0, 1, 2, 3)}
MOST = 64  # candidates of a search where none fits exactly and more find no more; else all
NOISES = (0.0, 0.3, 1.0, 3.0)
SECRETS = (0.3, 1.0, 3.0)
ACQUAINTED = 64  # of 512 users behind a secret start, whose histories a server has


def measure(
    recommender: str, k_in: int, noises: tuple[float, ...], histories: int, secret_start: float = 0
) -> bool:
    """Print a line for each noise; return whether what is unprotected is read."""
    from fellrec import RunConfig
    from fellrec.audit.calibration import calibrated
    from fellrec.federation.shares import load_split
    from fellrec.federation.workspace import Workspace
    from fellrec.privacy import Secret

    overrides: dict[str, object] = {"model.k_in": k_in, "model.k_out": 1}
    if secret_start:
        overrides |= {
            "privacy.private_head": True,
            "privacy.secret_start": secret_start,
            "model.item_residual": "local",
        }
    config = RunConfig.from_toml(RECIPES[recommender], overrides=overrides)
    workspace = Workspace(config, load_split(config)[0], secret=Secret.of_seed(0))
    open_to_all = True
    for noise in noises:
        begun = time.perf_counter()
        found = {
            each.attack: each.recovered
            for each in calibrated(
                workspace,
                [noise],
                histories=histories,
                most=MOST if noise or secret_start else 0,
                acquainted=ACQUAINTED,
            )
        }
        said = "  ".join(
            f"{name} {mean:.3f} [{low:.3f}, {high:.3f}]"
            for name, (mean, low, high) in found.items()
        )
        seconds = time.perf_counter() - begun
        where = f"{recommender} k_in {k_in} noise {noise:g} secret start {secret_start:g}"
        print(f"{where}: {said}  ({seconds:.0f} s)", flush=True)
        if noise == secret_start == 0 and (k_in == 0 or (k_in == 1 and recommender in CAUSAL)):
            open_to_all = max(mean for mean, _, _ in found.values()) >= TARGET
    return open_to_all


def main() -> None:
    """Measure all, and say whether the attacks are strong enough."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="no noise, few blocks")
    parser.add_argument("--only", choices=RECIPES, help="one recommender")
    parser.add_argument("--histories", type=int, default=8)
    parser.add_argument("--secret", action="store_true", help="behind private heads, no noise")
    options = parser.parse_args()
    noises, histories = ((0.0,), 3) if options.quick else (NOISES, options.histories)
    cuts = [
        (recommender, k_in)
        for recommender in ([options.only] if options.only else RECIPES)
        for k_in in BLOCKS[recommender][: 2 if options.quick else None]
    ]
    if options.secret:
        for recommender, k_in in cuts:
            for secret_start in SECRETS:
                measure(recommender, k_in, (0.0,), histories, secret_start)
        return
    strong = [measure(recommender, k_in, noises, histories) for recommender, k_in in cuts]
    print(f"unprotected histories are read to at least {TARGET}: {all(strong)}")


if __name__ == "__main__":
    main()
