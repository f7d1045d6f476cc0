"""The frame of every page: one HTML file that needs no other file, no script and no network."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fellrec.errors import RunError
from fellrec.files import write_bytes
from fellrec.report.blocks import Page


def render(page: Page) -> str:
    """Return the page as HTML; all texts in it are escaped."""
    return _environment().get_template("page.html.j2").render(page=page)


def write(page: Page, out: Path) -> Path:
    """Write a page, the old content or the new and never half of either; RunError if it can't."""
    try:
        write_bytes(out, render(page).encode("utf-8", "replace"))
    except OSError as error:
        raise RunError(f"{out}: can't be written ({error.strerror or error})") from error
    return out


def _code(text: str) -> Markup:
    """Escape a text and set what is between `backticks` as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fellrec.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _code
    return environment
