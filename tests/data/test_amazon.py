from __future__ import annotations

import gzip
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fellrec.config import RunConfig
from fellrec.data import streams
from fellrec.data.amazon import FORMS, read_amazon
from fellrec.data.atomic import read_atomic, write_atomic
from fellrec.data.interactions import k_core
from fellrec.data.splits import split
from fellrec.data.streams import Imported, text_lines
from fellrec.errors import DataError

Record = dict[str, Any]


def pack(path: Path, records: Iterable[Record | str]) -> Path:
    """Write JSON lines, gzipped if the name says so; a text is written as it is."""
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def review(user: str, item: str, time: int) -> Record:
    """A review in the form of 2018, with what else such a line has."""
    return {
        "overall": 5.0,
        "verified": True,
        "reviewTime": "10 17, 2015",
        "reviewerID": user,
        "asin": item,
        "style": {"Format:": " Video Game"},
        "reviewerName": "N. N.",
        "reviewText": 'Said "great",\tand meant it',
        "unixReviewTime": time,
    }


def product(item: str, title: Any, **more: Any) -> Record:
    return {"asin": item, "title": title, "description": ["…"], "also_buy": [], **more}


def load(folder: Path, reviews: Iterable[Any], metadata: Iterable[Any], k: int = 0) -> Imported:
    return read_amazon(
        pack(folder / "Games_5.json.gz", reviews),
        pack(folder / "meta_Games.json.gz", metadata),
        FORMS["amazon-2018"],
        k,
    )


def test_the_form_of_2018(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        [
            review("B", "x", 1445040000),
            review("A", "y", 1445040000),
            review("B", "y", 1388102400),
        ],
        [
            product("never reviewed", "Other", category=["Video Games"]),
            product("y", "Zelda", category=["Video Games", "PC &amp; Mac"], brand="Nintendo"),
            product("x", "Halo"),
        ],
    )
    data = found.dataset
    assert data.name == "Games_5"
    assert data.users == ("B", "A")
    assert data.catalogue.ids == ("x", "y")
    assert data.catalogue.titles == ("Halo", "Zelda")
    assert data.catalogue.attributes == {
        "categories": ("", "Video Games, PC & Mac"),
        "brand": ("", "Nintendo"),
    }
    assert [data.histories()[n].tolist() for n in range(2)] == [[1, 0], [1]]
    assert data.interactions.time.tolist() == [1388102400, 1445040000, 1445040000]
    assert found.remarks() == []


def test_the_form_of_2023(tmp_path: Path) -> None:
    reviews: list[Record | str] = [
        {"user_id": "U", "parent_asin": "P", "asin": "red", "timestamp": 1588687728923, "text": ""},
        {"user_id": "V", "parent_asin": "P", "asin": "blue", "timestamp": 1588687728922.0},
        {"user_id": "V", "asin": "lone", "timestamp": 1588687728924},
        {"user_id": "V", "parent_asin": None, "asin": "other", "timestamp": 1},
    ]
    metadata: list[Record | str] = [
        {"parent_asin": "P", "title": "Controller", "categories": ["Video Games", "PC"]},
        {"parent_asin": "lone", "title": "Mouse", "categories": [], "main_category": "Computers"},
        {"parent_asin": "other", "title": "Pad", "main_category": None, "store": "Logi"},
    ]
    found = read_amazon(
        pack(tmp_path / "Games.jsonl", reviews),
        pack(tmp_path / "meta.jsonl", metadata),
        FORMS["amazon-2023"],
    )
    data = found.dataset
    assert data.catalogue.ids == ("P", "lone", "other")
    assert data.catalogue.attributes == {
        "categories": ("Video Games, PC", "Computers", ""),
        "store": ("", "", "Logi"),
    }
    assert data.histories()[1].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ("  Two\twords\r\nhere ", "Two words here"),
        ('Quoted "title", with commas', 'Quoted "title", with commas'),
        ("ゼルダの伝説 – Ké‍žmarok 🎮", "ゼルダの伝説 – Ké‍žmarok 🎮"),
        ("Tom &amp; Jerry&#39;s", "Tom & Jerry's"),
        ("<span class='a-size-large'>Halo</span><br/> 3", "Halo 3"),
        ("I <3 Games <Import>", "I <3 Games <Import>"),
        ("broken \ud83d half", "broken ? half"),
    ],
)
def test_titles_become_one_clean_line(tmp_path: Path, given: str, title: str) -> None:
    metadata = [json.dumps(product("x", given))]  # escaped, as half a character can't be written
    data = load(tmp_path, [review("A", "x", 1)], metadata).dataset
    assert data.catalogue.titles == (title,)
    assert read_atomic(write_atomic(data, tmp_path / "out")).catalogue.titles == (title,)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], ""),
        ("Books", "Books"),
        ([["Video Games", "PC"], ["Other"]], "Video Games, PC"),
        (["Games", "</span></span></span>", "A sentence of the description"], "Games"),
        (["Games", None, 3, " "], "Games"),
        ({"a": 1}, ""),
    ],
)
def test_categories(tmp_path: Path, given: Any, text: str) -> None:
    found = load(tmp_path, [review("A", "x", 1)], [product("x", "Halo", category=given)])
    assert found.dataset.catalogue.attributes["categories"] == (text,)


