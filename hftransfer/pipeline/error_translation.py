"""What the machine refuses in the middle of a run, in words that say what to do: disk, permissions, memory, workers."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hftransfer.core.errors import UserError
from hftransfer.runs.folder import incomplete
from hftransfer.runtime.memory import is_lack_of_memory

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
# What Rust (safetensors, parquet) and torch.save make of a full disk.
WORDS_OF_A_FULL_DISK = (
    "No space left on device",
    "os error 28",
    "file write failed",
    "unexpected pos",
    "Disk quota exceeded",
)


@contextmanager
def explained(output: Path) -> Iterator[None]:
    """Raise what the machine refuses while `output` is being made as `UserError`; everything else passes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        words = describe(error)
        if words is None:
            raise
        made = incomplete(output).exists() or output.exists()
        raise UserError(f"{words} Then {'continue with --resume' if made else 'run it again'}.") from error


def describe(error: Exception) -> str | None:
    """Return what happened and what to do about it; None for what is no fault of the machine."""
    place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    code = error.errno if isinstance(error, OSError) else None
    if code in FULL or any(word in str(error) for word in WORDS_OF_A_FULL_DISK):
        return f"The disk is full{place}: free some space."
    if code in REFUSED:
        return f"Permission denied{place}: make the folder writable, or name another (output=…, HFTRANSFER_CACHE)."
    if "DataLoader worker" in str(error):
        return (
            "A process that loads data was killed, mostly because memory or /dev/shm (--shm-size of a container) ran out: "
            "make room, or load in the main process with training.extra={dataloader_num_workers: 0}."
        )
    if is_lack_of_memory(error):
        return (
            "Memory ran out. Take fewer rows at a time (training.per_device_train_batch_size with "
            "training.gradient_accumulation_steps), training.gradient_checkpointing=true, a smaller input "
            "(model.image_size, model.max_length), or a strategy that trains less (probe, frozen, lora)."
        )
    return None
