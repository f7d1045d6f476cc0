"""The page: what it says of a run, and that it is sound HTML on its own."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fellrec.errors import RunError
from fellrec.evaluation.bootstrap import Interval
from fellrec.report import Reference, write_report
from fellrec.report.reading import read_run
from fellrec.serving.run import load_run
from fellrec.serving.samples import samples
from tests.report.conftest import DIVERGED, LONG
from tests.report.made import edit_summary, write_audit, write_run
from tests.toys import USERS, Toys

KINDS = ("several", "inactive", "many", "one", "untrained", "deployment", "audited")
VOID = {"meta", "link", "br", "line", "circle", "polyline", "polygon", "path", "rect"}


class Outline(HTMLParser):
    """What of a page can be checked by reading it once: tags, ids, headings, tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def named(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (given for name, given in self.tags if name == tag)


@pytest.fixture(scope="module")
def pages(page_files: dict[str, Path]) -> dict[str, str]:
    return {name: path.read_text() for name, path in page_files.items()}


def words(page: str) -> str:
    """Return the page's text on one line."""
    body = page.partition("</style>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_sound_html_that_needs_nothing_else(kind: str, pages: dict[str, str]) -> None:
    page = pages[kind]
    outline = Outline(page)
    assert outline.open == [] and len(outline.ids) == len(set(outline.ids))
    names = [tag for tag, _ in outline.tags]
    assert [names.count(tag) for tag in ("h1", "main", "title")][:2] == [1, 1]
    assert next(outline.named("html"))["lang"] == "en"
    levels = [int(tag[1]) for tag in names if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert "script" not in names
    assert not re.search(r"https?://|url\((?!#)|@import|srcset|<img", page)
    links = [given["href"] or "" for tag in ("a", "link") for given in outline.named(tag)]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(outline.ids)
    for given in (given for _, given in outline.tags):
        for key in ("aria-labelledby", "aria-describedby"):
            assert given.get(key) is None or given[key] in outline.ids
    used = re.findall(r"url\(#([^)]+)\)", page)
    assert set(used) <= set(outline.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_have_captions_and_scopes_and_charts_their_numbers(
    kind: str, pages: dict[str, str]
) -> None:
    outline = Outline(pages[kind])
    names = [tag for tag, _ in outline.tags]
    assert names.count("caption") == names.count("table") > 0
    assert all(given.get("scope") in ("col", "row") for given in outline.named("th"))
    boxes = [given for given in outline.named("div") if given.get("class") == "scroll"]
    assert all(b["tabindex"] == "0" and b["role"] == "region" and b["aria-label"] for b in boxes)
    figures = re.findall(r"<figure>.*?</figure>", pages[kind], re.DOTALL)
    assert figures and all("<table>" in figure for figure in figures)


def test_the_lead_says_what_the_run_came_to(made: dict[str, Path], pages: dict[str, str]) -> None:
    run = read_run(made["several"])
    overall, said = run.overall("ndcg@10"), words(pages["several"])
    assert overall is not None
    assert f"NDCG@10 of {run.summary['overall']['ndcg@10']:.4f} (95 % interval" in said
    assert f"{overall.low:.4f} to {overall.high:.4f}" in said
    scores = {client["id"]: client["ndcg@10"] for client in run.clients}
    best, worst = (pick(scores, key=scores.__getitem__) for pick in (max, min))
    assert f"Client {best} is served best (NDCG@10 {scores[best]:.4f})" in said
    assert f"client {worst} worst ({scores[worst]:.4f})" in said
    balance = run.summary["balance"]
    chance = balance["relative_gap_by_sampling_alone"]
    assert f"a gap of {balance['relative_gap']:.0%}" in said
    assert f"would show {chance:.0%} by sampling alone" in said


@pytest.mark.parametrize(
    ("gap", "chance", "said"),
    [
        (0.2, 0.3, "30% by sampling alone, so the gap is no sign of imbalance."),
        (0.6, 0.3, "30% by sampling alone, on average; this is 2.0 times that."),
        (0.6, 0.0, "0% by sampling alone, on average."),
        (0.6, None, "How much of it is chance is not known"),
    ],
)
def test_the_gap_stands_beside_what_sampling_alone_would_show(
    gap: float, chance: float | None, said: str, made: dict[str, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(made["inactive"], tmp_path / "run"))
    balance = {"relative_gap": gap, "relative_gap_by_sampling_alone": chance}
    edit_summary(run, balance=balance)
    assert said in words(write_report(run, examples=0).read_text())


def test_a_round_that_failed_is_named_with_its_reason(pages: dict[str, str]) -> None:
    said = words(pages["several"])
    assert f"3 c4 {DIVERGED}" in said
    assert pages["several"].count('class="cross"') == 1
    assert "c4 3 – failed" in said


def test_attention_that_tells_nobody_apart_is_called_inactive(pages: dict[str, str]) -> None:
    assert "attention inactive" in pages["inactive"]
    assert pages["inactive"].count("· inactive") > 0
    assert "inactive</span>" not in pages["several"] and "· inactive" not in pages["several"]


def test_every_client_of_many_is_in_the_tables(pages: dict[str, str]) -> None:
    for number in range(50):
        assert f'<th scope="row">shop-{number:02d}</th>' in pages["many"]
    assert len(pages["many"]) < 1_500_000
    assert "3 of 12 rounds are drawn" in words(pages["many"])


def test_one_client_alone_mixes_nothing(pages: dict[str, str]) -> None:
    said = words(pages["one"])
    assert "One client with 40 users trained for 3 rounds." in said
    assert "there is nothing to mix" in said and "served best" not in said and "Gap" not in said


def test_a_base_that_was_not_trained_has_scores_and_no_curves(pages: dict[str, str]) -> None:
    said = words(pages["untrained"])
    assert "scored as it comes, before any training" in said
    assert "No round was run" in said and "Training loss" not in said
    assert "Test NDCG@10" in said and "What crossed" in said


def test_what_a_deployment_does_not_know_is_left_open(pages: dict[str, str]) -> None:
    said = words(pages["deployment"])
    assert "no interval: users' scores are not in the folder" in said
    assert "kept their times to themselves" in said
    assert "None" not in said and "nan" not in said.split()
    (figure,) = re.findall(r"<h3>Test NDCG.*?</figure>", pages["deployment"], re.DOTALL)
    assert "whisker" not in figure and figure.count("mark s0") > 2 * len(LONG)


def test_names_from_the_data_are_escaped(pages: dict[str, str]) -> None:
    assert "<b>" not in pages["deployment"]
    assert "a very long &lt;b&gt;name&lt;/b&gt;" in pages["deployment"]
    assert LONG[0] in words(pages["deployment"]) and LONG[2] in pages["deployment"]


def test_the_same_run_gives_the_same_page(made: dict[str, Path], tmp_path: Path) -> None:
    first, second = (
        write_report(made["inactive"], tmp_path / name, examples=0).read_bytes() for name in "ab"
    )
    assert first == second


def test_the_page_lies_in_the_runs_folder_or_where_it_is_told(
    made: dict[str, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(made["one"], tmp_path / "run"))
    before = {path.name for path in run.iterdir()}
    assert write_report(run, examples=0) == run / "report.html"
    assert {path.name for path in run.iterdir()} == before | {"report.html"}
    elsewhere = tmp_path / "new" / "page.html"
    assert write_report(run, elsewhere, examples=0) == elsewhere
    assert elsewhere.read_bytes() == (run / "report.html").read_bytes()
    with pytest.raises(RunError, match="can't be written"):
        write_report(run, run / "config.toml" / "page.html", examples=0)


def test_references_stand_beside_the_run(made: dict[str, Path], tmp_path: Path) -> None:
    references = [
        Reference("local only", {"c1": Interval(0.0512, 0.04, 0.06)}, Interval(0.07, 0.06, 0.08)),
        Reference("centralised", {f"c{n}": Interval(0.2, 0.1, 0.3) for n in range(5)}),
    ]
    page = write_report(
        made["several"], tmp_path / "page.html", references=references, examples=0
    ).read_text()
    alone = write_report(made["several"], tmp_path / "alone.html", examples=0).read_text()
    said = words(page)
    assert "local only: NDCG@10" in said and "0.0512 0.0400 to 0.0600" in said
    # Two marks of the first (all users, c1), five of the second; wide, narrow, and in the legend.
    assert [page.count(f'class="mark s{n}"') for n in (1, 2)] == [2 * 2 + 1, 2 * 5 + 1]
    assert 'class="mark s1"' not in alone


@pytest.mark.usefixtures("own_cache")
def test_real_users_are_served_as_the_run_would_serve_them(toys: Toys, finished_run: Path) -> None:
    page = write_report(finished_run).read_text()
    drawn = samples(load_run(finished_run), 6)
    assert len(drawn) == 6
    articles = [words("</style>" + each) for each in page.split("<article>")[1:]]
    assert len(articles) == 6
    for sample in drawn:
        (article,) = (a for a in articles if a.startswith(f"User {sample.user} of client"))
        assert f"of client {sample.client}" in article
        places = [article.find(title) for title in sample.history]
        assert -1 not in places
        (target,) = sample.held_out
        assert f"{target.title} rank {target.rank} of 36" in article
        hit = target.rank is not None and target.rank <= 5
        assert ("taken next" in article) == hit
        assert all(entry.title in article for entry in sample.recommended)
    assert sum("taken next" in article for article in articles) > 0
    assert f"{USERS} users between them" in words(page)
    assert not re.search(r"\bnan\b|None", words(page).partition("The recipe")[0])


@pytest.mark.usefixtures("own_cache")
def test_a_folder_that_serves_nobody_says_why(finished_run: Path) -> None:
    file = finished_run / "clients" / "north" / "best_adapter.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    page = write_report(finished_run).read_text()
    assert "No user can be served from this folder" in page and file.name in page


def test_an_audit_is_on_the_page_and_none_where_none_was_made(pages: dict[str, str]) -> None:
    said = words(pages["audited"])
    assert "What a curious server could tell" in said
    assert "the best attack recovers 99%; guessing what is popular gives 19%" in said
    assert "20 users of the run's own clients, 1 block before the cut, activations in int8" in said
    assert "inverter public weights 82% 77% to 87%" in said
    assert "from 0.0904 to 0.0871 (-0.0033" in said and "a local ε of 1,234" in said
    assert "100 users from whom a client learned alone, told from 99 others" in said
    for kind in ("several", "one"):
        assert "curious server could tell" not in words(pages[kind])


def test_what_a_run_promises_is_on_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 2, 1)
    uploads = {"epsilon": {"c0": 1.5, "c1": 2.25}, "budget": 8.0, "delta": 1e-5}
    edit_summary(run, privacy={"uploads": uploads})
    said = words(write_report(run, examples=0).read_text("utf-8"))
    assert "What the run promises its users" in said
    assert "at most ε = 2.25 of 8 at δ = 1e-05" in said


def test_a_damaged_audit_is_named(tmp_path: Path) -> None:
    run = write_audit(write_run(tmp_path / "run", 1, 1))
    for text in ("{", "[]", '{"k_in": 1}'):
        (run / "audit.json").write_text(text)
        with pytest.raises(RunError, match=r"audit\.json: .*audit the run again"):
            read_run(run)


def test_weights_on_the_page_are_those_of_the_log(made: dict[str, Path]) -> None:
    run = read_run(made["inactive"])
    page = words(write_report(made["inactive"], examples=0).read_text())
    last = run.rounds[-1]
    rows = np.array(last.matrix("weights"), dtype=np.float64)
    for name, row in zip(last.lines, rows, strict=True):
        assert f"{name} {' '.join(f'{value:.4f}' for value in row)}" in page
