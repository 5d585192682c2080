"""The state of a training: in checkpoints on disk, of which only whole ones count, and in memory as it was at first."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hftransfer.core.files import read_json, remove, write_json

STATE = "trainer_state.json"  # what the Trainer writes last


def last_complete(folder: Path, processes: int = 1, further: tuple[str, ...] = ()) -> Path | None:
    """Return the newest checkpoint in `folder` that every process has written to its end; None where there is none.

    `further` names files that belong to it besides those of the Trainer.
    """
    complete = [path for path in _checkpoints(folder) if _is_complete(path, processes, further)]
    return max(complete, key=_step, default=None)


def keep_only(folder: Path, *kept: Path) -> None:
    """Remove all checkpoints but the named ones. By name: file times can run backwards."""
    names = {path.name for path in kept}
    for path in _checkpoints(folder):
        if path.name not in names:
            remove(path)


def keep_tracks(folder: Path) -> None:
    """Copy what trackers (TensorBoard, CodeCarbon) wrote beside the checkpoints into `folder`/tracking.

    The checkpoints go when the run is whole.
    """
    saved = _checkpoints(folder / "checkpoints")
    for path in set((folder / "checkpoints").iterdir()).difference(saved):
        (folder / "tracking").mkdir(exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, folder / "tracking" / path.name, dirs_exist_ok=True)
        else:
            shutil.copy2(path, folder / "tracking")


def complete_best(checkpoint: Path) -> None:
    """Point the record of the best checkpoint to where it lies now: the folder may have been moved."""
    state = read_json(checkpoint / STATE)
    if state.get("best_model_checkpoint"):
        best = checkpoint.with_name(Path(state["best_model_checkpoint"]).name)
        write_json(checkpoint / STATE, state | {"best_model_checkpoint": str(best)})


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _is_complete(checkpoint: Path, processes: int, further: tuple[str, ...]) -> bool:
    random_states = [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"]
    try:
        state = read_json(checkpoint / STATE)
    except (OSError, json.JSONDecodeError):
        return False
    return state.get("global_step") == _step(checkpoint) and all(
        (checkpoint / name).is_file() for name in (*random_states, *further)
    )


@dataclass(frozen=True)
class Snapshot:
    """Copies, in main memory, of everything in a model that training can move: for a second attempt from the start."""

    model: nn.Module
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> "Snapshot":
        return cls(model, {name: tensor.detach().cpu().clone() for name, tensor in _movable(model).items()})

    def restore(self) -> None:
        with torch.no_grad():
            for name, tensor in _movable(self.model).items():
                tensor.grad = None
                if name in self.tensors:
                    tensor.copy_(self.tensors[name])


def _movable(model: nn.Module) -> dict[str, Tensor]:
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    return trained | dict(model.named_buffers())
