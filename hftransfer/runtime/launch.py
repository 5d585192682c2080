"""Several processes that make one run: who they are, what they tell each other, and how they end together."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hftransfer.core.errors import UserError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Failure:
    """What a process sends in place of a value when an error ends it."""

    message: str


class OtherProcessFailed(UserError):
    """Another process of the launch ended with an error, and knows it."""


@dataclass(frozen=True)
class World:
    """One process among those of the launch: `rank` of `size` in all, `local_rank` of `local_size` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, in order of rank. Raise `OtherProcessFailed` where one sent its failure."""
        if self.size == 1:
            return [value]
        import torch

        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        for rank, found in enumerate(values):
            if isinstance(found, Failure) and not isinstance(value, Failure):
                raise OtherProcessFailed(f"Process {rank + 1} of {self.size} failed: {found.message}")
        return values

    def barrier(self) -> None:
        """Wait until every process is here, or raise where one failed on its way."""
        self.gather(None)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Return on every process what `make` gives on the first one; it is called there alone."""
        return self.gather(make() if self.rank == 0 else None)[0]

    def largest(self, value: int, device: "torch.device") -> int:
        """Return the largest `value` of all processes: one small tensor on `device`, cheap enough for every step."""
        if self.size == 1:
            return value
        import torch

        values = torch.tensor(value, device=device)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        return int(values)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Go through a phase on all processes: they wait at its end, and an error of one ends it on all.

        Without it the others would wait in their next exchange for a process that never comes. Inside, the processes may
        exchange values by `gather` and what is built on it, by nothing else; phases are not nested.
        """
        try:
            yield
        except OtherProcessFailed:
            raise
        except Exception as error:
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.gather(Failure(message))
            raise
        self.barrier()


def launched_world() -> World:
    """Return the processes that were started, read from the environment that `torchrun`, `accelerate launch` or MPI set.

    Raises `UserError` when `accelerate launch` was asked for several and started one, as it does without GPU and MPI, and
    when it was told to divide the network among the processes.
    """
    for name, switch in {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}.items():
        if os.environ.get(switch, "").lower() == "true":
            raise UserError(
                f"This launch divides the network among its processes ({name}). hftransfer trains only networks that are whole "
                "in each: running one from a split point, averaging and merging were not tested on divided ones. Answer no "
                f"to {name} in `accelerate config`, or start with `accelerate launch --multi_gpu --num_processes N ...`; for "
                "less memory take strategy probe or lora, or training.gradient_checkpointing=true."
            )
    size = process_count()
    # accelerate's launcher of a single process sets MASTER_PORT only when it was asked for more than one.
    if not size and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
        raise UserError(
            "`accelerate launch` was asked for several processes but started only this one, as it does on a machine "
            "without a GPU. Start with `accelerate launch --multi_gpu --num_processes 2 ...` (it works on CPUs too) or "
            "`torchrun --nproc_per_node 2 ...`, or ask for one process."
        )
    world = World(
        process_rank(),
        max(size, 1),
        first_number("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", default=0),
        first_number("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", default=max(size, 1)),
    )
    logger.info("Process %d of %d", world.rank + 1, world.size)
    return world


def full_tensor(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return a tensor whole where FSDP has divided it among the processes, all of which have to call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def is_divided(model: "torch.nn.Module") -> bool:
    """Return whether FSDP has divided the tensors of a network among the processes."""
    return any(hasattr(tensor, "full_tensor") for tensor in model.parameters())


def full_state(model: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """Return all tensors of a divided network, whole, in the memory of the first process; nothing on the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def process_count() -> int:
    """Return how many processes were launched together; 0 without a launcher."""
    return first_number("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", default=0)


def process_rank() -> int:
    """Return the number of this process among those that were launched together."""
    return first_number("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", default=0)


def first_number(*names: str, default: int) -> int:
    """Return the first of the environment's variables `names` that holds a whole number, else `default`."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)
