"""Where the arithmetic runs: device, processes, threads, memory layout, allocator, garbage.

Taken from the machine and logged once; what takes a trial on the network is in `autotune`.
"""

import atexit
import ctypes
import gc
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftransfer.runtime.launch import World

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def keep_freed_memory() -> bool:
    """Tells the C allocator to keep memory that is freed; call it before the first large allocation.

    By default glibc maps every large tensor anew and returns it when freed: on small machines the page faults take
    longer than the arithmetic. Three settings keep such memory in the heap (`man mallopt`). Linux with glibc only; the
    environment variable HFTRANSFER_MALLOPT=0 switches it off. Returns whether it was done.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get("HFTRANSFER_MALLOPT") == "0":
        return False
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # names of the parameters in malloc.h
    settings = [(mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 256 * 2**20)]
    done = all([ctypes.CDLL(None).mallopt(*setting) for setting in settings])
    if done:
        logger.debug("Freed memory is kept for reuse (glibc mallopt; HFTRANSFER_MALLOPT=0 switches it off)")
    return done


def wait_briefly() -> bool:
    """Lets idle threads give their core away soon; call it before torch is imported.

    The threads of GNU's OpenMP, which torch uses on Linux, spin for milliseconds while they wait for each other. Two
    processes of two threads on two cores ran EfficientNet at 7 images a second each; with 10,000 turns, 44; one alone
    at 119 and 117. GOMP_SPINCOUNT and OMP_WAIT_POLICY of the user stand. Returns whether it was done.
    """
    if sys.platform != "linux" or "torch" in sys.modules or {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return False
    os.environ["GOMP_SPINCOUNT"] = "10000"
    logger.info("Idle threads give their core away early (GOMP_SPINCOUNT=10000)")
    return True


def collect_seldom() -> None:
    """Look for garbage in cycles a hundred times less often, and not once more at the end; call it before torch is imported.

    The half million objects of torch and transformers live as long as the process. To go through them again and again
    while they are made, and once more when everything ends, took 2 s of a command (`scripts/measure_startup.py`).
    """
    gc.set_threshold(100_000, 20, 100)
    atexit.register(gc.freeze)


def choose_device(world: World = World(), use_cpu: bool = False) -> "torch.device":
    """Return the accelerator of this process, or the CPU.

    A single process uses a single GPU (see `training.arguments`).
    """
    import torch

    accelerator = None if use_cpu or os.environ.get("ACCELERATE_USE_CPU") == "True" else _accelerator()
    if accelerator is None:
        logger.info("Device: CPU")
        return torch.device("cpu")
    if accelerator == "cuda" and world.size == 1 and torch.cuda.device_count() > 1:
        count = torch.cuda.device_count()
        logger.info("One of %d GPUs is used; `accelerate launch --num_processes %d ...` uses all", count, count)
    # A launcher may show each process one GPU alone (srun --gpus-per-task=1), which is then number 0 in all of them.
    device = torch.device(accelerator, world.local_rank % max(1, torch.accelerator.device_count()))
    logger.info("Device: %s", device_name(device))
    return device


def _accelerator() -> str | None:
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found else None


@dataclass(frozen=True)
class ThreadPlan:
    """`threads` of arithmetic in this process and `workers` that load data for it."""

    threads: int
    workers: int


def thread_plan(device: "torch.device", world: World = World(), batch_bytes: int = 40 * 2**20) -> ThreadPlan:
    """Set the number of threads so that processes x threads never exceeds the cores; OMP_NUM_THREADS can lower it.

    No data loading workers on a CPU, whose cores the network needs. On a GPU up to eight: as many as there are cores for
    and as shared memory has room for, with batches of `batch_bytes` (two prefetched, one in hand).
    """
    import torch

    share = max(1, available_cores() // world.local_size)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(share, int(asked) if asked.isdigit() and int(asked) else torch.get_num_threads())
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    workers = min(8, share - 1, _shared_memory_bytes() // (3 * batch_bytes)) if device.type != "cpu" and _forks() else 0
    logger.info("Threads: %d, data loading workers: %d (%d cores a process)", threads, workers, share)
    if threads < share and asked:
        logger.info("OMP_NUM_THREADS=%s leaves %d of %d cores idle (launchers set it)", asked, share - threads, share)
    return ThreadPlan(threads, workers)


def _forks() -> bool:
    """Whether a new process begins as a copy of this one; else it imports the user's script again, and all items travel."""
    import multiprocessing

    # asked for without choosing one: a script may still set its own
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return method == "fork"


@contextmanager
def threads_as_before() -> Iterator[None]:
    """Give torch back the number of threads that it had: a run from Python leaves the process as it was."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def available_cores() -> int:
    """Cores that this process may use: affinity and container limits count."""
    from joblib import cpu_count

    return cpu_count()


def _shared_memory_bytes() -> int:
    import psutil

    return psutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else sys.maxsize


def channels_last(model: "torch.nn.Module") -> bool:
    """Lays the weights of a convolution network out with the channels last, in place; returns whether it did.

    The activations follow. Networks whose only convolutions cut patches (stride = kernel size) gain nothing.
    """
    import torch

    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    if not any(max(module.kernel_size) > max(module.stride) for module in convolutions):
        return False
    model.to(memory_format=torch.channels_last)
    logger.info("Memory layout: channels last (%d convolutions)", len(convolutions))
    return True


def peak_memory(device: "torch.device | None" = None) -> int:
    """Bytes at the peak of this process: on the GPU for a CUDA device, otherwise resident in main memory."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: "torch.device") -> str:
    """Return what the device calls itself, such as "NVIDIA H100" or the CPU's model name."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return _cpu_name() if device.type == "cpu" else device.type


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.compute_config()


def hardware(device: "torch.device") -> dict[str, Any]:
    """Return what a run's figures depend on, for `run.json`."""
    import psutil
    import torch

    return {
        "device": device_name(device),
        "device_type": device.type,
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "platform": platform.platform(),
        "torch": torch.__version__,
    }


def name_the_user() -> None:
    """Give a user id that the system has no name for one: torch asks for it where it keeps compiled code."""
    import getpass

    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"uid-{os.getuid()}" if hasattr(os, "getuid") else "user"
