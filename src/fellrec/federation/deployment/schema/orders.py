"""What coordinator and client tell each other through Flower, key by key, in plain words."""

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
    VERSION,
    Told,
)

_ADDRESS = Text("HOST:PORT or nothing", 256, r"(\S+:[0-9]{1,5})?")
_TEXT = Text("text", 256)

_ORDER = (
    Key("run", RUN, "names the run's folder at the client", loose="random"),
    Key("recipe", Text("TOML", 1 << 16, r"(?s:.*)"), "the recipe, as the coordinator has it"),
    Key("version", VERSION, "of fellrec"),
)
_PLACED = (
    *_ORDER,
    Key("round", whole(), "which round"),
    Key("label", whole(), "rounds that the client's adapter went through"),
    Key("samples", COUNT, "few-shot: examples to learn from; 0 takes all"),
    Key("valid_users", COUNT, "users to score; 0 takes all"),
    Key("test_users", COUNT, "users to score; 0 takes all"),
    Key("trunk", _ADDRESS, "where the client's trunk listens", loose="address"),
    Key("token", TOKEN, "to be let in there", loose="random"),
)

FLOWER: Mapping[str, Told] = {
    "Hello": Told(COORDINATOR, CLIENT, "asks who is there", _ORDER),
    "Introduction": Told(
        CLIENT,
        COORDINATOR,
        "a client's word on itself, with the adapter that it starts from",
        (
            Key("client", NAME, "its name"),
            Key("version", VERSION, "of fellrec"),
            Key("dataset", _TEXT, "the data set's name, the same for all clients"),
            Key("split", _TEXT, "how its users are split, the same for all clients"),
            Key("users", COUNT, "how many users it has"),
            Key("dropped", COUNT, "how many had too few interactions"),
            Key("items", COUNT, "how many items the catalogue has", "items"),
            Key("examples", COUNT, "training targets in one epoch: its interactions, nearly"),
            Key("valid_users", COUNT, "users with a validation target"),
            Key("test_users", COUNT, "users with a test target"),
            Key("catalogue", DIGEST, "SHA-256 of the catalogue, its order too", loose="catalogue"),
            Key("manifest", DIGEST, "digest of the base's weights"),
            Key("settings", DIGEST, "digest of the recipe's part that both sides compute with"),
            Key(
                "sizes",
                Object(
                    (
                        Key("client_parameters", COUNT, "parameters that it holds"),
                        Key("client_bytes", COUNT, "bytes of them"),
                        Key("client_blocks", COUNT, "blocks that it holds"),
                        Key("client_block_parameters", COUNT, "parameters of these"),
                    )
                ),
                "what it holds of the model",
            ),
            Key("held", Many(whole(), 64), "labels of adapters that it still has"),
        ),
        tensors=True,
    ),
    "Train": Told(
        COORDINATOR,
        CLIENT,
        "a local round; with the client's adapter where it has lost its own",
        _PLACED,
        tensors=True,
    ),
    "Report": Told(
        CLIENT,
        COORDINATOR,
        "what came of it, with the adapter that is mixed",
        (
            Key("loss", NUMBER, "mean training loss of the round"),
            Key("examples", COUNT, "training targets in one epoch"),
            Key("scored", TRUTH, "whether `before` says something"),
            Key("before", NUMBER, "mean validation score before mixing, else 0"),
            Key("epsilon", NUMBER, "what its uploads tell of a user (ε), 0 where not bounded"),
            Key("last", TRUTH, "whether its privacy budget covers no further round"),
        ),
        tensors=True,
    ),
    "Receive": Told(
        COORDINATOR,
        CLIENT,
        "the client's mixture, and its standing",
        (
            *_PLACED,
            Key("reset", Many(TENSOR, 100_000), "tensors whose moments start anew"),
            Key("scored", TRUTH, "whether `best_score` says something"),
            Key("best_score", NUMBER, "its best mean validation score so far"),
            Key("best_round", whole(), "when that was"),
            Key("stale", COUNT, "rounds without a better one"),
            Key("stopped", TRUTH, "whether it trains no more"),
        ),
        tensors=True,
    ),
    "Score": Told(
        CLIENT,
        COORDINATOR,
        "what the mixture is worth",
        (Key("score", NUMBER, "mean validation score; NaN without targets"),),
    ),
    "Test": Told(
        COORDINATOR,
        CLIENT,
        "the last scores; with the client's best adapter where it has lost its own",
        _PLACED,
        tensors=True,
    ),
    "TestScores": Told(
        CLIENT,
        COORDINATOR,
        "the client's test scores",
        (
            Key("scored", COUNT, "users with a test target"),
            Key(
                "metrics",
                Named(Text("recall@K or ndcg@K", 16, r"(recall|ndcg)@[1-9][0-9]*"), NUMBER),
                "each metric's mean over them",
            ),
        ),
    ),
    "Failure": Told(
        CLIENT,
        COORDINATOR,
        "why a client can't do what it was told; no part of a run that goes well",
        (
            Key("kind", one_of("wire", "missing", "other"), "what kind of hindrance"),
            Key("reason", LINE, "one line for people; may name a file of the client's"),
        ),
    ),
}
"""What goes through Flower, in its messages' record "message": a kind, and a body of these keys."""

ERROR = Told(
    "SuperLink or SuperNode",
    COORDINATOR,
    "Flower's own answer for a node that is gone or whose app failed",
    (
        Key("code", whole(), "of Flower's"),
        Key("reason", Text("text", 1 << 16, r"(?s:.*)"), "what Flower says; for an app that could "
            "not be started, that error's text"),
    ),
)  # fmt: skip
"""Not a message of ours: the code is on the envelope, the reason is all that it holds."""

SUBJECTS = ("query", "train", "evaluate", "evaluate.test")
"""Flower's message types in use; a message's group is its round, or "roll" for a hello."""
