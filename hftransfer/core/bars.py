"""Progress bars of the terminal. Where `HFTRANSFER_PROGRESS` names a file, they add lines to it, as the studio reads them."""

import json
import os
import time
from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm

VARIABLE = "HFTRANSFER_PROGRESS"
SECONDS = 1.0  # between two lines, but for those with values


class Bar(tqdm):
    """A bar of tqdm that is gone at its end, and not drawn where standard error is no terminal.

    A line of the file is JSON with `phase`, `done`, `total`, `unit` and `values` (measured numbers by name).
    """

    def __init__(
        self, iterable: Any = None, desc: str = "", unit: str = "it", disable: bool | None = None, **options: Any
    ):
        self.place = None if disable else os.environ.get(VARIABLE)
        self.phase, self.counted, self.written = desc, unit, 0.0
        super().__init__(iterable, desc=desc, unit=unit, disable=disable, leave=False, **options)
        self.tell()

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            yield item
            self._count(1)

    def update(self, n: float = 1) -> bool | None:
        drawn = super().update(n)
        self._count(n)
        return drawn

    def close(self) -> None:
        super().close()
        if self.place and time.monotonic() - self.written > 0.1:
            self.tell()

    def tell(self, values: dict[str, float] | None = None) -> None:
        """Add a line to the file, if there is one."""
        if self.place:
            self.written = time.monotonic()
            line = {"phase": self.phase, "done": self.n, "total": self.total, "unit": self.counted}
            with open(self.place, "a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"values": values or {}}) + "\n")

    def _count(self, n: float) -> None:
        if self.disable:  # tqdm then does not
            self.n += n
        if self.place and time.monotonic() - self.written >= SECONDS:
            self.tell()
