"""An exported adapter on the untouched base computes what the split model computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from fellrec.data.interactions import Ragged
from fellrec.errors import FellrecError, RunError
from fellrec.federation.runs import train
from fellrec.models.bigrec import Bigrec
from fellrec.models.item_texts import item_texts
from fellrec.models.text import encode_texts
from fellrec.serving.export import export_adapter
from fellrec.serving.run import Run, load_run
from tests.toys import ITEMS, Toys

HISTORIES = ([3, 1, 4, 15, 9], [26], list(range(12)))  # the last is longer than the model reads


def reference(toys: Toys, base: Path, exported: Path, history: list[int]) -> Tensor:
    """Score with transformers and peft alone: (items,), history of at most 8 items."""
    config = AutoConfig.from_pretrained(base)
    if config.model_type == "bert":
        config.is_decoder = True  # how it was trained: attention to what came before
        whole = AutoModel.from_pretrained(base, config=config, add_pooling_layer=False)
    else:
        whole = AutoModel.from_pretrained(base, config=config)
    model = PeftModel.from_pretrained(whole, exported).eval()
    own = load_file(exported / "recommender.safetensors")
    data = load_run(exported.parent / "run").shares.dataset
    vectors = encode_texts(data.catalogue.texts(), toys.encoder, toys.cache / "vectors")
    table = vectors @ own["projection"].T
    if "item_residual" in own:
        table = table + own["item_residual"]
    with torch.no_grad():
        hidden = model(inputs_embeds=table[history[-8:]][None]).last_hidden_state[0, -1]
    return own["scale"] * F.cosine_similarity(hidden[None], table)


@pytest.mark.parametrize("base", ["bert", "llama"])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model.item_residual": "local", "balance.merge": "product", "split.codec": "int8"},
        {"model.item_residual": "none", "lora.freeze_a": True, "model.k_in": 0},
        {"model.k_in": 2, "model.k_out": 1, "lora.targets": ["attention", "mlp"]},
    ],
    ids=["plain", "private", "frozen", "no trunk"],
)
def test_export(toys: Toys, runs: Path, base: str, overrides: dict[str, object]) -> None:
    folder = getattr(toys, base)
    # A run is served as it was trained, through its codec: with int8 scores are only near.
    done = train(toys.recipe({"model.base": str(folder), **overrides}), runs / "run")
    run = load_run(done.path)
    lossy = overrides.get("split.codec") == "int8"
    target = export_adapter(run, "south", runs / "out")
    assert target == runs / "out"
    for history in HISTORIES:
        scores = reference(toys, folder, target, history)
        found = run.client("south").recommend_items(history, k=ITEMS)
        assert len(found) == ITEMS - len(set(history))
        for entry in found:
            wanted = float(scores[int(entry.item[1:])])
            assert entry.score == pytest.approx(wanted, abs=0.2 if lossy else 1e-5)
    other = export_adapter(run, "north", runs / "other")
    assert not torch.allclose(
        reference(toys, folder, other, [3, 1]), reference(toys, folder, target, [3, 1])
    )


@pytest.mark.parametrize("fixed_after", [0, 1])
def test_export_of_a_recformer(toys: Toys, runs: Path, fixed_after: int) -> None:
    overrides = {"model.recommender": "recformer", "recformer.fixed_after": fixed_after}
    run = load_run(train(toys.recipe(overrides), runs / "run").path)
    target = export_adapter(run, "south", runs / "out")
    whole = AutoModel.from_pretrained(toys.bert, add_pooling_layer=False)
    model = PeftModel.from_pretrained(whole, target).eval()
    own = load_file(target / "recommender.safetensors")
    assert ("item_table" in own) is (fixed_after > 0)
    texts = item_texts(run.shares.dataset.catalogue, AutoTokenizer.from_pretrained(toys.bert), 32)

    def encode(history: list[int]) -> Tensor:
        _, inputs = texts.lay_out(Ragged.from_rows([history[::-1]]))
        token, place, kind = inputs.unbind(-1)
        words = whole.get_input_embeddings()(token)
        with torch.no_grad():
            hidden = words + own["item_positions"][place] + own["token_types"][kind]
            output: Tensor = model(inputs_embeds=hidden).last_hidden_state[0, 0]
        return F.normalize(output, dim=0)

    table = own.get("item_table", torch.zeros(1))
    if not table.any():  # the best model was not of the second stage
        table = torch.stack([encode([item]) for item in range(ITEMS)])
    for history in HISTORIES:
        scores = table @ encode(history[-8:]) / 0.05
        for entry in run.client("south").recommend_items(history, k=ITEMS):
            assert entry.score == pytest.approx(float(scores[int(entry.item[1:])]), abs=1e-4)


def test_export_of_a_bigrec(toys: Toys, runs: Path) -> None:
    """The causal language model, output layer included, gives each title the score it was given."""
    overrides = {
        "model.recommender": "bigrec",
        "model.base": str(toys.lm),
        "bigrec.beams": ITEMS,
        "train.rounds": 1,
    }
    run = load_run(train(toys.recipe(overrides), runs / "run").path)
    target = export_adapter(run, "south", runs / "out")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(toys.lm), target).eval()
    recommender = run.workspace.recommender
    assert isinstance(recommender, Bigrec)
    prompts = recommender.prompts
    for history in HISTORIES:
        prompt = prompts.prompt(np.array(history)).tolist()
        for entry in run.client("south").recommend_items(history, k=5):
            response = prompts.responses[int(entry.item[1:])].tolist()
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *response[:-1]]])).logits[0]
            steps = torch.log_softmax(logits.double(), -1)[-len(response) :]
            score = sum(float(step[token]) for step, token in zip(steps, response, strict=True))
            assert entry.score == pytest.approx(score, rel=1e-5, abs=1e-4)


def test_an_untrained_adapter_would_not_pass(toys: Toys, undisturbed: Path, runs: Path) -> None:
    """The comparison above sees the adapter: without it scores differ by far more than 1e-5."""
    target = export_adapter(undisturbed, "south", runs / "out")
    (runs / "run").symlink_to(undisturbed)
    adapted = reference(toys, toys.bert, target, [3, 1])
    tensors = load_file(target / "adapter_model.safetensors")
    save_file(
        {n: torch.zeros_like(t) for n, t in tensors.items()}, target / "adapter_model.safetensors"
    )
    assert (adapted - reference(toys, toys.bert, target, [3, 1])).abs().max() > 1e-3


def test_the_folder(undisturbed: Path, runs: Path) -> None:
    target = export_adapter(undisturbed, "north", runs / "deep" / "out")
    assert {path.name for path in target.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "recommender.safetensors",
    }
    assert json.loads((target / "adapter_config.json").read_text())["r"] == 2
    names = set(load_file(target / "adapter_model.safetensors"))
    for block in range(3):
        assert any(f"encoder.layer.{block}." in name for name in names)


def test_refusals(undisturbed: Path, finished_run: Path, runs: Path) -> None:
    (runs / "there").mkdir()
    with pytest.raises(FellrecError, match="exists already"):
        export_adapter(undisturbed, "north", runs / "there")
    with pytest.raises(RunError, match="no client 'west'"):
        export_adapter(undisturbed, "west", runs / "out")
    (finished_run / "server/north/best_adapter.safetensors").unlink()
    with pytest.raises(RunError, match="best_adapter"):
        export_adapter(Run(finished_run), "north", runs / "out")
    assert not (runs / "out").exists()
    assert not [path for path in runs.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize("side", ["clients", "server"])
@pytest.mark.parametrize("damage", ["name", "shape", "missing"])
def test_an_adapter_of_another_model_is_refused(
    finished_run: Path, runs: Path, side: str, damage: str
) -> None:
    file = finished_run / side / "north" / "best_adapter.safetensors"
    tensors = load_file(file)
    name = min(each for each in tensors if ".lora_A." in each)
    if damage == "shape":
        tensors[name] = tensors[name][:1].clone()
    else:
        gone = tensors.pop(name)
        tensors |= {"other.lora_A.weight": gone} if damage == "name" else {}
    save_file(tensors, file)
    with pytest.raises(RunError, match="does not fit the run's model") as refused:
        export_adapter(Run(finished_run), "north", runs / "out")
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)
    assert name in str(refused.value) or damage == "name"
    assert not (runs / "out").exists()
