"""BIGRec: positions are the tokens of a prompt, titles oldest first, and the head is causal.

In training the prompt is followed by the title that is to be learned: all of it but the end token
is an input. So the last target is not told by gradients here, it is read like the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fellrec.audit.inversion import Units, nearest, search
from fellrec.audit.readers.texts import TextReader
from fellrec.audit.recovery import Content
from fellrec.audit.wiretap import Items, Step
from fellrec.models.bigrec import Bigrec
from fellrec.models.dropout import StepKey
from fellrec.models.recommender import Trunk

_TRIED = 8  # tokens that are tried at a position of a training text, whose masks blur the fit


class BigrecReader(TextReader):
    """Knows titles by their tokens, and tokens by their embeddings."""

    def __init__(self, recommender: Bigrec, items: int) -> None:
        super().__init__(items)
        self._recommender = recommender

    @property
    def recommender(self) -> Bigrec:
        """Whose histories these are."""
        return self._recommender

    @property
    def scores_all(self) -> bool:
        """No: titles are written."""
        return False

    def vectors(self) -> Tensor:
        """The embeddings of the tokens that titles are made of, (units, d)."""
        return self._embedded(self.units)

    @torch.no_grad()
    def read_back(self, seen: Sequence[Tensor], most: int) -> dict[str, list[Content]]:
        """`nearest` and `search` of inversion.py over tokens, then the titles that fit best."""
        inside = [self.inside(each) for each in seen]
        units = self._units(inside)
        found = {
            "nearest": [nearest(each, units) for each in inside],
            "search": [search(each, units, most) for each in inside],
        }
        return {
            name: [self.guessed(self.units[each]) for each in guesses]
            for name, guesses in found.items()
        }

    def labels(self, step: Step) -> Items:
        """The title of each row's response."""
        found = []
        for row, length in enumerate(step.layout.lengths.tolist()):
            inputs = step.batch.inputs[row, :length].numpy().astype(np.int64)
            found.append(int(self._fits(inputs[self.begins :]).argmin()))
        return self.alike[found]

    @torch.no_grad()
    def told(self, steps: Sequence[Step], key: StepKey, trunk: Trunk) -> dict[str, list[int]]:
        """`reading`: the whole text as it went through the first cut, its response at the end."""
        found = list[int]()
        for step in steps:
            parts = step.activations.split(step.layout.lengths.tolist())
            inside = [part[self.begins :] for part in parts]
            units = self._units(inside)
            for part, label in zip(inside, self.labels(step), strict=True):
                fits = self._fits(self.units[search(part, units, _TRIED)])
                found.append(int((fits[self.pieces.items] < fits[label]).sum()))
        return {"reading": found}

    def _fits(self, tokens: Items) -> Items:
        """In how many tokens the end of a training text differs from each item's response.

        tokens: all behind the beginning. What stands before the response is `after`, wherever it is
        found best.
        """
        after = self.pieces.after
        places = np.arange(len(tokens) - len(after))
        unlike = [(tokens[place : place + len(after)] != after).sum() for place in places]
        written = tokens[int(np.argmin(unlike)) + len(after) :]
        responses = self._recommender.prompts.responses
        return np.array(
            [_unlike(written, responses[item][:-1]) for item in range(len(responses))], np.int64
        )

    def _embedded(self, tokens: Items) -> Tensor:
        return self._recommender.head.embed(torch.from_numpy(tokens))

    def _units(self, seen: Sequence[Tensor]) -> Units:
        before = self._embedded(self.pieces.before)
        return Units.of(self._recommender.head, self.vectors(), before, seen)


def _unlike(written: Items, response: npt.NDArray[np.int32]) -> int:
    both = min(len(written), len(response))
    return int((written[:both] != response[:both]).sum()) + abs(len(written) - len(response))