def test_items_without_a_title_are_left_out_and_counted(tmp_path: Path) -> None:
    junk = "\n\nvar aPageStart = (new Date()).getTime();\nvar ue_t0 = ue_t0 || +new Date();"
    reviews = [review(user, item, 1) for user in "AB" for item in ("t", "junk", "blank", "none")]
    reviews += [review("C", "absent", 1), review("C", "null", 2), review("C", "number", 2)]
    found = load(
        tmp_path,
        reviews,
        [
            product("junk", junk),
            product("blank", " <br> "),
            {"asin": "none"},
            product("null", None),
            product("number", 7),
            product("t", "Tetris"),
        ],
    )
    assert found.dataset.users == ("A", "B")
    assert found.dataset.catalogue.ids == ("t",)
    assert (found.untitled, found.untitled_items) == (9, 6)
    assert found.remarks() == ["left out interactions with items that have no title: 9 (items: 6)"]


def test_of_several_lines_of_a_product_the_first_with_a_title_counts(tmp_path: Path) -> None:
    metadata = [product("x", ""), product("x", "First", brand="b"), product("x", "Second")]
    catalogue = load(tmp_path, [review("A", "x", 1)], metadata).dataset.catalogue
    assert (catalogue.ids, catalogue.titles) == (("x",), ("First",))
    assert catalogue.attributes["brand"] == ("b",)


def test_of_repeated_reviews_the_earliest_counts(tmp_path: Path) -> None:
    reviews = [
        review("A", "x", 30),
        review("A", "y", 20),
        review("B", "x", 5),
        review("A", "x", 10),
        review("A", "x", 10),
    ]
    found = load(tmp_path, reviews, [product("x", "Halo"), product("y", "Zelda")])
    assert found.dataset.histories()[0].tolist() == [0, 1]
    assert found.dataset.interactions.time.tolist() == [10, 20, 5]
    assert found.repeated == 2
    assert found.remarks() == ["left out repeats of what the user took earlier: 2"]


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    items = [f"i{n}" for n in (3, 1, 2, 0)]
    reviews = [review("A", item, 7) for item in [*items, "i3", "i1"]]
    data = load(tmp_path, reviews, [product(item, item) for item in items]).dataset
    assert [data.catalogue.ids[n] for n in data.histories()[0]] == items


