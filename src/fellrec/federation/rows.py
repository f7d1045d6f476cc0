"""What the coordinator mixes: one row of float32 per client, on disk, read a block at a time.

With many clients the updates do not fit into memory together, and need not: M1 sums over tensors
and M3 mixes column by column.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fellrec.errors import RunError

_BLOCK_BYTES = 16 << 20


class Rows:
    """A file of `clients` rows, each holding the tensors of `shapes` one after another."""

    def __init__(self, path: Path, clients: int, shapes: Mapping[str, torch.Size]) -> None:
        self.clients = clients
        self.shapes = dict(shapes)
        self.spans: dict[str, tuple[int, int]] = {}
        stop = 0
        for name, shape in self.shapes.items():
            self.spans[name] = (stop, stop + shape.numel())
            stop += shape.numel()
        self.columns = stop
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.ftruncate(self._file, 4 * clients * stop)

    def truncate(self, clients: int) -> None:
        """Keep the first rows alone: a client that failed left none."""
        self.clients = clients

    def keep(self, chosen: Sequence[int]) -> None:
        """Keep these rows alone, given in ascending order, one after another from the first on."""
        for row, source in enumerate(chosen):
            if row != source:
                self.write_row(row, self.read_row(source))
        self.truncate(len(chosen))

    def write_row(self, client: int, tensors: Mapping[str, Tensor]) -> None:
        """Store one client's tensors; names and shapes must be those of the file (RunError)."""
        if tensors.keys() != self.shapes.keys():
            odd = sorted(tensors.keys() ^ self.shapes.keys())
            raise RunError(f"the update's tensors do not fit, first difference: {odd[0]}")
        for name, tensor in tensors.items():
            if tensor.shape != self.shapes[name]:
                raise RunError(f"the update's {name} has shape {tuple(tensor.shape)}")
            if tensor.dtype != torch.float32:
                raise RunError(f"the update's {name} is {tensor.dtype}, not float32")
            self._write(client, self.spans[name][0], tensor.detach())

    def read_row(self, client: int) -> dict[str, Tensor]:
        """Return one client's tensors."""
        return {
            name: self._read(client, *self.spans[name]).view(shape)
            for name, shape in self.shapes.items()
        }

    def read(self, name: str) -> Tensor:
        """Return one tensor of all clients: (clients, *shape)."""
        block = self.read_columns(*self.spans[name])
        return block.view(self.clients, *self.shapes[name])

    def write(self, name: str, stacked: Tensor) -> None:
        """Store one tensor of all clients: (clients, *shape)."""
        self.write_columns(self.spans[name][0], stacked.reshape(self.clients, -1))

    def blocks(self, name: str) -> Iterator[tuple[int, int]]:
        """Cut a tensor's columns so that a block of all clients stays small."""
        start, stop = self.spans[name]
        step = max(1, _BLOCK_BYTES // (4 * self.clients))
        for first in range(start, stop, step):
            yield first, min(first + step, stop)

    def read_columns(self, start: int, stop: int) -> Tensor:
        """Return columns of all clients: (clients, stop - start)."""
        block = np.empty((self.clients, stop - start), dtype=np.float32)
        for client, values in enumerate(block):
            self._read_into(values, client, start)
        return torch.from_numpy(block)

    def write_columns(self, start: int, block: Tensor) -> None:
        """Store columns of all clients from `start` on."""
        for client, values in enumerate(block):
            self._write(client, start, values)

    def remove(self) -> None:
        """Close the file and delete it."""
        os.close(self._file)
        self._path.unlink()

    def _read(self, client: int, start: int, stop: int) -> Tensor:
        values = np.empty(stop - start, dtype=np.float32)
        self._read_into(values, client, start)
        return torch.from_numpy(values)

    def _read_into(self, values: NDArray[np.float32], client: int, start: int) -> None:
        view = values.data.cast("B")
        offset, done = 4 * (client * self.columns + start), 0
        while done < len(view):
            count = os.preadv(self._file, [view[done:]], offset + done)
            if count == 0:
                raise RunError("the file of this round's updates is shorter than it should be")
            done += count

    def _write(self, client: int, start: int, values: Tensor) -> None:
        data = values.contiguous().view(-1).numpy().data.cast("B")
        offset, done = 4 * (client * self.columns + start), 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], offset + done)
