"""Colours: enough contrast, in light and in dark, for words and for lines."""

from __future__ import annotations

import re
from importlib import resources

import pytest

STYLE = (resources.files("fellrec.report") / "templates" / "style.css").read_text("utf-8")
WORDS = [
    *((ink, ground) for ink in ("ink", "soft", "link") for ground in ("paper", "card")),
    *(("cell", f"h{level}") for level in range(5)),
    *(("cell-high", f"h{level}") for level in range(5, 8)),
    ("badge-ink", "badge"),
    ("ink", "hit"),
]
LINES = [(f"s{series}", "card") for series in range(4)] + [("focus", "paper"), ("k0", "card")]


def colours(scheme: str) -> dict[str, str]:
    """Return the variables that a scheme ends up with."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    if scheme == "dark":
        found |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark))
    return found


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_as_its_definition_says() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_lines_stand_out(scheme: str) -> None:
    found = colours(scheme)
    faint = [pair for pair in WORDS if contrast(found[pair[0]], found[pair[1]]) < 4.5]
    faint += [pair for pair in LINES if contrast(found[pair[0]], found[pair[1]]) < 3.0]
    assert faint == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shades_go_one_way(scheme: str) -> None:
    levels = [luminance(colours(scheme)[f"h{level}"]) for level in range(8)]
    assert levels == sorted(levels, reverse=scheme == "light") and len(set(levels)) == 8


def test_every_colour_has_a_twin_in_the_dark() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    names = [set(re.findall(r"--([\w-]+):", part)) for part in (light, dark)]
    assert names[0] == names[1]
    assert set(re.findall(r"var\(--([\w-]+)\)", STYLE)) <= names[0]
