"""Which part of a work that is divided into shards this process does: told by torchrun and by Slurm's arrays."""

from dataclasses import dataclass

from hftransfer.core.errors import UserError
from hftransfer.runtime.launch import first_number, process_count, process_rank


@dataclass(frozen=True)
class Worker:
    """Worker `number` of `count`, counted from 0; `told_by` names the variables that say so."""

    number: int = 0
    count: int = 1
    told_by: str = ""

    def share(self, shards: int) -> range:
        """Return the shards of this worker: every `count`-th one."""
        return range(self.number, shards, self.count)

    def describe(self) -> str:
        return f"Worker {self.number + 1} of {self.count} ({self.told_by})" if self.told_by else "One worker"


def launched_worker() -> Worker:
    """Return which worker this process is: a rank of torchrun, a task of a Slurm array, or a rank in such a task.

    Raises `UserError` for an array whose numbers are not evenly spaced.
    """
    rank, size = process_rank(), max(1, process_count())
    task, tasks = _array_task()
    told = [f"SLURM_ARRAY_TASK_ID {task + 1} of {tasks}"] if tasks > 1 else []
    told += [f"RANK {rank} of {size}"] if size > 1 else []
    return Worker(task * size + rank, tasks * size, ", ".join(told))


def _array_task() -> tuple[int, int]:
    """Return the place of this task in its Slurm array, and how many tasks the array has; (0, 1) outside of one."""
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "STEP", "MAX")]
    number, count, least, step, most = (first_number(name, default=-1) for name in names)
    if number < 0 or count < 2:
        return 0, 1
    least, step = max(least, 0), max(step, 1)
    place, rest = divmod(number - least, step)
    if rest or not 0 <= place < count or (most >= 0 and least + step * (count - 1) != most):
        raise UserError(
            f"The Slurm array of {count} tasks is not evenly spaced (SLURM_ARRAY_TASK_ID={number}): its place in the array "
            "is not known. Give a range such as --array=0-7, or name the shard with --shard."
        )
    return place, count
