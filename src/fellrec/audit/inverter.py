"""A learned inverter: a small network that is taught to undo the first cut.

It needs no history of anybody: the server makes up histories of items drawn evenly from the public
catalogue, runs them through the public head, passes what comes out through the run's codec, and
teaches a network to say what stood at each position. One block that attends both ways, then a
comparison with what the head reads for each unit: it can tell an item's own part of an activation
from its neighbours', which `nearest` takes for noise, and needs no exact fit, which `search` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fellrec.audit.readers import Reader
from fellrec.audit.recovery import Content
from fellrec.audit.wiretap import Items, across
from fellrec.config import RunConfig
from fellrec.federation.shares import seeded
from fellrec.privacy import Cover, Draws, made_up
from fellrec.split.codecs import Codec

_HISTORIES, _RATE = 16, 2e-3
_HEADS, _SCALE = 4, 16.0


class Inverter(nn.Module):
    """From activations, (length, d), to what stood at each position.

    units: (n, d) vectors of what may stand there. usual, spread: (d,) mean and deviation of
    activations.
    """

    def __init__(self, units: Tensor, usual: Tensor, spread: Tensor) -> None:
        super().__init__()
        width = len(usual)
        units = units.detach().cpu()
        self._units = F.normalize(units - units.mean(dim=0), dim=-1)
        self._usual, self._spread = usual, spread
        self._first = nn.Linear(width, width)
        self._block = nn.TransformerEncoderLayer(
            width, _HEADS, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self._last = nn.Linear(width, units.shape[1])

    def forward(self, activations: Tensor, valid: Tensor) -> Tensor:
        """Return (batch, width, units) logits. activations: (batch, width, d). valid: which are."""
        hidden = self._first((activations - self._usual) / self._spread)
        hidden = self._block(hidden, src_key_padding_mask=~valid)
        return _SCALE * F.normalize(self._last(hidden), dim=-1) @ self._units.T

    @classmethod
    def taught(
        cls, reader: Reader, config: RunConfig, cover: Cover, lessons: int, seed: int
    ) -> Inverter:
        """Teach one on the head that is installed.

        cover: such as clients draw over what they send; the server draws noise of its own.
        lessons: steps, each of 16 made-up histories. seed: draws these and its start.
        """
        rng = seeded(seed, "inverter")
        teacher = _Teacher(reader, config, cover, rng)
        first = teacher.example()
        together = torch.cat(first[0])
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(int(rng.integers(2**31)))
            it = cls(reader.vectors(), together.mean(dim=0), together.std(dim=0).clamp(min=1e-6))
            optimiser = torch.optim.AdamW(it.parameters(), _RATE, weight_decay=0.01)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, lessons)
            for step in range(lessons):
                activations, units = first if step == 0 else teacher.example()
                logits, valid = it._read(activations)
                loss = F.cross_entropy(logits[valid], torch.from_numpy(np.concatenate(units)))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        return it.eval()

    @torch.no_grad()
    def read(self, seen: Sequence[Tensor], reader: Reader) -> list[Content]:
        """Guess histories from what crossed, (length, d) each."""
        found = []
        for each in seen:
            logits, _ = self._read([each])
            guess = reader.units[logits[0].argmax(dim=-1).numpy()]
            found.append(reader.content(guess))
        return found

    def _read(self, activations: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        padded = nn.utils.rnn.pad_sequence(list(activations), batch_first=True)
        lengths = torch.tensor([len(each) for each in activations])
        valid = torch.arange(padded.shape[1])[None] < lengths[:, None]
        return self(padded, valid), valid


class _Teacher:
    """Makes histories up, and says what would cross."""

    def __init__(
        self, reader: Reader, config: RunConfig, cover: Cover, rng: np.random.Generator
    ) -> None:
        self._reader, self._rng = reader, rng
        self._longest, self._codec = config.model.history, Codec(config.split.codec)
        self._cover = Cover(cover.veil, noise=Draws.by(rng))

    def example(self) -> tuple[list[Tensor], list[Items]]:
        """Return what crosses of some histories, and the place of each unit among all of them."""
        reader = self._reader
        histories = made_up(self._rng, _HISTORIES, self._longest, len(reader.alike))
        units = [np.searchsorted(reader.units, each) for each in reader.inputs(histories)]
        crossed = [across(each, self._codec, self._cover) for each in reader.activations(histories)]
        return crossed, units