GOOD = json.dumps(review("A", "x", 1))


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"reviewerID": "A"', "line 3: is not JSON"),
        ("{'reviewerID': 'A'}", "line 3: is not JSON"),
        ("[" * 100_000, "line 3: is not JSON"),
        ("[1]", "line 3: is not a JSON object"),
        ("{}", "line 3: reviewerID is missing"),
        (json.dumps(review("", "x", 1)), "line 3: reviewerID '' is not an id"),
        (json.dumps(review("A\tB", "x", 1)), r"line 3: reviewerID 'A\\tB' is not an id"),
        (json.dumps(review("A", "\ud800", 1)), r"line 3: asin '\\ud800' is not an id"),
        (json.dumps({**review("A", "x", 1), "asin": 7}), "line 3: asin 7 is not an id"),
        (json.dumps({**review("A", "x", 1), "asin": None}), "line 3: asin is missing"),
        (GOOD.replace("unixReviewTime", "time"), "line 3: unixReviewTime is missing"),
        (json.dumps({**review("A", "x", 1), "unixReviewTime": "soon"}), "'soon' is not a finite"),
        (json.dumps({**review("A", "x", 1), "unixReviewTime": True}), "True is not a finite"),
        (json.dumps({**review("A", "x", 1), "unixReviewTime": [1]}), "is not a finite"),
        (GOOD.replace(": 1}", ": NaN}"), "line 3: unixReviewTime nan is not a finite"),
        (GOOD.replace(": 1}", ": 1" + "0" * 400 + "}"), "line 3: unixReviewTime 1000"),
    ],
)
def test_a_bad_review_is_named(tmp_path: Path, line: str, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        load(tmp_path, [GOOD, "", line], [product("x", "Halo")])
    assert "Games_5.json.gz, line 3" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_bad_product_is_named(tmp_path: Path) -> None:
    for line, match in [
        ("oops", "line 2: is not JSON"),
        ('{"title": "Halo"}', "line 2: asin is missing"),
    ]:
        with pytest.raises(DataError, match=rf"meta_Games\.json\.gz, {match}"):
            load(tmp_path, [GOOD], [product("x", "Halo"), line])
    with pytest.raises(DataError, match="has no title for any of the items"):
        load(tmp_path, [GOOD], [product("y", "Other")])


def test_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    meta = pack(tmp_path / "meta.json.gz", [product("x", "Halo")])
    many = gzip.compress("\n".join(f"{GOOD[:-1]}, {n}: 0}}" for n in range(999)).encode())
    flipped = bytearray(gzip.compress((GOOD + "\n").encode()))
    flipped[-6] ^= 0xFF  # in the checksum
    cases = [
        ("cut.json.gz", gzip.compress((GOOD + "\n").encode())[:-9], "is not a whole gzip file"),
        ("flipped.json.gz", bytes(flipped), "is not a whole gzip file"),
        ("plain.json.gz", GOOD.encode(), "is not a whole gzip file"),
        ("packed.json", many, "line 1: is not UTF-8"),
        ("latin.json", GOOD.replace("N. N.", "é").encode("latin-1"), "line 1: is not UTF-8"),
        ("empty.json", b"", "is empty"),
        ("empty.json.gz", gzip.compress(b""), "is empty"),
        ("blank.json", b"\n\n", "has no interactions"),
    ]
    for name, data, match in cases:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}.*{match}"):
            read_amazon(tmp_path / name, meta, FORMS["amazon-2018"])
    with pytest.raises(DataError, match=r"none\.json\.gz: no such file"):
        read_amazon(tmp_path / "none.json.gz", meta, FORMS["amazon-2018"])
    with pytest.raises(DataError, match="can't be read"):
        read_amazon(tmp_path, meta, FORMS["amazon-2018"])


