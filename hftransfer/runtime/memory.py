"""Too little memory: how it shows, and going on with less at a time."""

import gc
import logging
import sys
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")
# A full GPU has an exception of its own; a CPU's allocator and some libraries of GPUs raise plain RuntimeErrors.
WORDS = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a device or in the machine."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


def release() -> None:
    """Give back what a failed attempt has left."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def smaller(size: int) -> int:
    """Return the next smaller number of rows that divides `size`: the half of an even number."""
    return next(size // part for part in range(2, size + 1) if size % part == 0)


def with_less(size: int, attempt: Callable[[int], Result], what: str, least: int = 1) -> Result:
    """`attempt(size)`, and as long as memory runs out with fewer rows; at `least` rows the error is raised."""
    while True:
        try:
            return attempt(size)
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error) or size <= least:
                raise
        # Outside of the handler: the exception holds on to everything that the attempt has allocated.
        release()
        log.warning("Memory ran out with %d rows at a time: %s goes on with %d", size, what, smaller(size))
        size = smaller(size)
