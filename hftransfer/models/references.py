"""What a user calls a checkpoint, and where it lies: a folder, a package, a weights file, or a commit on the Hub."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub import errors as hub_errors
from pydantic import Field

from hftransfer.core import starter
from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.core.settings import Count, Settings
from hftransfer.models.reach import reachable

log = logging.getLogger(__name__)


AUTO = "auto"  # the name that stands for a default checkpoint


class CheckpointConfig(Settings):
    """Which checkpoint to start from, and how to read it.

    `name: auto` is the first default checkpoint of the modality that can be loaded.
    `weights` is a file for a timm architecture; `image_size` (pixels) and `max_length` (tokens) replace the
    checkpoint's own, and `max_seconds` cuts the window of one that pads recordings to it; `trust_remote_code` runs
    Python from the checkpoint's repository. `split_special_tokens` reads the names of special tokens inside of texts
    ("</s>", "[SEP]") as plain text; false reads them as those tokens.
    """

    name: str = AUTO
    keep_head: bool = False
    weights: str | None = None
    image_size: Count | None = None
    max_seconds: Count | None = None
    max_length: Count | None = None
    split_special_tokens: bool = True
    trust_remote_code: bool = False
    revision: str | None = None


class ModelConfig(CheckpointConfig):
    """Which checkpoint to start from; of several inputs, which for each: `model.NAME=…`."""

    inputs: dict[str, CheckpointConfig] = Field(
        {}, description="of several inputs, the checkpoint of each: model.NAME=…"
    )


@dataclass(frozen=True)
class Reference:
    """Where a checkpoint is: `path` is a folder or Hub id; or a timm `architecture`, with its weights file or alone."""

    name: str
    path: str | None = None
    revision: str | None = None
    architecture: str | None = None
    weights: Path | None = None

    @property
    def source(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def resolved(config: ModelConfig, kind: Any) -> ModelConfig:
    """Return the configuration with `name: auto` made definite. Raises `UserError` where no default can be loaded.

    `kind` is the modality (`modalities.kind_of`), whose `default_checkpoints` are tried in order.
    """
    if config.name != AUTO:
        return config
    found = next(reachable(kind.default_checkpoints), None)
    if found is None:
        raise UserError(
            f"No default checkpoint for {kind.plural} can be loaded: pip install 'hftransfer[starter]', or name one with "
            f"--model, such as {kind.example_checkpoints}."
        )
    log.info("Checkpoint: %s (the default for %s; --model names another)", found.name, kind.plural)
    return config.model_copy(update={"name": found.place})


def find(config: ModelConfig, random_weights: bool = False) -> Reference:
    """Where the checkpoint that `config` names lies, without reading its weights."""
    if config.name.startswith("starter/"):
        return _starter_reference(config.name)
    folder = Path(config.name).expanduser()
    if folder.is_dir():
        return Reference(config.name, str(_model_folder(folder)))
    if _is_architecture(config.name):
        return _timm_reference(config, random_weights)
    if config.weights:
        raise UserError(
            f"model.weights needs the name of a timm architecture, and {config.name!r} is none."
            + did_you_mean(config.name, _architectures())
        )
    return _hub_reference(config.name, config.revision)


def _is_architecture(name: str) -> bool:
    if "/" in name:
        return False  # a Hub id
    import timm

    return timm.is_model(name)


def _architectures() -> list[str]:
    import timm

    return timm.list_models()


def _starter_reference(name: str) -> Reference:
    found = starter.checkpoint(name)
    if found.architecture:
        return Reference(name, architecture=found.architecture, weights=found.path)
    return Reference(name, str(found.path))


def _model_folder(folder: Path) -> Path:
    """Return the folder itself, or `model/` in a run folder."""
    inner = _transformer_module(folder)
    if inner and "model_type" not in _json(folder / "config.json"):  # as sentence-transformers wrote it before 2.0
        return inner
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return place
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter alone. Give the model it belongs to, or merge it first.")
    raise UserError(f"{folder} is no checkpoint: a config.json is expected in it, found {_listing(folder)}.")


def _transformer_module(folder: Path) -> Path | None:
    """Return the folder that `modules.json` of sentence-transformers names first, where it holds a checkpoint."""
    modules = _json(folder / "modules.json")
    first = modules[0].get("path", "") if isinstance(modules, list) and modules and isinstance(modules[0], dict) else ""
    inner = folder / str(first)
    inside = inner.resolve().is_relative_to(folder.resolve())
    return inner if first and inside and (inner / "config.json").is_file() else None


def _json(file: Path) -> Any:
    """Return what a JSON file holds; an empty mapping where there is none or it is broken."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _listing(folder: Path) -> str:
    names = sorted(item.name for item in folder.iterdir())
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "nothing"