def test_lines_arrive_before_a_cut_is_met(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 26, 1 << 20) + ord("a")  # hardly compresses
    data = gzip.compress(b"first\n" + bytes(noise.astype(np.uint8).tolist()) + b"\nlast\n")
    (tmp_path / "cut.gz").write_bytes(data[: len(data) // 2])
    lines = text_lines(tmp_path / "cut.gz")
    assert next(lines) == (1, "first\n")
    with pytest.raises(DataError, match="is not a whole gzip file, line 2"):
        next(lines)


def test_a_file_without_line_breaks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LONGEST", 99)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"x" * 98 + b"\n" + b"x" * 999))
    lines = text_lines(tmp_path / "a.gz")
    assert next(lines)[0] == 1
    with pytest.raises(DataError, match="line 2: is longer than 99 bytes"):
        next(lines)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    long = "lorem ipsum " * 1000
    lines = [
        json.dumps({**review(f"u{n % 50}", f"i{n % 90}", n), "reviewText": long})
        for n in range(2_250)
    ]
    metadata = [json.dumps(product(f"i{n}", f"Game {n}", feature=long)) for n in range(2_250)]
    for name, text in (("reviews", "\n".join(lines)), ("metadata", "\n".join(metadata))):
        assert len(text) > 27_000_000
        (tmp_path / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), 1))
    del lines, metadata, text
    tracemalloc.start()
    try:
        found = read_amazon(
            tmp_path / "reviews.json.gz", tmp_path / "metadata.json.gz", FORMS["amazon-2018"]
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.dataset.catalogue) == 90
    assert peak < 3_000_000  # of 54 MB


def test_the_papers_processing(tmp_path: Path) -> None:
    # k-core and global time as a recipe says them, beside a count of our own from the raw lines.
    rng = np.random.default_rng(7)
    taken = [
        (f"u{u}", f"i{i}", int(rng.integers(0, 10**6)))
        for u, i in zip(rng.integers(0, 60, 900), rng.zipf(1.4, 900) % 80, strict=True)
    ]
    metadata = [product(f"i{n}", f"Game {n}" if n % 9 else "") for n in range(80)]
    found = load(tmp_path, [review(*row) for row in taken], metadata, k=5)

    config = RunConfig.from_toml(
        "demo", overrides={"data.k_core": 5, "data.split": "global-time", "model.history": 10}
    )
    data = k_core(found.dataset, config.data.k_core)
    cut = split(data, config.data.split)

    first: dict[tuple[str, str], int] = {}
    for user, item, time in taken:
        if int(item[1:]) % 9:
            first[user, item] = min(time, first.get((user, item), time))
    left = dict(first)
    while True:
        users, items = Counter(u for u, _ in left), Counter(i for _, i in left)
        smaller = {p: t for p, t in left.items() if users[p[0]] >= 5 and items[p[1]] >= 5}
        if len(smaller) == len(left):
            break
        left = smaller
    assert 100 < len(left) < len(first)
    assert len(set(left.values())) == len(left)  # no ties, so that the cuts are certain

    names, log = data.catalogue.ids, data.interactions
    rows = zip(log.user.tolist(), log.item.tolist(), log.time.tolist(), strict=True)
    assert {(data.users[u], names[i]): t for u, i, t in rows} == left
    ordered = sorted(left, key=lambda pair: left[pair])
    bounds = [0, len(ordered) * 8 // 10, len(ordered) * 9 // 10, len(ordered)]
    for part, low, high in zip(
        (cut.train, cut.valid, cut.test), bounds[:-1], bounds[1:], strict=True
    ):
        wanted = {pair for pair in ordered[low:high] if pair[0] in cut.users}
        assert {
            (user, names[item]) for n, user in enumerate(cut.users) for item in part[n]
        } == wanted
    assert len(cut.users) + cut.dropped == len(data.users)


def test_the_core_of_an_import_counts_titled_items_only(tmp_path: Path) -> None:
    # "bad" has no title. Without it A and B have one item each, which is no core of 2.
    reviews = [review(u, i, 1) for u, i in [("A", "bad"), ("B", "bad"), ("A", "x"), ("B", "x")]]
    reviews += [review(u, i, 1) for u in "CD" for i in ("y", "z")]
    found = load(tmp_path, reviews, [product(i, i.upper()) for i in "xyz"], k=2)
    assert found.dataset.users == ("C", "D")
    assert found.dataset.catalogue.titles == ("Y", "Z")
    with pytest.raises(DataError, match="Games_5: no user and item have 3 interactions"):
        load(tmp_path, reviews, [product("x", "X")], k=3)
