"""The schema's part in bytes: frames, what carries them, adapters' tensors.

Written down apart from the code that packs and unpacks (`split.wire`, `split.service.packing`), so
that neither can change without the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fellrec.federation.deployment.schema.forms import Field

TRAINING, LEFT, LENGTHS, POSITIONS, BEAMS, SCALAR, TENSOR = (1 << bit for bit in range(7))
CODECS = ("fp32", "bf16", "fp16", "int8")

STEP = (
    Field("number", "u64", (), "how many messages this session has sent, with this one"),
    Field("held", "u64", (), "number of the last answer that the client has"),
    Field("digest", "byte", (16,), "BLAKE2b of the frame, under which it may be sent again",
          derived=True),
)  # fmt: skip
"""Before each frame of a client. A message without a frame says that the session is complete."""

REPLY = (Field("number", "u64", (), "number of the message that this answers"),)
"""Before each frame of the trunk."""

FRAME = (
    Field("magic", "byte", (4,), "that this is a frame", fixed=b"FLRC"),
    Field("version", "u8", (), "of the format: 1", fixed=b"\x01"),
    Field("kind", "u8", (), "which of the frames below"),
    Field("codec", "u8", (), "how the tensor is written: 0 fp32, 1 bf16, 2 fp16, 3 int8"),
    Field("flags", "u8", (), "bits: 1 training, 2 rows padded on the left, then what follows: "
          "4 lengths, 8 positions, 16 beams, 32 scalar, 64 tensor"),
    Field("round", "u32", (), "completed rounds"),
    Field("step", "u32", (), "optimiser step of the round"),
    Field("micro", "u32", (), "micro-batch of the step"),
    Field("b", "u32", (), "rows of the batch: histories, prompts, beams or items' texts"),
    Field("n", "u32", (), "positions of all rows together; padding does not travel"),
    Field("d", "u32", (), "width of the base"),
    Field("m", "u16", (), "bytes of `message`"),
    Field("c", "u8", (), "bytes of `client`"),
    Field("client", "utf-8", ("c",), "the client's name, which its certificate bears too"),
    Field("lengths", "i32", ("b",), "positions of each row: how many items of a history "
          "(HLLM), or how many tokens (RecFormer, BIGRec)", flag=LENGTHS),
    Field("positions", "i32", ("b",), "positions of each row that are remembered from before "
          "(writing)", flag=POSITIONS),
    Field("beams", "i32", ("b",), "remembered row that each row continues (writing)", flag=BEAMS),
    Field("scalar", "f64", (), "squared norm of this side's gradients, for clipping by the norm "
          "over all stages", flag=SCALAR),
    Field("message", "utf-8", ("m",), "why a frame was refused (ERROR only, else m = 0)"),
    Field("tensor", "f32", ("n", "d"), "activations or gradients at the cut", flag=TENSOR,
          codec=0),
    Field("tensor", "bf16", ("n", "d"), "the same", flag=TENSOR, codec=1),
    Field("tensor.scale", "f32", (), "power of two that the values are multiplied by",
          flag=TENSOR, codec=2),
    Field("tensor", "f16", ("n", "d"), "the same", flag=TENSOR, codec=2),
    Field("tensor.scales", "bf16", ("n", "ceil(d/64)"), "what each 64 channels of a position are "
          "multiplied by", flag=TENSOR, codec=3),
    Field("tensor", "i8", ("n", "d"), "the same", flag=TENSOR, codec=3),
)  # fmt: skip


@dataclass(frozen=True)
class FrameRule:
    """A kind of frame. sent: by a client in a step, or by the trunk in a reply.

    must, may: flags. tensor: what the ledger calls it, and what it is. answers: kinds that it
    answers, with the same n and d.
    """

    name: str
    sent: tuple[str, ...]
    must: int
    may: int
    tells: str
    ledger: str = ""
    answers: tuple[str, ...] = ()


FRAMES: Mapping[int, FrameRule] = {
    1: FrameRule("FORWARD", ("Step",), LENGTHS | TENSOR, TRAINING | LEFT | POSITIONS | BEAMS,
                 "activations at the first cut", "activation"),
    2: FrameRule("OUTPUT", ("Reply",), TENSOR, TRAINING,
                 "activations at the second cut", "activation", ("FORWARD",)),
    3: FrameRule("GRADIENT", ("Step",), TENSOR | TRAINING, LEFT,
                 "the loss's gradient at the second cut", "gradient"),
    4: FrameRule("INPUT_GRADIENT", ("Reply",), TENSOR | TRAINING, 0,
                 "the loss's gradient at the first cut", "gradient", ("GRADIENT",)),
    5: FrameRule("NORM", ("Step", "Reply"), SCALAR, 0,
                 "the end of a step: each side's squared gradient norm", "", ("NORM",)),
    6: FrameRule("ERROR", ("Reply",), 0, 0,
                 "a refusal, which ends the session", "", ("FORWARD", "GRADIENT", "NORM")),
}  # fmt: skip


@dataclass(frozen=True)
class TensorRule:
    """A kind of exchanged tensor, float32. pattern: of its name, with `module` where shapes
    depend on the layer that is adapted.
    """

    name: str
    pattern: re.Pattern[str]
    shape: tuple[str, ...]
    tells: str
    trunk: bool = False


_MODULE = r"(?P<module>[a-zA-Z_]+(?:\.(?:[a-zA-Z_]\w*|\d{1,3}))*)"
TENSORS = (
    TensorRule("MODULE.lora_A.weight", re.compile(rf"{_MODULE}\.lora_A\.weight"),
               ("rank", "in of MODULE"), "LoRA factor of an adapted layer", True),
    TensorRule("MODULE.lora_B.weight", re.compile(rf"{_MODULE}\.lora_B\.weight"),
               ("out of MODULE", "rank"), "LoRA factor of an adapted layer", True),
    TensorRule("projection", re.compile("projection"), ("width", "text width"),
               "HLLM: from text vectors to item vectors"),
    TensorRule("scale", re.compile("scale"), (), "HLLM: factor of the cosine scores"),
    TensorRule("item_residual", re.compile("item_residual"), ("items", "width"),
               "HLLM with item_residual = \"shared\" only: a row per item of the catalogue. Rows "
               "that changed tell which items a client's users have"),
    TensorRule("item_positions", re.compile("item_positions"), ("history + 1", "width"),
               "RecFormer: embedding of an item's place in a history"),
    TensorRule("token_types", re.compile("token_types"), ("token types", "width"),
               "RecFormer: embedding of a token's type"),
)  # fmt: skip
