"""Amazon reviews with their metadata, in the form of 2018 and in that of 2023.

Both are JSON lines, mostly gzipped: a file of reviews, and one of what each product is. A review
of whatever rating is an interaction.

https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/ and https://amazon-reviews-2023.github.io/
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fellrec.data.interactions import Dataset
from fellrec.data.streams import Imported, Log, clean, describe, identifier, moment, text_lines
from fellrec.errors import DataError


@dataclass(frozen=True)
class Form:
    """What an edition of the data calls things.

    Attributes:
        user: who wrote a review.
        item: the product, in both files; of several names the first that is there.
        time: when.
        categories: the path of categories; of several names the first that says something.
        maker: the brand or shop; also the attribute's name.
    """

    user: str
    item: tuple[str, ...]
    time: str
    categories: tuple[str, ...]
    maker: str


FORMS: Mapping[str, Form] = {
    "amazon-2018": Form(
        "reviewerID", ("asin",), "unixReviewTime", ("category", "categories"), "brand"
    ),
    # A parent is one product in all its colours and sizes, each of which has an "asin".
    "amazon-2023": Form(
        "user_id", ("parent_asin", "asin"), "timestamp", ("categories", "main_category"), "store"
    ),
}

# Elements that the pages of 2018 left in texts. Only these: "<Import>" may be part of a title.
_MARKUP = re.compile(
    r"</?(?:a|b|br|div|em|font|h[1-6]|i|img|li|p|script|span|strong|style|table|td|tr|ul)\b[^<>]*>",
    re.IGNORECASE,
)
# Where this stands, the page's script was taken for its title.
_SCRIPT = "getTime("


def read_amazon(reviews: Path, metadata: Path, form: Form, k: int = 0) -> Imported:
    """Build a data set from reviews and metadata, each read once from front to end.

    Args:
        reviews: JSON lines with who reviewed what when.
        metadata: JSON lines with titles and categories; more products than were reviewed, or the
            same one again, do no harm: the first line that has a title counts.
        form: what the columns are called.
        k: keep users and items with at least this many interactions; 0 keeps all.

    Returns:
        The data set, named after the reviews; its catalogue has the products that were reviewed
        and have a title.

    Raises:
        DataError: a line that is not a JSON object or lacks who, what or when; a file that is
            missing, cut or not UTF-8; nothing that is left.
    """
    log = Log()
    for where, record in _records(reviews):
        item = _first(record, form.item)
        log.add(
            identifier(record.get(form.user), f"{where}: {form.user}"),
            identifier(item, f"{where}: {form.item[0]}"),
            moment(record.get(form.time), f"{where}: {form.time}"),
        )
    dataset, repeated, sparse = log.dataset(reviews, k)
    texts = _texts(metadata, form, dataset)
    names = ("categories", form.maker)
    return describe(dataset, texts, names, path=metadata, k=k, repeated=repeated, sparse=sparse)


def _texts(metadata: Path, form: Form, dataset: Dataset) -> dict[str, tuple[str, str, str]]:
    """Return title, categories and maker of the data set's items, as far as they have a title."""
    wanted = set(dataset.catalogue.ids)
    texts: dict[str, tuple[str, str, str]] = {}
    for where, record in _records(metadata):
        item = identifier(_first(record, form.item), f"{where}: {form.item[0]}")
        if item in wanted and (title := _title(record.get("title"))):
            wanted.remove(item)
            texts[item] = title, _categories(record, form.categories), _text(record.get(form.maker))
    return texts


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, and where each stands."""
    for number, line in text_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: is not JSON ({error})") from None
        if not isinstance(record, dict):
            raise DataError(f"{where}: is not a JSON object")
        yield where, record


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name)), None)


def _title(value: Any) -> str:
    return "" if isinstance(value, str) and _SCRIPT in value else _text(value)


def _text(value: Any) -> str:
    """Return a text without markup; what is no text is nothing."""
    return clean(html.unescape(_MARKUP.sub(" ", value))) if isinstance(value, str) else ""


def _categories(record: Mapping[str, Any], names: Sequence[str]) -> str:
    value = _first(record, names)
    path = value if isinstance(value, list) else [value]
    if path and isinstance(path[0], list):  # several paths, as they were given before 2018
        path = path[0]
    found = []
    for part in path:
        # After markup there come sentences of the product's description.
        if isinstance(part, str) and _MARKUP.search(part):
            break
        found.append(_text(part))
    return ", ".join(filter(None, found))