def _timm_reference(config: ModelConfig, random_weights: bool) -> Reference:
    if config.weights:
        weights = Path(config.weights).expanduser()
        if not weights.is_file():
            raise UserError(f"There is no weights file {weights}.{_siblings(weights)}")
        return Reference(config.name, architecture=config.name, weights=weights)
    if random_weights:
        return Reference(config.name, architecture=config.name)
    import timm

    hub_id = getattr(timm.get_pretrained_cfg(config.name), "hf_hub_id", None)
    if not hub_id:
        raise UserError(
            f"timm has no weights for {config.name!r}. Give a file: model.weights=PATH (.safetensors or .pth)."
        )
    log.info("model %s: taking the weights %s", config.name, hub_id)
    return _hub_reference(hub_id, config.revision)


def _siblings(path: Path) -> str:
    near = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, near)


def _hub_reference(name: str, revision: str | None) -> Reference:
    """Return a Hub id pinned to the commit that its `revision` stands for now."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"There is no folder {name}.{_siblings(Path(name).expanduser())}")
    try:
        file = hf_hub_download(name, "config.json", revision=revision)
    except hub_errors.HFValidationError:
        raise UserError(f"{name!r} is neither a folder nor a Hub id.{_hint(name)}") from None
    except hub_errors.GatedRepoError:
        raise UserError(
            f"{name} is gated: accept its terms on https://huggingface.co/{name} and log in with `hf auth login`."
        ) from None
    except hub_errors.RepositoryNotFoundError:
        raise UserError(
            f"There is no model {name!r} on the Hub, or it is private (then log in with `hf auth login`).{_hint(name)}"
        ) from None
    except hub_errors.RevisionNotFoundError:
        raise UserError(f"{name} on the Hub has no revision {revision!r}.") from None
    except hub_errors.RemoteEntryNotFoundError:
        raise UserError(f"{name} on the Hub has no config.json, so it is no transformers or timm checkpoint.") from None
    except (hub_errors.LocalEntryNotFoundError, hub_errors.HfHubHTTPError, OSError) as error:
        raise UserError(_unreachable(name, error)) from None
    return Reference(name, name, revision=Path(file).parent.name)


def _hint(name: str) -> str:
    near = [*starter.names(), *_architectures(), *_folders_nearby(name)]
    hint = did_you_mean(name, near)
    return hint if "Did you mean" in hint else " Give a Hub id, a folder, a timm architecture or starter/…."


def _folders_nearby(name: str) -> list[str]:
    parent = Path(name).parent
    return [str(item) for item in parent.iterdir() if item.is_dir()] if parent.is_dir() else []


def _unreachable(name: str, error: Exception) -> str:
    return (
        f"The checkpoint {name!r} is no folder here, is not in the Hub's cache "
        f"({constants.HF_HUB_CACHE}), and the Hub cannot be reached ({type(error).__name__})."
        f"{_hint(name)} Without the Hub: a local folder, a timm architecture with model.weights=FILE, or "
        f"{' / '.join(starter.names())}."
    )
