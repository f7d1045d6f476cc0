"""All backbones, each with what every recommender keeps."""

from __future__ import annotations

import pytest

from fellrec.data.interactions import Catalogue
from fellrec.models.adapters import LoraSettings
from fellrec.models.bigrec import BigrecSettings
from fellrec.models.hllm import Hllm, HllmSettings
from fellrec.models.recformer import RecformerSettings
from fellrec.models.recommender import Recommender
from fellrec.models.stages import Stage
from fellrec.models.text import encode_texts
from tests.builders import stage_of, tiny, tiny_bigrec, tiny_recformer
from tests.models.conformance import LAYERS, RecommenderConformance
from tests.toys import Toys


class TestHllm(RecommenderConformance):
    """HLLM over vectors that a random encoder makes of the titles."""

    @pytest.fixture(autouse=True)
    def use_encoder(self, toys: Toys) -> None:
        self.toys = toys

    def build(
        self, catalogue: Catalogue, k_in: int, k_out: int, dropout: float
    ) -> tuple[Recommender, Stage]:
        lora = LoraSettings(rank=4, alpha=8, dropout=dropout)
        head, trunk, tail = (
            stage_of(tiny("bert", LAYERS), role, k_in, k_out, dropout=dropout, lora=lora)
            for role in ("head", "trunk", "tail")
        )
        vectors = encode_texts(catalogue.texts(), self.toys.encoder, self.toys.cache / "vectors")
        return Hllm(head, tail, vectors, HllmSettings(history=6), 0), trunk


class TestRecformer(RecommenderConformance):
    """RecFormer over each kind of encoder."""

    kind = "bert"
    settings = RecformerSettings(history=6)
    rate, epochs = 2e-3, 30  # it runs after item vectors that move with every epoch

    def build(
        self, catalogue: Catalogue, k_in: int, k_out: int, dropout: float
    ) -> tuple[Recommender, Stage]:
        return tiny_recformer(
            catalogue,
            kind=self.kind,
            k_in=k_in,
            k_out=k_out,
            settings=self.settings,
            dropout=dropout,
            layers=LAYERS,
        )


class TestRecformerOverRoberta(TestRecformer):
    kind = "roberta"


class TestRecformerOverLongformer(TestRecformer):
    kind = "longformer"


class TestRecformerWithFixedItems(TestRecformer):
    """The second stage: items as they were encoded at first."""

    settings = RecformerSettings(history=6, max_tokens=24, fixed_after=1)
    rate, epochs = 5e-3, 12


class TestBigrec(RecommenderConformance):
    """BIGRec over a random language model, by each way of bringing texts back to items."""

    kind = "llama"
    settings = BigrecSettings(decode="trie", beams=3)
    epochs, gain = 4, None  # test_bigrec.py looks at what it learns to write

    def build(
        self, catalogue: Catalogue, k_in: int, k_out: int, dropout: float
    ) -> tuple[Recommender, Stage]:
        return tiny_bigrec(
            catalogue,
            kind=self.kind,
            k_in=k_in,
            k_out=k_out,
            settings=self.settings,
            dropout=dropout,
            layers=LAYERS,
        )


class TestBigrecGrounded(TestBigrec):
    kind = "qwen3"
    settings = BigrecSettings(decode="ground", beams=2, loss_on="prompt+response")


class TestBigrecRetrieving(TestBigrec):
    kind = "gemma"
    settings = BigrecSettings(decode="retrieve", strengths=(0.0, 1.0))
