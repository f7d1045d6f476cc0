"""The page of a comparison: what it says of rows, cells, clients, axes, and what it leaves open."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import pytest

from fellrec.comparison.outcomes import outcome, place_of
from fellrec.comparison.plan import Comparison
from fellrec.comparison.rows import Compared
from fellrec.comparison.table import compare
from fellrec.errors import RunError
from fellrec.report import write_comparison
from fellrec.report.blocks import ranged
from fellrec.report.reading import RoundLog
from fellrec.report.sections.compared.mixed import is_personal
from fellrec.report.sections.compared.view import listed, side_of_one
from fellrec.results.keeping import keep_alone
from fellrec.serving.run import load_run
from fellrec.serving.samples import samples
from tests.report.made_comparison import CLIENTS, STRATEGIES, made_up, write_file
from tests.report.test_page import Outline, words
from tests.toys import Toys

DIVERGED = "no client completed round 1: client c0: the loss is NaN at step 3; it <diverged>"
KINDS = ("several", "one", "many", "axes", "peers", "nothing")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compared]:
    """Return a comparison of every kind that a page has to bear."""
    folder = tmp_path_factory.mktemp("compared")

    def file(name: str, **said: object) -> Path:
        return write_file(folder / f"{name}.toml", **said)  # type: ignore[arg-type]

    broken = {**STRATEGIES, "broken": {"train.learning_rate": 50.0}, "slow": {"balance.beta": 5.0}}
    few = {label: STRATEGIES[label] for label in ("fedavg", "fellrec")}
    return {
        "several": made_up(
            file("several", strategies=broken, seeds=(0, 1), peers=("popularity",), title="A & B"),
            failed={("broken", 0): DIVERGED, ("broken", 1): DIVERGED},
            missing={("slow", 1)},
            old={"fellrec"},
            vouched={"local": ("local-s0-abc", "fedavg-s1-abc")},
        ),
        "one": made_up(file("one")),
        "many": made_up(file("many", strategies=few, axes={"clients.count": [20]}), rounds=2),
        "axes": made_up(
            file("axes", strategies=few, axes={"clients.count": [2, 5], "balance.beta": [1.0, 2.0]})
        ),
        "peers": made_up(
            file("peers", strategies={}, reference="", peers=("popularity", "item-knn"))
        ),
        "nothing": made_up(file("nothing"), missing={(label, 0) for label in STRATEGIES}),
    }


@pytest.fixture(scope="module")
def pages(
    compared: dict[str, Compared], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        name: write_comparison(each, folder / f"{name}.html").read_text()
        for name, each in compared.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_sound_html_that_needs_nothing_else(kind: str, pages: dict[str, str]) -> None:
    page = pages[kind]
    outline = Outline(page)
    assert outline.open == [] and len(outline.ids) == len(set(outline.ids))
    names = [tag for tag, _ in outline.tags]
    assert [names.count(tag) for tag in ("h1", "main", "script")] == [1, 1, 0]
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)
    targets = {str(given["href"])[1:] for given in outline.named("a")}
    assert targets <= set(outline.ids)
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert all("<table>" in figure for figure in figures)
    assert bool(figures) == (kind != "nothing")
    assert not re.search(r"\bnan\b|\bNone\b", words(page).partition("The recipe")[0])


def test_what_stands_between_backticks_is_code_and_all_is_escaped(pages: dict[str, str]) -> None:
    assert '<p class="lead">Numbers without a <code>run &lt;0&gt;</code>.</p>' in pages["one"]


def row_of(page: str, caption: str, label: str) -> list[str]:
    """Return the cells of a row of the first table whose caption begins so, as HTML."""
    table = page.partition(f"<caption><span>{caption}")[2].partition("</table>")[0]
    row = table.partition(f'<th scope="row">{label}</th>')[2].partition("</tr>")[0]
    return re.findall(r"<td[^>]*>(.*?)</td>", row)


def test_a_cell_that_failed_has_its_reason_and_no_number(pages: dict[str, str]) -> None:
    page, said = pages["several"], words(pages["several"])
    seeds, *figures = row_of(page, "Test scores", "broken")
    assert "0 of 2" in seeds and "2 failed" in seeds
    assert figures == ["–"] * 5
    assert f"broken 0 {DIVERGED} broken 1 {DIVERGED}" in said and "<diverged>" not in page
    assert "2 cells failed (broken) and have no figure." in said
    charts = re.findall(r"<svg[^>]*role=.*?</svg>", page, re.DOTALL)
    assert charts and not any("broken" in chart for chart in charts)


def test_what_is_missing_or_old_is_named(pages: dict[str, str]) -> None:
    page, said = pages["several"], words(pages["several"])
    assert "1 cell has not been run yet." in said and "Not run yet: slow (seed 1)." in said
    assert "1 of 2" in row_of(page, "Test scores", "slow")[0]
    assert "Made by an earlier state of the code: fellrec." in said
    assert "earlier code" in row_of(page, "Test scores", "fellrec")[0]
    assert "earlier code" not in row_of(page, "Test scores", "fedavg")[0]
    assert "vouched" not in row_of(page, "Test scores", "fellrec")[0]
    assert "earlier code, vouched for" in row_of(page, "Test scores", "local")[0]
    assert (
        "1 row by earlier code: today's gives the same, as fedavg-s1-abc and local-s0-abc showed, "
        "made anew."
    ) in said
    assert "A &amp; B" in page and "11 of 14 cells" in said


def test_only_differences_that_are_clear_are_bold(
    compared: dict[str, Compared], pages: dict[str, str]
) -> None:
    (table,) = compared["several"].tables
    seen = set()
    for row in table.rows:
        for place, metric in ((3, "recall@10"), (4, "ndcg@10")):
            value = row.over_reference.get(metric)
            if value is not None:
                cell = row_of(pages["several"], "Test scores", row.label)[place]
                assert ("<strong>" in cell) == value.clear, (row.label, metric)
                assert f"{value.interval.mean:+.4f}" in cell
                assert f"{value.interval.low:+.4f} to {value.interval.high:+.4f}" in cell
                seen.add(value.clear)
    assert seen == {True, False}
    assert row_of(pages["several"], "Test scores", "fedavg")[3:5] == ["reference"] * 2


def test_the_headline_calls_clear_what_is_clear(
    compared: dict[str, Compared], pages: dict[str, str]
) -> None:
    (table,) = compared["several"].tables
    said = words(pages["several"])
    best, reference = table.row("centralised"), table.row("fedavg")
    assert best is not None and reference is not None and best.over_reference["ndcg@10"].clear
    gain = best.over_reference["ndcg@10"].interval.mean
    assert f"Clearly above it: centralised ({gain:+.4f})." in said
    assert f"reaches NDCG@10 of {reference.overall['ndcg@10'].interval.mean:.4f}" in said
    share = reference.of_ceiling
    assert share is not None and side_of_one(share) == -1
    mean, low, high = (f"{each:.0%}" for each in share.interval)
    below = f"fedavg reaches {mean} of centralised's score ({low} to {high}, clearly below it)."
    assert below in said
    assert "2 seeds: what is called clear has the same sign in each of them." in said
    assert "One seed: what another seed would change is not known." in words(pages["one"])


def test_rows_that_are_alike_can_not_be_told_apart(tmp_path: Path) -> None:
    rows: dict[str, dict[str, object]] = {"fedavg": {}, "other": {"balance.beta": 2.0}}
    found = made_up(write_file(tmp_path / "alike.toml", strategies=rows))
    (table,) = found.tables
    assert not table.rows[1].over_reference["ndcg@10"].clear
    said = words(write_comparison(found, tmp_path / "page.html", examples=0).read_text())
    assert "Other can't be told apart from it." in said
    assert "Clearly above" not in said and "Clearly below" not in said
    assert "Real recommendations" not in said


def test_each_seed_has_its_clients(compared: dict[str, Compared], pages: dict[str, str]) -> None:
    page, (table,) = pages["several"], compared["several"].tables
    assert "The clients of seed 1" in page and "Test NDCG@10 of each client, seed 0" in page
    assert page.count('-title">Test NDCG@10 of client c0 by strategy') == 2
    for client in (each for each in table.clients if each.seed == 0):
        value = client.scores["local"].interval
        cells = row_of(page, "Test NDCG@10 of each client, seed 0", "local")
        assert ranged(f"{value.mean:.4f}", f"{value.low:.4f} to {value.high:.4f}") in cells
    assert "The clients of seed" not in pages["one"]


def test_many_clients_are_a_map(pages: dict[str, str]) -> None:
    assert "each client by strategy</title>" in pages["many"]
    assert "of client c0 by strategy" not in pages["many"]
    table = pages["many"].partition("of each client, in numbers</span></caption>")[2]
    head = table.partition("</tr>")[0]
    assert head.count("(10 users)") == 20


def test_only_rows_that_mix_personally_show_attention(pages: dict[str, str]) -> None:
    section = pages["one"].partition('<section id="mixing"')[2].partition("</section>")[0]
    summaries = re.findall(r"<summary>(.*?)</summary>", section)
    rows = [each for each in summaries if each in STRATEGIES]
    assert rows == ["fellrec"]
    assert "No row with a result gave each client a mixture" in words(pages["peers"])


@pytest.mark.parametrize(
    ("weights", "personal"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], False),  # nothing is taken in
        ([[0.5, 0.5], [0.5, 0.5]], False),  # one average for all
        ([[0.7, 0.3], [0.4, 0.6]], True),
        ([[1.0]], False),
    ],
)
def test_a_mixture_is_personal_if_it_is_of_others_and_not_the_same(
    weights: list[list[float]], personal: bool
) -> None:
    lines = {f"c{place}": {"weights": row} for place, row in enumerate(weights)}
    assert is_personal(RoundLog(1, lines, {})) is personal


def test_each_setting_of_the_axes_has_a_section_and_each_axis_a_picture(
    compared: dict[str, Compared], pages: dict[str, str]
) -> None:
    page = pages["axes"]
    headings = [html.unescape(each) for each in re.findall(r"<h2[^>]*>(.*?)</h2>", page)]
    assert headings[1:-1] == [
        f"clients.count = {count}, balance.beta = {beta}" for count in (2, 5) for beta in (1.0, 2.0)
    ]
    for title in ("Test NDCG@10", "Relative gap between clients"):
        assert f"<h3>{title} by clients.count, balance.beta = 1.0</h3>" in page
        assert f"<h3>{title} by balance.beta, clients.count = 5</h3>" in page
    caption = "Test NDCG@10 by clients.count, balance.beta = 1.0, in numbers"
    for place, table in enumerate(compared["axes"].tables[::2]):
        row = table.row("fellrec")
        assert row is not None
        cell = row_of(page, caption, "fellrec")[place]
        assert f"{row.overall['ndcg@10'].interval.mean:.4f}" in cell
    chart = page.partition("by clients.count, balance.beta = 1.0: fellrec</title>")[2]
    drawn = chart.partition("</svg>")[0]
    assert ">2</text>" in drawn and ">5</text>" in drawn and "round" not in drawn


def test_peers_alone_have_scores_and_settings_only(pages: dict[str, str]) -> None:
    said = words(pages["peers"])
    assert "No row is named as the reference" in said and "on ml-100k" in said
    assert "No row with a result divides the users into clients." in said
    assert "popularity 1,682 1.5 s neighbours = 50" in said


def test_nothing_yet_is_said_plainly(pages: dict[str, str]) -> None:
    said = words(pages["nothing"])
    assert "No cell has a result yet, so there is nothing to compare." in said
    assert "4 cells have not been run yet." in said and "0 of 4 cells" in said


def test_recipe_changes_and_commands_are_there(
    compared: dict[str, Compared], pages: dict[str, str]
) -> None:
    page, (table,) = pages["one"], compared["one"].tables
    for row in table.rows:
        assert row.cells[0].origin["command"] in page
    assert f"\ncount = {CLIENTS}\n" in page
    said = words(page)
    assert "centralised clients.partition = random, clients.count = 1, balance.str" in said
    assert "fellrec nothing: the recipe as it is" in said


def test_the_same_comparison_gives_the_same_page(
    compared: dict[str, Compared], pages: dict[str, str], tmp_path: Path
) -> None:
    again = write_comparison(compared["one"], tmp_path / "new" / "page.html")
    assert again.read_text() == pages["one"]
    with pytest.raises(RunError, match="can't be written"):
        write_comparison(compared["one"], again / "page.html", examples=0)


def test_without_runs_a_sentence_says_why_nobody_is_served(
    compared: dict[str, Compared], pages: dict[str, str], tmp_path: Path
) -> None:
    assert "No folder of runs was given, so nobody can be served." in words(pages["one"])
    page = write_comparison(compared["one"], tmp_path / "page.html", runs=tmp_path).read_text()
    assert f"No run of a row is left in {tmp_path.name}" in words(page) and "<article>" not in page


@pytest.mark.usefixtures("own_cache")
def test_the_same_users_are_served_by_every_row(
    toys: Toys, finished_run: Path, tmp_path: Path
) -> None:
    recipe = str(finished_run / "config.toml")
    rows = "[strategies.one]\n[strategies.two]\n'balance.beta' = 3.0\n"
    file = tmp_path / "toys.toml"
    file.write_text(f"name = 'toys'\nrecipe = '{recipe}'\nreference = 'one'\n{rows}")
    read = Comparison.read(file)
    runs, results = tmp_path / "runs", tmp_path / "results"
    for planned in read.cells:
        shutil.copytree(finished_run, runs / planned.name)
        place = place_of(planned, results)
        keep_alone(finished_run, place.parent, place.name, {})
    found = compare(read, [outcome(planned, results) for planned in read.cells])
    page = write_comparison(found, tmp_path / "page.html", runs=runs, examples=1).read_text()
    articles = page.split("<article>")[1:]
    drawn = samples(load_run(finished_run), 3)
    assert len(articles) == len(drawn) == 3
    for sample, article in zip(drawn, articles, strict=True):
        said = words("</style>" + article)
        assert said.startswith(f"User {sample.user} of client {sample.client}")
        (target,) = sample.held_out
        assert said.count(f"taken next: rank {target.rank}") == 2
        lists = re.findall(r"<h4>(?:one|two)</h4>\s*<ol>(.*?)</ol>", article, re.DOTALL)
        assert len(lists) == 2 and lists[0] == lists[1]
        assert all(html.escape(each.title) in lists[0] for each in sample.recommended)
    (runs / read.cells[1].name / "clients" / "north" / "best_adapter.safetensors").unlink()
    page = write_comparison(found, tmp_path / "page.html", runs=runs, examples=1).read_text()
    assert "two can't be served:" in words(page) and page.count("<article>") == 3


def test_lists_of_names_end() -> None:
    assert [listed(each) for each in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]
    assert listed(list("abcdefgh"), most=3) == "a, b, c and 5 more"
