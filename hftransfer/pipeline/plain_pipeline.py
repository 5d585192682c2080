"""The plain `transformers.pipeline` on a saved model, and what a check of its answers says."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hftransfer.core.errors import UserError
from hftransfer.pipeline.run_context import RunContext

log = logging.getLogger(__name__)


def opened(folder: Path, context: RunContext, options: dict[str, Any]) -> Any:
    """Return the pipeline of a model folder in float32, on the device of the run."""
    from transformers import pipeline

    return pipeline(
        context.modality.kind.pipeline_task, str(folder), device=context.compute_config.device, dtype=torch.float32,
        trust_remote_code=context.config.model.trust_remote_code, **options,
    )  # fmt: skip


def concluded(context: RunContext, found: str, inputs: str, count: int, differing: Sequence[Any], begin: float) -> dict:
    """Return what `run.json` says of a check of so many inputs that began at `begin`.

    Raises `UserError` where the pipeline finds something else for the ids `differing` than was recorded.
    """
    if len(differing):
        raise UserError(
            f"The saved model is not the evaluated one: transformers.pipeline finds other {found} in {len(differing)} of "
            f"{count} {inputs} ({', '.join(map(str, differing[:5]))}). The run is not complete. Try store=false and "
            f"training.bf16=false; if it stays, {type(context.model).__name__} cannot be used here: please report it."
        )
    seconds = time.perf_counter() - begin
    log.info("Self-check: pipeline finds the recorded %s in %d %s (%.1f s)", found, count, inputs, seconds)
    return {"examples": count, "seconds": seconds}
