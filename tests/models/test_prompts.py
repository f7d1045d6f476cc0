"""What BIGRec reads and writes: frames, titles, budgets, end tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fellrec.errors import ModelError
from fellrec.models.prompts import Prompts, PromptSettings, end_token, plural, vocabulary
from tests.builders import tiny_catalogue, tiny_tokenizer
from tests.models.conformance import ODD_TITLES

TITLES = tiny_catalogue().titles
SETTINGS = PromptSettings("story", "read", history=3, title_tokens=8, max_tokens=400)


def prompts(*titles: str, **changes: Any) -> Prompts:
    settings = PromptSettings(**{**SETTINGS.__dict__, **changes})
    return Prompts(tiny_tokenizer("eos"), titles or TITLES, settings)


def text(tokens: Any) -> str:
    return str(tiny_tokenizer("eos").decode(list(tokens)))


def test_a_prompt_reads_as_the_method_says() -> None:
    first, second, third = TITLES[:3]
    assert text(prompts().prompt(np.array([0, 1, 2]))) == (
        "### Instruction:\nGiven a list of stories the user has read before, please recommend a "
        "new story that the user likes to the user.\n\n### Input:\nThe user has read the following "
        f'stories before: "{first}", "{second}", "{third}"\n\n### Response:\n'
    )
    assert text(prompts().prompt(np.array([4]))).endswith(
        f'before: "{TITLES[4]}"\n\n### Response:\n'
    )


@pytest.mark.parametrize(
    ("thing", "things"),
    [
        ("movie", "movies"), ("video game", "video games"), ("story", "stories"), ("toy", "toys"),
        ("dress", "dresses"), ("watch", "watches"), ("box", "boxes"), ("y", "ys"),
    ],
)  # fmt: skip
def test_plural(thing: str, things: str) -> None:
    assert plural(thing) == things


def test_a_response_is_the_quoted_title_and_an_end() -> None:
    made = prompts()
    for item, title in enumerate(TITLES):
        *words, end = made.responses[item].tolist()
        assert text(words) == f'"{title}"' and end == made.end
        assert end not in words
        assert text(made.bare[item]) == title


def test_parts_put_together_are_the_tokens_of_the_whole_text() -> None:
    tokens = prompts().prompt(np.array([3, 1, 2])).tolist()
    whole: Any = tiny_tokenizer("eos")(text(tokens), add_special_tokens=False)["input_ids"]
    assert tokens == whole


def test_the_last_titles_are_read_and_the_oldest_left_out_to_fit() -> None:
    long = np.arange(10)
    assert prompts().prompt(long).tolist() == prompts().prompt(long[-3:]).tolist()
    whole = prompts(history=10).prompt(long)
    responses = int(prompts().responses.lengths().max())
    for room in range(len(whole) - 30, len(whole) + 1, 3):
        cut = prompts(history=10, max_tokens=room + responses).prompt(long)
        assert len(cut) <= room
        kept = text(cut).count('", "') + 1
        assert text(cut) == text(prompts(history=kept).prompt(long))  # whole titles, the newest
        longer = prompts(history=min(kept + 1, 10)).prompt(long)
        assert kept == 10 or len(longer) > room


def test_a_prompt_that_cannot_fit() -> None:
    needed = len(prompts(history=1).prompt(np.array([0])))
    with pytest.raises(ModelError, match=r"allows 40; lower bigrec\.title_tokens") as error:
        prompts(max_tokens=40)
    assert "\n" not in str(error.value) and needed > 40


def test_long_titles_are_cut() -> None:
    made = prompts("sunfall " * 40, "七人の侍" * 30, "short", title_tokens=5)
    for item in range(2):
        assert 1 <= len(made.bare[item]) <= 5
        assert len(made.responses[item]) <= 5 + 3
        assert "\ufffd" not in text(made.bare[item])
    assert text(made.bare[2]) == "short"
    assert text(prompts("🦉", title_tokens=1).bare[0]) == "🦉"  # one character at least


def test_titles_of_all_sorts_come_back() -> None:
    made = prompts(*ODD_TITLES, title_tokens=600, max_tokens=2000)
    for item, title in enumerate(ODD_TITLES):
        plain = " ".join(title.split())
        assert text(made.responses[item].tolist()[:-1]) == f'"{plain}"'
        assert made.responses[item].tolist().count(made.end) == 1
        written = made.title_of(made.responses[item].tolist())
        assert written == plain.strip('"').strip() or '"' in plain


def test_a_title_that_spells_the_end_token_does_not_end() -> None:
    made = prompts("a <eos> b")
    assert made.responses[0].tolist().count(made.end) == 1
    assert made.prompt(np.array([0])).tolist().count(made.end) == 0


@pytest.mark.parametrize("title", ["", "  \n "])
def test_an_item_without_a_title(title: str) -> None:
    with pytest.raises(ModelError, match="item 1 of the catalogue has no title"):
        prompts("one", title)


def test_what_was_written_becomes_a_title() -> None:
    made = prompts()
    encode = tiny_tokenizer("eos").encode
    for said, title in (
        ('"sunfall"', "sunfall"),
        (' "sunfall"\nAnd more', "sunfall"),
        ("sunfall", "sunfall"),
        ("", ""),
        ('""', ""),
        ("\n\nseaman", "seaman"),
    ):
        assert made.title_of([*encode(said, add_special_tokens=False), made.end]) == title


@pytest.mark.parametrize(
    ("name", "thing", "verb", "wanted"),
    [
        ("ml-100k", "", "", ("movie", "watched")),
        ("amazon-games-2018", "", "", ("video game", "played")),
        ("games", "", "", ("video game", "played")),
        ("amazon-books-2023", "", "", ("book", "read")),
        ("amazon-books-2023", "novel", "", ("novel", "read")),
        ("shop", "", "", ("item", "chosen")),
        ("shop", "dress", "bought", ("dress", "bought")),
    ],
)
def test_vocabulary(name: str, thing: str, verb: str, wanted: tuple[str, str]) -> None:
    assert vocabulary(name, thing, verb) == wanted


def test_a_tokenizer_without_an_end_of_its_own() -> None:
    def words(*known: str, **special: str) -> PreTrainedTokenizerFast:
        vocabulary = {word: number for number, word in enumerate(known)}
        bare = Tokenizer(models.WordLevel(vocabulary, unk_token=known[0]))
        bare.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=bare, unk_token=known[0], **special)

    assert end_token(words("?", "a", "<e>", "<s>", eos_token="<e>", sep_token="<s>")) == 2
    assert end_token(words("?", "a", "<s>", sep_token="<s>")) == 2
    assert end_token(words("?", "a", "<p>", pad_token="<p>")) == 2
    assert end_token(words("?", "a")) == 0
    line = end_token(tiny_tokenizer())  # a byte-level one has the line break
    assert tiny_tokenizer().decode([line]) == "\n"
    made = Prompts(tiny_tokenizer(), TITLES, SETTINGS)
    assert made.end == line and made.responses[0].tolist()[-1] == line
