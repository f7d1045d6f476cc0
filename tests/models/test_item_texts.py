"""A catalogue as tokens: names and values, cut, and nothing that a title could command."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from fellrec.data.interactions import Catalogue, Ragged
from fellrec.errors import DataError, ModelError
from fellrec.models.item_texts import FIRST, NAME, VALUE, ItemTexts, item_texts
from tests.builders import tiny_catalogue, tiny_tokenizer


def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer("cls", "pad")


def catalogue(*titles: str, **attributes: tuple[str, ...]) -> Catalogue:
    return Catalogue(tuple(f"i{i}" for i in range(len(titles))), titles, attributes)


def read(texts: ItemTexts, item: int, kind: int | None = None) -> str:
    """Turn an item's tokens back into a text; those of one type if asked."""
    tokens, types = texts.tokens[item], texts.types[item]
    chosen = tokens if kind is None else tokens[types == kind]
    return str(tokenizer().decode(chosen.tolist()))


def test_an_item_is_its_attributes_one_after_another() -> None:
    texts = item_texts(tiny_catalogue(3), tokenizer(), 32)
    assert read(texts, 0) == " title sunfall item kind tale"
    assert read(texts, 0, NAME) == " title item kind"
    assert read(texts, 0, VALUE) == " sunfall tale"
    assert read(texts, 2) == " title sunbed"  # an empty attribute is left out, its name too
    assert len(texts) == 3 and texts.lengths().tolist() == [len(texts.tokens[i]) for i in range(3)]


def test_white_space_is_normalised_and_other_scripts_survive() -> None:
    texts = item_texts(catalogue(" a\n\tb\r\n  c ", "七人の侍", 'Солярис, "2"'), tokenizer(), 64)
    assert read(texts, 0, VALUE) == " a b c"
    assert read(texts, 1, VALUE) == " 七人の侍"
    assert read(texts, 2, VALUE) == ' Солярис, "2"'


def test_a_title_that_spells_a_special_token_is_a_title() -> None:
    special = tokenizer()
    texts = item_texts(catalogue("<cls> and <pad>"), special, 64)
    assert read(texts, 0, VALUE) == " <cls> and <pad>"
    assert not set(texts.tokens[0].tolist()) & {special.cls_token_id, special.pad_token_id}
    # and the tokenizer is as it was
    assert special("<cls>", add_special_tokens=False)["input_ids"] == [special.cls_token_id]


def test_each_text_is_cut_and_then_each_item() -> None:
    long = catalogue("y" * 50, plot=("z" * 50,))
    texts = item_texts(long, tokenizer(), 7)
    values = texts.tokens[0][texts.types[0] == VALUE]
    assert len(values) == 14
    for most in (1, 3, len(texts.tokens[0]), 99):
        part = texts.cut(most)
        assert part.first == texts.first
        for whole, rows in ((texts.tokens, part.tokens), (texts.types, part.types)):
            assert rows[0].tolist() == whole[0][:most].tolist()


def test_equal_titles_are_equal_texts() -> None:
    texts = item_texts(catalogue("a", "b", "a"), tokenizer(), 32)
    assert texts.tokens[0].tolist() == texts.tokens[2].tolist() != texts.tokens[1].tolist()


@pytest.mark.parametrize(
    ("titles", "said"), [(("a", "", "\n "), "2 of 3"), (("", "", ""), "3 of 3")], ids=str
)
def test_an_item_without_any_text_is_named(titles: tuple[str, ...], said: str) -> None:
    bare = catalogue(*titles, year=("", "", ""))
    with pytest.raises(DataError, match=f"{said} items have no text") as error:
        item_texts(bare, tokenizer(), 32)
    assert "\n" not in str(error.value)
    assert f"'i{titles.index('')}'" in str(error.value)


def test_a_catalogue_without_titles_is_its_attributes() -> None:
    untitled = dataclasses.replace(tiny_catalogue(2), titles=("", ""))
    assert read(item_texts(untitled, tokenizer(), 32), 0) == " item kind tale"


@pytest.mark.parametrize(
    "named",
    [("cls", "bos", "eos", "pad"), ("bos", "eos"), ("eos", "pad"), ("pad", "unk"), ("unk",)],
)
def test_the_first_token_is_the_best_there_is(named: tuple[str, ...]) -> None:
    own = tiny_tokenizer(*named)
    assert item_texts(tiny_catalogue(1), own, 8).first == own.convert_tokens_to_ids(f"<{named[0]}>")


def test_a_tokenizer_without_special_tokens() -> None:
    with pytest.raises(ModelError, match="no special token") as error:
        item_texts(tiny_catalogue(1), tiny_tokenizer(), 8)
    assert "\n" not in str(error.value)


@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=5), min_size=1, max_size=5))
def test_rows_are_laid_out_token_by_token(rows: list[list[int]]) -> None:
    texts = item_texts(tiny_catalogue(), tokenizer(), 32)
    layout, inputs = texts.lay_out(Ragged.from_rows(rows))
    assert inputs.shape == (len(rows), layout.width, 3)
    for row, length, found in zip(rows, layout.lengths.tolist(), inputs.tolist(), strict=True):
        expected = [[texts.first, 0, FIRST]]
        for place, item in enumerate(row, 1):
            pairs = zip(texts.tokens[item].tolist(), texts.types[item].tolist(), strict=True)
            expected += [[token, place, kind] for token, kind in pairs]
        assert found[:length] == expected
        assert all(padding == [texts.first, 0, FIRST] for padding in found[length:])
    assert layout.side == "right" and layout.lengths.dtype == np.int32
