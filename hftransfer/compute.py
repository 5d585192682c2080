"""Where and how the arithmetic runs: device, processes, threads, precision, memory layout, batch size, allocator.

Every decision is taken in this file, from the machine or by a short measured trial, and said once in the log.
"""

import ctypes
import hashlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hftransfer.errors import UserError
from hftransfer.memory import is_lack_of_memory, release

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]

# Differences measured with pretrained weights: BERT 0.01, ViT 0.02, EfficientNet 0.05; with random ones up to 0.2.
BF16_GAIN, BF16_TOLERANCE = 1.15, {"inference": 0.1, "training": 0.5}
TRIAL_ROWS, TRIAL_SECONDS = 8, 0.3  # of each thing that is timed


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
        logger.info("Freed memory is kept for reuse (glibc mallopt; HFTRANSFER_MALLOPT=0 switches it off)")
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


@dataclass(frozen=True)
class World:
    """This process among those of the launch: `rank` of `size` in all, `local_rank` of `local_size` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def launched_world() -> World:
    """The processes that were started, read from the environment that `torchrun`, `accelerate launch` or MPI set.

    Raises `UserError` when `accelerate launch` was asked for several and started one, as it does without GPU and MPI, and
    when it was told to divide the network among the processes.
    """
    for name, switch in {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}.items():
        if os.environ.get(switch, "").lower() == "true":
            raise UserError(
                f"This launch divides the network among its processes ({name}). hftransfer needs it whole in each: it "
                f"hashes what must not move, and stores features. Answer no to {name} in `accelerate config`, or start with "
                "`accelerate launch --multi_gpu --num_processes N ...`; for less memory take strategy lora, or "
                "training.gradient_checkpointing=true."
            )
    size = _first_number("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", default=0)
    # accelerate's launcher of a single process sets MASTER_PORT only when it was asked for more than one.
    if not size and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
        raise UserError(
            "`accelerate launch` was asked for several processes but started only this one, as it does on a machine "
            "without a GPU. Start with `accelerate launch --multi_gpu --num_processes 2 ...` (it works on CPUs too) or "
            "`torchrun --nproc_per_node 2 ...`, or ask for one process."
        )
    world = World(
        _first_number("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", default=0),
        max(size, 1),
        _first_number("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", default=0),
        _first_number("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", default=max(size, 1)),
    )
    logger.info("Process %d of %d", world.rank + 1, world.size)
    return world


def _first_number(*names: str, default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)


def choose_device(world: World = World(), use_cpu: bool = False) -> "torch.device":
    """The accelerator of this process, or the CPU.

    A single process uses a single GPU: the others are hidden, since `Trainer` would otherwise copy the network to all
    of them at every step (`torch.nn.DataParallel`), which is slower and changes the batch size.
    """
    import torch

    accelerator = None if use_cpu or os.environ.get("ACCELERATE_USE_CPU") == "True" else _accelerator()
    if accelerator is None:
        logger.info("Device: CPU")
        return torch.device("cpu")
    if accelerator == "cuda" and world.size == 1 and torch.cuda.device_count() > 1:
        count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES") or "0"
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
        logger.info("One of %d GPUs is used; `accelerate launch --num_processes %d ...` uses all", count, count)
    device = torch.device(accelerator, world.local_rank)
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
    """Sets the number of threads so that processes x threads never exceeds the cores; OMP_NUM_THREADS can lower it.

    No data loading workers on a CPU, whose cores the network needs. On a GPU up to eight: as many as there are cores for
    and as shared memory has room for, with batches of `batch_bytes` (two prefetched, one in hand).
    """
    import torch

    share = max(1, available_cores() // world.local_size)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(share, int(asked) if asked.isdigit() and int(asked) else torch.get_num_threads())
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    workers = 0 if device.type == "cpu" else min(8, share - 1, _shared_memory_bytes() // (3 * batch_bytes))
    logger.info("Threads: %d, data loading workers: %d (%d cores a process)", threads, workers, share)
    if threads < share and asked:
        logger.info("OMP_NUM_THREADS=%s leaves %d of %d cores idle (launchers set it)", asked, share - threads, share)
    return ThreadPlan(threads, workers)


def available_cores() -> int:
    """Cores that this process may use: affinity and container limits count."""
    from joblib import cpu_count

    return cpu_count()


def _shared_memory_bytes() -> int:
    import psutil

    return psutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else sys.maxsize


@contextmanager
def forward_context(precision: Precision, device: "torch.device") -> Iterator[None]:
    """For passes without gradients: inference mode, and autocast to bfloat16 where `precision` says so."""
    import torch

    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def measure_precision(
    model: "torch.nn.Module", batch: Mapping[str, "torch.Tensor"], device: "torch.device", training: bool = False
) -> Precision:
    """bf16 where a trial on this model and the first rows of `batch` shows that it is faster and right.

    Faster: 1.15 times fp32 on a CPU, timed; on a GPU wherever the hardware computes in it. Right: the outputs differ by
    at most 10 % of their spread over the rows (norm of the difference by norm of the rows around their mean), so that a
    part shared by all rows hides nothing. `batch` holds the model's inputs, on the device, without labels. `training`
    times a pass forward and back (EfficientNet on a CPU gains 1.65x forward, loses with it) and bears 50 %.
    """
    import torch

    phase = "training" if training else "inference"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        logger.info("Precision of %s: fp32 (%s does not compute in bf16)", phase, device_name(device))
        return "fp32"
    rows = {name: value[:TRIAL_ROWS] for name, value in batch.items()}
    try:
        difference = _bf16_difference(model, rows, device)
        gain = BF16_GAIN if device.type == "cuda" else _bf16_gain(model, rows, device, training)
    except RuntimeError as error:  # an operation that has no bf16 form
        logger.info("Precision of %s: fp32 (bf16 fails: %s)", phase, error)
        return "fp32"
    taken: Precision = "bf16" if gain >= BF16_GAIN and difference <= BF16_TOLERANCE[phase] else "fp32"
    timed = "" if device.type == "cuda" else f" is {gain:.2f}x as fast,"
    logger.info("Precision of %s: %s (bf16%s outputs differ by %.2g)", phase, taken, timed, difference)
    return taken


def _forward(model: Any, batch: Mapping[str, Any], device: Any, precision: Precision) -> "torch.Tensor":
    with forward_context(precision, device):
        return model(**batch)[0]


def _bf16_difference(model: Any, batch: Mapping[str, Any], device: Any) -> float:
    with _unchanged(model):
        fp32, bf16 = (_forward(model, batch, device, precision).float() for precision in ("fp32", "bf16"))
    spread = (fp32 - fp32.mean(0)).norm() if len(fp32) > 1 else fp32.norm()
    return float((fp32 - bf16).norm() / spread)


def _bf16_gain(model: Any, batch: Mapping[str, Any], device: Any, training: bool) -> float:
    one_pass = _forward_and_back if training else _forward
    with _unchanged(model):
        fp32 = best_seconds(lambda: one_pass(model, batch, device, "fp32"), device)
        return fp32 / best_seconds(lambda: one_pass(model, batch, device, "bf16"), device)


def _forward_and_back(model: Any, batch: Mapping[str, Any], device: Any, precision: Precision) -> None:
    import torch

    model.train()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = model(**batch)[0]
    outputs.float().square().mean().backward()
    model.zero_grad()


@contextmanager
def _unchanged(model: "torch.nn.Module") -> Iterator[None]:
    """Evaluation mode for a while, and afterwards everything as it was: modes, statistics of norms, random numbers."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, before in buffers:
            buffer.copy_(before)


