"""What is measured on the network itself before a run: precision and rows a batch, by short trials that are remembered."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hftransfer.core.errors import UserError
from hftransfer.core.files import cache_folder, write_text
from hftransfer.runtime.cpu_kernels import quick_operations
from hftransfer.runtime.devices import device_name
from hftransfer.runtime.memory import is_lack_of_memory, release

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]

# Differences measured with pretrained weights: BERT 0.01, ViT 0.02, EfficientNet 0.05; with random ones up to 0.2.
HOPELESS = 3.0  # times the fp32 seconds of one row, beyond which bf16 is not tried further
BF16_GAIN, BF16_TOLERANCE = 1.15, {"inference": 0.1, "training": 0.5}
TRIAL_ROWS, TRIAL_SECONDS = 8, 0.1  # of each thing that is timed
LEAST_TIMES = 3  # that something is timed, unless it took a second already: of two, one busy moment can spoil both
LONG_PASS = 0.3  # seconds: no larger batch is tried then


@contextmanager
def forward_context(precision: Precision, device: torch.device) -> Iterator[None]:
    """For passes without gradients: inference mode, and autocast to bfloat16 where `precision` says so."""
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def measure_precision(
    model: nn.Module, batch: Mapping[str, Tensor], device: torch.device, training: bool = False
) -> Precision:
    """bf16 where a trial on this model and the first rows of `batch` shows that it is faster and right.

    Faster: 1.15 times fp32 on a CPU, timed; on a GPU wherever the hardware computes in it. Right: the outputs differ by
    at most 10 % of their spread over the rows (norm of the difference by norm of the rows around their mean), so that a
    part shared by all rows hides nothing. `batch` holds the model's inputs, on the device, without labels. `training`
    times a pass forward and back (EfficientNet on a CPU gains 1.65x forward, loses with it) and bears 50 %.
    """
    phase = "training" if training else "inference"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        logger.info("Precision of %s: fp32 (%s does not compute in bf16)", phase, device_name(device))
        return "fp32"
    rows = {name: value[:TRIAL_ROWS] for name, value in batch.items()}
    try:
        if device.type == "cpu" and _is_hopeless(model, {name: value[:1] for name, value in rows.items()}, device):
            logger.info("Precision of %s: fp32 (bf16 is not computed natively: much slower on one row)", phase)
            return "fp32"
        difference = _bf16_difference(model, rows, device)
        gain = BF16_GAIN if device.type == "cuda" else _bf16_gain(model, rows, device, training)
    except RuntimeError as error:  # an operation that has no bf16 form
        logger.info("Precision of %s: fp32 (bf16 fails: %s)", phase, error)
        return "fp32"
    taken: Precision = "bf16" if gain >= BF16_GAIN and difference <= BF16_TOLERANCE[phase] else "fp32"
    timed = "" if device.type == "cuda" else f" is {gain:.2f}x as fast,"
    logger.info("Precision of %s: %s (bf16%s outputs differ by %.2g)", phase, taken, timed, difference)
    return taken


def _forward(model: Any, batch: Mapping[str, Any], device: Any, precision: Precision) -> Tensor:
    with forward_context(precision, device):
        return model(**batch)[0]


def _bf16_difference(model: Any, batch: Mapping[str, Any], device: Any) -> float:
    with _unchanged(model):
        fp32, bf16 = (_forward(model, batch, device, precision).float() for precision in ("fp32", "bf16"))
    spread = (fp32 - fp32.mean(0)).norm() if len(fp32) > 1 else fp32.norm()
    return float((fp32 - bf16).norm() / spread)


def _is_hopeless(model: Any, batch: Mapping[str, Any], device: Any) -> bool:
    """Return whether bf16 is so much slower on one row that the full trial, of a minute and more, can be spared."""
    with _unchanged(model):
        fp32, bf16 = (
            min(seconds_of(partial(_forward, model, batch, device, precision), device) for _ in range(2))
            for precision in ("fp32", "bf16")
        )
    return bf16 > HOPELESS * fp32


def _bf16_gain(model: Any, batch: Mapping[str, Any], device: Any, training: bool) -> float:
    one_pass = _forward_and_back if training else _forward
    with _unchanged(model):
        passes = [partial(one_pass, model, batch, device, precision) for precision in ("fp32", "bf16")]
        fp32, bf16 = best_seconds(passes, device)
    return fp32 / bf16


def _forward_and_back(model: Any, batch: Mapping[str, Any], device: Any, precision: Precision) -> None:
    model.train()
    with quick_operations(device):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(**batch)[0]
        outputs.float().square().mean().backward()
    model.zero_grad()


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restore modes, statistics of norms and random numbers after a trial."""
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


def best_seconds(steps: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """Return the least time of each step among as many as fit into `TRIAL_SECONDS` a step: what disturbs, as at first, only adds.

    Several steps take turns, so that a disturbance of a second meets all of them and not one alone.
    """
    times: list[list[float]] = [[] for _ in steps]
    while sum(map(sum, times)) < TRIAL_SECONDS * len(steps) or any(len(t) < LEAST_TIMES and sum(t) < 1 for t in times):
        for step, taken in zip(steps, times, strict=True):
            taken.append(seconds_of(step, device))
    return [min(taken) for taken in times]


def seconds_of(step: Callable[[], Any], device: torch.device) -> float:
    """Of one call, with what it left for the device to do."""
    _wait(device)
    begin = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def batch_size_for_inference(
    model: nn.Module,
    make_batch: Callable[[int], Mapping[str, Tensor]],
    device: torch.device,
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
    while size < largest and seconds < LONG_PASS:
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
            return best_seconds([partial(_forward, model, batch, device, precision)], device)[0]
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
    release()
    return None


def remembered(key: str, trial: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a trial found, run once for each `key` and kept in the cache.

    Timings differ from run to run: taken anew, two equal runs could choose differently and give unequal weights.
    """
    path = cache_folder() / "trials" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        found = trial()
    try:
        write_text(path, json.dumps(found))
    except OSError as error:
        logger.warning("The trial is not remembered, an equal run may choose otherwise: %s", error)
    return found
