"""Checks of model and machine: what will be trained, and whether one step, the files and a push will go through."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding
from hftransfer.models.heads import describe_head
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import Checkpoint
from hftransfer.runtime.devices import choose_device, device_name
from hftransfer.strategies.lora import lora_targets

if TYPE_CHECKING:
    from hftransfer.config import RunConfig

# Weights, gradients and two moments of Adam, in float32.
BYTES_PER_PARAMETER = 16
# Two checkpoints with optimizer states, and the model itself.
COPIES_ON_DISK = 7
MEMORY_SHARE = 0.8
TRIAL_ROWS = 4
SMALL_SHARED_MEMORY = 256 * 2**20
GIB = 2**30


def check_model(checkpoint: Checkpoint, facts: Facts, run: "RunConfig") -> Iterator[Finding]:
    """Yield what was found in the checkpoint, and the memory of one step of the whole network."""
    model = checkpoint.model
    try:
        layer_groups = LayerGroups.of(model)
        adapters = f"LoRA would adapt {len(lora_targets(model, layer_groups, 1))} layers"
        blocks = f"{len(layer_groups.blocks)} blocks"
    except UserError as error:
        blocks, adapters = str(error), "no adapters"
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    statistics = f"{norms} batch normalisations (still where frozen)" if norms else "no batch normalisation"
    message = f"{checkpoint.source}: {blocks}, head {describe_head(model)}, {adapters}, {statistics}."
    yield Finding("model", message)
    yield from _memory(checkpoint, facts, run)


def check_machine(model: nn.Module, run: "RunConfig") -> Iterator[Finding]:
    """Disk, output folder, precision, shared memory and the token."""
    output = run.output_folder
    parent = next(folder for folder in [output, *output.absolute().parents] if folder.exists())
    fault = _cannot_write(parent)
    if fault:
        yield Finding("output", f"{output} cannot be written: {fault}.")
    else:
        needed = COPIES_ON_DISK * 4 * sum(parameter.numel() for parameter in model.parameters())
        free = shutil.disk_usage(parent).free
        if free < needed:
            message = f"{free / GIB:.1f} GiB are free at {parent}, about {needed / GIB:.1f} GiB are needed."
            yield Finding("disk", message)
    yield from _device(run)
    from huggingface_hub import get_token

    if get_token() is None:
        yield Finding("token", "There is no token for the Hub on this machine.")


def saved_bytes(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Bytes that one forward pass keeps for the backward pass, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model(**batch)  # held: freed storage would be reused and counted once
    del outputs
    return sum(kept.values())


def _memory(checkpoint: Checkpoint, facts: Facts, run: "RunConfig") -> Iterator[Finding]:
    """Yield the memory of one step: linear in the batch, it is measured on a few rows without the risk of running out."""
    good = [index for index, inspection in enumerate(facts.inspections) if not inspection.fault][:TRIAL_ROWS]
    if not good:
        return
    modality = facts.kind.bind(checkpoint.processor)
    batch = modality.collate(modality.encode(facts.frame.iloc[good].reset_index(drop=True)))
    rows = run.training.per_device_train_batch_size
    model = checkpoint.model.train()
    activations = saved_bytes(model, batch) * rows / len(good)
    need = activations + BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
    free, where = _free_memory(run)
    if need > MEMORY_SHARE * free:
        message = (
            f"One step with {rows} examples needs about {need / GIB:.1f} GiB of the {free / GIB:.1f} GiB free on {where} "
            f"({activations / GIB:.1f} GiB of it for activations)."
        )
        yield Finding("memory", message)


def _free_memory(run: "RunConfig") -> tuple[int, str]:
    device = choose_device(use_cpu=run.use_cpu)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], device_name(device)
    return psutil.virtual_memory().available, "this machine"


def _device(run: "RunConfig") -> Iterator[Finding]:
    device = choose_device(use_cpu=run.use_cpu)
    if device.type != "cuda":
        yield Finding(
            "precision", f"{device_name(device)}: bf16 is tried at the start of a run and taken where it pays."
        )
        return
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    yield Finding("precision", f"{device_name(device)} computes in {'bf16' if native else 'fp32 (it has no bf16)'}.")
    if Path("/dev/shm").is_dir():
        status = os.statvfs("/dev/shm")
        size = status.f_blocks * status.f_frsize
        if size < SMALL_SHARED_MEMORY:
            yield Finding("shared-memory", f"/dev/shm holds {size / 2**20:.0f} MiB.")


def _cannot_write(folder: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