def best_seconds(step: Callable[[], Any], device: "torch.device") -> float:
    """The least time of a step among as many as fit into `TRIAL_SECONDS`: what disturbs, as at the first, only adds."""
    times: list[float] = []
    while sum(times) < TRIAL_SECONDS or (len(times) == 1 and times[0] < 1):
        _wait(device)
        begin = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def _wait(device: "torch.device") -> None:
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


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


def batch_size_for_inference(
    model: "torch.nn.Module",
    make_batch: Callable[[int], Mapping[str, "torch.Tensor"]],
    device: "torch.device",
    precision: Precision = "fp32",
) -> int:
    """Rows per forward pass by trial: 8, 16 or 32 on a CPU; on a GPU doubling from 32 for as long as it fits and gains.

    `make_batch(rows)` gives inputs on the device. A larger batch has to be 5 % faster a row; the trial ends when a batch
    takes longer than 0.3 s. Raises `UserError` when not even one row fits into the memory.
    """
    size, largest = (8, 32) if device.type == "cpu" else (32, 1024)
    while (seconds := _seconds_or_none(model, make_batch, size, device, precision)) is None:
        if size == 1:
            raise UserError(
                f"The memory of {device_name(device)} does not hold the network and one row. Take a smaller network or "
                "smaller inputs (model.image_size, model.max_length), or the CPU (use_cpu=true)."
            )
        size = largest = size // 2
    while size < largest and seconds < TRIAL_SECONDS:
        larger = _seconds_or_none(model, make_batch, 2 * size, device, precision)
        if larger is None or larger > 2 * 0.95 * seconds:
            break
        size, seconds = 2 * size, larger
    logger.info("Inference batch size: %d (%.0f rows a second)", size, size / seconds)
    return size


def _seconds_or_none(model: Any, make_batch: Any, size: int, device: Any, precision: Precision) -> float | None:
    """Seconds of one forward pass, or None when it does not fit into memory."""
    try:
        batch = make_batch(size)
        with _unchanged(model):
            return best_seconds(lambda: _forward(model, batch, device, precision), device)
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
    release()
    return None


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
    """What the device calls itself, such as "NVIDIA H100" or the CPU's model name."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return _cpu_name() if device.type == "cpu" else device.type


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def hardware(device: "torch.device") -> dict[str, Any]:
    """What a run's figures depend on, for `run.json`."""
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


def cache_folder() -> Path:
    """Where the package keeps what it can make again: `$HFTRANSFER_CACHE`, or `~/.cache/hftransfer`."""
    return Path(os.environ.get("HFTRANSFER_CACHE") or "~/.cache/hftransfer").expanduser()


def remembered(key: str, trial: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a trial found, run once for each `key` and kept in the cache.

    Timings differ from run to run: taken anew, two equal runs could choose differently and give unequal weights.
    """
    path = cache_folder() / "trials" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        found = trial()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(found))
        os.replace(temporary, path)
    except OSError as error:
        logger.warning("The trial is not remembered, an equal run may choose otherwise: %s", error)
    return found
