"""What BIGRec reads and writes, as tokens: prompts, responses, titles (METHOD section 3).

The frame is Alpaca's (instruction, input, response) without its opening sentence, which is the same
in every prompt and costs a tenth of its tokens. Titles are tokenised once, each with the quotes and
the comma around it, and put together as token sequences afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from fellrec.data.interactions import Ragged
from fellrec.errors import ModelError

Tokens = npt.NDArray[np.int32]

VOCABULARY: dict[str, tuple[str, str]] = {
    "ml-100k": ("movie", "watched"),
    "amazon-games": ("video game", "played"),
    "amazon-books": ("book", "read"),
    "microlens": ("video", "watched"),
    "games": ("video game", "played"),
    "books": ("book", "read"),
    "movies": ("movie", "watched"),
}
"""What an item is called and what users do with it, by the beginning of a data set's name."""
_ANYTHING = ("item", "chosen")


@dataclass(frozen=True)
class PromptSettings:
    """thing, verb: what an item is called and what users did with it. history: most titles read.
    title_tokens: longer titles are cut. max_tokens: most tokens of a prompt with its response.
    """

    thing: str = _ANYTHING[0]
    verb: str = _ANYTHING[1]
    history: int = 10
    title_tokens: int = 24
    max_tokens: int = 512


def vocabulary(dataset: str, thing: str = "", verb: str = "") -> tuple[str, str]:
    """Return what to call an item and what users did: as given, else by the data set's name."""
    known = (words for name, words in VOCABULARY.items() if dataset.lower().startswith(name))
    usual = next(known, _ANYTHING)
    return thing or usual[0], verb or usual[1]


def plural(thing: str) -> str:
    """Return the regular English plural: movies, stories, dresses."""
    if thing.endswith("y") and thing[-2:-1] not in "aeiou":
        return f"{thing[:-1]}ies"
    return f"{thing}es" if thing.endswith(("s", "x", "ch", "sh")) else f"{thing}s"


class Prompts:
    """A catalogue's titles as tokens, and the prompts made of them.

    responses: by item, the quoted title and the end token. bare: by item, the title alone. end: the
    token that ends a response. Raises ModelError when an item has no title, or when not even one
    title fits a prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        titles: Sequence[str],
        settings: PromptSettings,
    ) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self.end = end_token(tokenizer)
        plain = [" ".join(title.split()) for title in titles]
        empty = next((index for index, title in enumerate(plain) if not title), None)
        if empty is not None:
            raise ModelError(
                f"item {empty} of the catalogue has no title, and bigrec reads and writes titles; "
                "give it one or leave it out"
            )
        plain = self._cut(plain)
        self._inner = self._encode(f' "{title}",' for title in plain)
        self._last = self._encode(f' "{title}"' for title in plain)
        self.bare = self._encode(plain)
        quoted = self._encode(f'"{title}"' for title in plain)
        ends = np.full(len(plain), self.end, np.int32)
        self.responses = quoted.concat(Ragged.from_lengths(np.ones(len(plain), np.int64), ends))
        things = plural(settings.thing)
        self._before = self._start() + self._frame(
            f"### Instruction:\nGiven a list of {things} the user has {settings.verb} before, "
            f"please recommend a new {settings.thing} that the user likes to the user.\n\n"
            f"### Input:\nThe user has {settings.verb} the following {things} before:"
        )
        self._after = self._frame("\n\n### Response:\n")
        self._room = settings.max_tokens - int(self.responses.lengths().max(initial=0))
        least = len(self._before) + len(self._after) + int(self._last.lengths().max(initial=0))
        if least > self._room:
            raise ModelError(
                f"a prompt with one title takes {least} tokens and its response "
                f"{settings.max_tokens - self._room}, but bigrec.max_tokens or the base allows "
                f"{settings.max_tokens}; lower bigrec.title_tokens"
            )

    def prompt(self, items: npt.NDArray[np.integer]) -> Tokens:
        """Return the tokens of a prompt for a history of item indices, oldest first.

        The last `history` titles are read; of these the oldest are left out until the rest fits.
        """
        taken = items[-self._settings.history :]
        room = self._room - len(self._before) - len(self._after) - len(self._last[int(taken[-1])])
        parts: list[Tokens] = []
        for item in taken[-2::-1]:
            part = self._inner[int(item)]
            room -= len(part)
            if room < 0:
                break
            parts.insert(0, part)
        return np.concatenate(
            [self._before, *parts, self._last[int(taken[-1])], self._after], dtype=np.int32
        )

    def title_of(self, written: Sequence[int]) -> str:
        """Return what was written as a title: the first line, without quotes and end token."""
        kept = [token for token in written if token != self.end]
        return self._text(kept).strip().partition("\n")[0].strip().strip('"').strip()

    def texts(self, titles: Sequence[str]) -> Ragged:
        """Return titles that need not be the catalogue's as tokens, cut as those are."""
        return self._encode(self._cut([" ".join(title.split()) for title in titles]))

    def _cut(self, titles: list[str]) -> list[str]:
        limit = self._settings.title_tokens
        rows = self._encode(titles)
        for index in np.flatnonzero(rows.lengths() > limit).tolist():
            # The cut may go through a character; at least one of the title's stays.
            kept = self._text(rows[index][:limit].tolist()).rstrip("\ufffd").strip()
            titles[index] = kept or titles[index][:1]
        return titles

    def _text(self, tokens: list[int]) -> str:
        text: Any = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return str(text)

    def _frame(self, text: str) -> list[int]:
        return self._call([text], add_special_tokens=False)[0]

    def _start(self) -> list[int]:
        """What the tokenizer puts before any text, such as LLaMA's <s>."""
        ids = self._call([""], add_special_tokens=True)[0]
        return [token for token in ids if token != self.end]

    def _encode(self, texts: Iterable[str]) -> Ragged:
        listed = list(texts)
        return Ragged.from_rows(self._call(listed, add_special_tokens=False) if listed else [])

    def _call(self, texts: list[str], **options: bool) -> list[list[int]]:
        # A title that spells a special token is still a title, not a command to the model.
        encoded: Any = self._tokenizer(
            texts, return_attention_mask=False, split_special_tokens=True, **options
        )
        rows: list[list[int]] = encoded["input_ids"]
        return rows


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a response, of a tokenizer that may have no end of its own.

    In this order: end of text, separator, the line break, padding, and at last token 0, which then
    means nothing else after a closing quote.
    """
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    line: Any = tokenizer(["\n"], add_special_tokens=False)["input_ids"]
    if line[0]:
        return int(line[0][-1])
    return int(tokenizer.pad_token_id or 0)
