"""What the trunk's service and its callers tell each other besides frames, key by key."""

from __future__ import annotations

from collections.abc import Mapping

from fellrec.federation.deployment.schema.forms import (
    NUMBER,
    TRUTH,
    Key,
    Many,
    Named,
    Object,
    Text,
    one_of,
    whole,
)
from fellrec.federation.deployment.schema.messages import (
    CLIENT,
    COORDINATOR,
    COUNT,
    DIGEST,
    LINE,
    NAME,
    RUN,
    TENSOR,
    TOKEN,
    TRUNK,
    VERSION,
    Told,
)

_BEGUN = (
    Key("settings", DIGEST, "digest of the recipe's part that both sides compute with"),
    Key("manifest", DIGEST, "digest of the base's weights"),
    Key("version", VERSION, "of fellrec"),
)

STREAM: Mapping[str, Told] = {
    "Greeting": Told(
        CLIENT,
        TRUNK,
        "the first message of a connection",
        (
            Key("protocol", whole(), "of the trunk's service: 1"),
            Key("version", VERSION, "of fellrec"),
            Key("token", TOKEN, "the coordinator's", loose="random"),
            Key("manifest", DIGEST, "digest of the base's weights"),
            Key("settings", DIGEST, "digest of the recipe's part that both sides compute with"),
            Key("resume", Text("hexadecimal", 64, "[0-9a-f]*"), "the session that was cut off, if "
                "any", loose="random"),
            Key("run", Text("a run's id or nothing", 100, r"([A-Za-z0-9][A-Za-z0-9._-]*)?"),
                "whose adapter to be served by, without a token", loose="random"),
            Key("adapter", one_of("best", "last"), "which one"),
        ),
    ),
    "Welcome": Told(
        TRUNK,
        CLIENT,
        "its answer",
        (
            Key("ok", TRUTH, "whether the client is let in"),
            Key("reason", LINE, "why not"),
            Key("session", Text("hexadecimal", 64, "[0-9a-f]*"), "its name, drawn at random",
                loose="random"),
            Key("last", COUNT, "number of the last message that was answered"),
            Key("window", COUNT, "messages that may wait for their answer"),
            Key("round", whole(), "what frames have to name"),
        ),
    ),
    "Refusal": Told(
        TRUNK,
        "client or coordinator",
        "a status of gRPC's, where a call ends with none of the above",
        (
            Key("code", Text("gRPC's code", 32, "[A-Z_]+"), "what kind of refusal"),
            Key("details", LINE, "one line for people", loose="random"),
        ),
    ),
}  # fmt: skip
"""The trunk's service besides frames."""

CALLS: Mapping[str, Told] = {
    "Begin": Told(
        COORDINATOR,
        TRUNK,
        "a coordinator takes over",
        (
            Key("run", RUN, "names the run's folder at the trunk", loose="random"),
            *_BEGUN,
            Key("key", DIGEST, "for tokens; recorded as zeros, as who has it can make tokens"),
        ),
    ),
    "Prepare": Told(
        COORDINATOR,
        TRUNK,
        "a client may come; with its trunk adapter where the trunk has lost its own",
        (
            Key("client", NAME, "which one"),
            Key("round", whole(), "for which round"),
            Key("label", whole(), "rounds that its adapter went through"),
            Key("mode", one_of("train", "serve"), "what for"),
            Key("best", TRUTH, "whether by its best adapter"),
        ),
        tensors=True,
    ),
    "Collect": Told(
        COORDINATOR,
        TRUNK,
        "asks what a client's session trained",
        (
            Key("client", NAME, "which one"),
            Key("round", whole(), "in which round"),
        ),
    ),
    "Trained": Told(
        TRUNK,
        COORDINATOR,
        "the answer, with the trunk's adapter",
        (
            Key("steps", COUNT, "optimiser steps"),
            Key("positions", COUNT, "positions trained on"),
            Key("seconds", NUMBER, "spent by the trunk on it", loose="time"),
            Key(
                "bytes",
                Named(
                    Text(
                        "up/KIND or down/KIND",
                        16,
                        "(up|down)/(layout|activation|gradient|scalar)",
                    ),
                    COUNT,
                ),
                "of the session's frames",
            ),
        ),
        tensors=True,
    ),
    "Install": Told(
        COORDINATOR,
        TRUNK,
        "a client's mixed trunk adapter",
        (
            Key("client", NAME, "whose"),
            Key("label", whole(), "rounds that it went through"),
            Key("reset", Many(TENSOR, 100_000), "tensors whose moments start anew"),
        ),
        tensors=True,
    ),
    "Commit": Told(
        COORDINATOR,
        TRUNK,
        "the end of a round",
        (
            Key(
                "labels",
                Named(
                    NAME,
                    Object(
                        (
                            Key("label", whole(), "rounds that its adapter went through"),
                            Key("improved", TRUTH, "whether it is now the best one"),
                        )
                    ),
                ),
                "clients that completed it",
            ),
        ),
    ),
    "Drop": Told(
        COORDINATOR, TRUNK, "forget a client's round", (Key("client", NAME, "whose"),)
    ),
    "Status": Told(COORDINATOR, TRUNK, "asks how things stand", ()),
    "Standing": Told(
        TRUNK,
        COORDINATOR,
        "the answer",
        (
            Key("run", Text("a run's id or nothing", 100, r"[A-Za-z0-9._-]*"), "which run",
                loose="random"),
            Key("version", VERSION, "of fellrec"),
            Key("draining", TRUTH, "whether it is about to stop"),
            Key("held_bytes", COUNT, "activations and caches that it holds"),
            Key(
                "sessions",
                Many(
                    Object(
                        (
                            Key("client", NAME, "whose"),
                            Key("round", whole(), "of which round"),
                            Key("mode", one_of("train", "serve"), "what for"),
                            Key("state", one_of("awaited", "open", "finished", "ended"), "how it "
                                "stands"),
                            Key("steps", COUNT, "optimiser steps"),
                            Key("reason", LINE, "why it ended"),
                        )
                    ),
                    100_000,
                ),
                "one each",
            ),
            Key("labels", Named(NAME, Many(whole(), 100_000)), "adapters that it holds, by "
                "client"),
        ),
    ),
    "Done": Told(TRUNK, COORDINATOR, "the answer where there is nothing to tell", ()),
}  # fmt: skip
"""The trunk's calls of the coordinator: u32 size, these keys as JSON, then tensors or nothing."""
