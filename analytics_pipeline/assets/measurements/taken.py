"""What domains take of decoded payloads, put into columns: what all kinds of rows share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Reader(Protocol):
    """Reads one kind of rows of many payloads."""

    @property
    def take(self) -> Callable[[Any], Sequence[Any]]:
        """The domain's function, from a decoded payload to its rows."""
        ...

    def columns(self, taken: Sequence[Sequence[Any]], first: int) -> Any:
        """The rows of some payloads as columns; the first payload is number ``first``. Raises where one of them is
        of another shape or type."""
        ...

    def check(self, taken: Sequence[Any]) -> None:
        """Raises where the rows of one payload are of another shape or type."""
        ...

    def add(self, columns: Any) -> None:
        """Keeps what `columns` returned."""
        ...


def flattened(taken: Sequence[Sequence[Any]], first: int) -> tuple[Ints, Ints, list[Any]]:
    """The number of the payload, the place in it, and the row itself, of the rows of some payloads."""
    counts = np.fromiter(map(len, taken), np.int64, len(taken))
    rows = list(chain.from_iterable(taken))
    ordinal = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return first + np.repeat(np.arange(len(taken)), counts), ordinal, rows
