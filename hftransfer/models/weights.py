"""The tensors of a checkpoint, found complete or drawn at random, in the class that transformers would load.

Weights come from a folder or the Hub through `from_pretrained`, or from a timm weights file, whose names may differ from
those of the architecture. A backbone with holes or left-overs is an error: it would train from random weights without a
word.
"""

import hashlib
import importlib.metadata
import json
import logging
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from hftransfer.core.errors import UserError
from hftransfer.core.hashing import remote_code_key
from hftransfer.models.heads import head_parameters
from hftransfer.models.processors import is_timm_config
from hftransfer.models.references import ModelConfig, Reference
from hftransfer.runtime.launch import full_tensor

log = logging.getLogger(__name__)

# Tensors inside a backbone that a checkpoint for another purpose may lack, or have too many, without harm.
OPTIONAL = ("pooler", "mask_token", "position_ids", "aux_head")


class InputKind(Protocol):
    """What a checkpoint is asked on behalf of a kind of input; `modalities.ModalityKind` documents each."""

    plural: str
    example_checkpoints: str
    tower: str | None

    @property
    def auto_class(self) -> Any: ...
    @property
    def auto_processor(self) -> Any: ...
    def foreign_settings(self) -> dict[str, str]: ...
    def prepare_config(self, model_config: Any, keep_head: bool) -> None: ...
    def check_processor(self, processor: Any, model: PreTrainedModel, name: str) -> None: ...
    def adjust(self, model: PreTrainedModel, processor: Any, config: ModelConfig, name: str) -> tuple[Any, Any]: ...


def pretrained_model(
    reference: Reference, model_config: PreTrainedConfig, kind: InputKind, config: ModelConfig
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Return the model with the checkpoint's tensors, and the names of those that the checkpoint did not fill.

    Raises `UserError` when the backbone's tensors and those of the checkpoint are not the same ones.
    """
    if reference.architecture:
        return _from_weights_file(reference, model_config)
    is_tower = kind.tower is not None and hasattr(model_config, kind.tower)
    model, report = kind.auto_class.from_pretrained(
        reference.path,
        config=model_config,
        revision=reference.revision,
        trust_remote_code=config.trust_remote_code,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        key_mapping=TOWER_NAMES if is_tower else None,
    )
    reshaped = {row[0] for row in report["mismatched_keys"]}
    missing = frozenset(report["missing_keys"]) | reshaped
    _check_tensors(model, missing, set(report["unexpected_keys"]), reference)
    return (_as_saved_plainly(model) if is_tower else model), missing


# The tensors of a vision tower that CLIP or SigLIP saved alone are called as inside of the tower.
TOWER_NAMES = {r"^(?=(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)": "vision_model."}


def _as_saved_plainly(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model that saves its tensors under its own names: transformers undoes on saving what it renamed."""
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def _check_tensors(model: PreTrainedModel, missing: frozenset[str], unexpected: set[str], reference: Reference) -> None:
    """Refuse a backbone with holes, which would train from random weights, and one with left-overs, which is another one."""
    head = head_parameters(model)
    holes = [name for name in missing if name not in head and not _optional(name)]
    prefix = f"{model.base_model_prefix}."
    surplus = [name for name in unexpected if name.startswith(prefix) and name not in head and not _optional(name)]
    if holes or surplus:
        raise UserError(
            f"The weights of {reference.name} do not fit its architecture ({type(model).__name__}): "
            f"{len(holes)} tensors are missing or of another shape{_few(holes)}, {len(surplus)} are left over"
            f"{_few(surplus)}. Check that config.json and the weights belong together."
        )


def _optional(name: str) -> bool:
    return any(part in OPTIONAL for part in name.split("."))


def _few(names: list[str]) -> str:
    return f" ({', '.join(sorted(names)[:3])}{', …' if len(names) > 3 else ''})" if names else ""


def _from_weights_file(reference: Reference, model_config: PreTrainedConfig) -> tuple[PreTrainedModel, frozenset[str]]:
    model = _random_timm(model_config)
    head = head_parameters(model)
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in head}
    stored = {f"timm_model.{name}": tensor for name, tensor in read_weights(reference.weights).items()}
    if not own.keys() <= stored.keys():
        stored = _matched_by_order(own, stored, reference)
    model.load_state_dict({name: stored[name] for name in own}, strict=False)
    return model, frozenset(head)


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file, without the wrappers that training scripts put around them.

    A pickle is read with `weights_only`, which refuses everything but tensors and plain containers.
    """
    if file.suffix == ".safetensors":
        return _without_prefixes(load_file(file))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # what it cannot read is an error anyway
        stored = torch.load(file, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model"):
        if isinstance(stored.get(wrapper), dict):
            stored = stored[wrapper]
    return _without_prefixes({name: tensor for name, tensor in stored.items() if torch.is_tensor(tensor)})


def _without_prefixes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors without what DataParallel, torch.compile and Lightning put before every name."""
    for prefix in ("module.", "_orig_mod.", "model.", "net.") * 2:  # they nest: module._orig_mod.
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _matched_by_order(
    own: dict[str, torch.Tensor], stored: dict[str, torch.Tensor], reference: Reference
) -> dict[str, torch.Tensor]:
    """Return the stored tensors under the model's names, when both come in the same order with the same shapes.

    The counters of batch norm are left out on both sides (older files lack them), and so is what follows the backbone
    in the file, the old head. A safetensors file is sorted by name, so that its order says nothing.
    """
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    tensors = [tensor for name, tensor in stored.items() if not name.endswith("num_batches_tracked")]
    fits = len(tensors) >= len(names) and all(own[n].shape == t.shape for n, t in zip(names, tensors, strict=False))
    if not fits or reference.weights.suffix == ".safetensors":
        absent = [name.removeprefix("timm_model.") for name in own if name not in stored]
        raise UserError(
            f"{reference.weights} does not hold the weights of {reference.architecture}: {len(absent)} of {len(own)} "
            f"tensors are missing or of another shape{_few(absent)}."
        )
    log.info("%s: tensor names differ from timm's, matched by order (same shapes)", reference.weights.name)
    counters = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
    return dict(zip(names, tensors, strict=False)) | counters


def random_model(model_config: PreTrainedConfig, kind: InputKind, config: ModelConfig) -> PreTrainedModel:
    """Return the architecture alone, started as its library would start it for training."""
    if is_timm_config(model_config):
        return _random_timm(model_config)
    model = kind.auto_class.from_config(model_config, trust_remote_code=config.trust_remote_code, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_parameters()  # EfficientNet's start draws the scales around 0, and no signal gets through
    return model


def _random_timm(model_config: PreTrainedConfig) -> PreTrainedModel:
    import timm
    from transformers import TimmWrapperForImageClassification

    model = TimmWrapperForImageClassification(model_config)
    # the wrapper starts every layer from a normal of 0.02, a poor start for deep conv nets: back to timm's own
    arguments = model_config.model_args or {}
    model.timm_model = timm.create_model(model_config.architecture, num_classes=model_config.num_labels, **arguments)
    return model.float()


def check_finite(model: PreTrainedModel, reference: Reference) -> None:
    """Raise `UserError` with the names of tensors that hold NaN or infinity."""
    # The sum of finite numbers is finite but for overflow, and takes a fraction of the time of looking at each.
    bad = [n for n, tensor in model.named_parameters() if not (tensor.sum().isfinite() or tensor.isfinite().all())]
    if bad:
        raise UserError(f"The weights of {reference.name} hold values that are not finite{_few(bad)}.")


# Of a config, what no forward pass reads: names, labels, paths, and how tensors were stored.
NOT_COMPUTED_WITH = {
    "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "num_labels", "problem_type", "torch_dtype",
    "transformers_version", "finetuning_task", "label_names", "label_descriptions",
}  # fmt: skip


def architecture_key(model: PreTrainedModel) -> str:
    """Return what a forward pass depends on besides tensors and inputs, as canonical JSON.

    The class, the complete config without labels and paths, the attention implementation, the code of a remote
    checkpoint, and the versions of the libraries that compute.
    """
    ingredients = {
        "class": type(model).__name__,
        "config": _computed_with(model.config.to_dict()),
        "attention": str(getattr(model.config, "_attn_implementation", None)),
        "code": remote_code_key(type(model)),
        "versions": library_versions(),
    }
    return json.dumps(ingredients, sort_keys=True, default=str)


def _computed_with(value: Any) -> Any:
    """Return a config, or a part of one, without the entries of `NOT_COMPUTED_WITH`."""
    if isinstance(value, dict):
        return {str(k): _computed_with(inner) for k, inner in value.items() if k not in NOT_COMPUTED_WITH}
    return [_computed_with(inner) for inner in value] if isinstance(value, list | tuple) else value


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of all libraries that have a part in what a network gives for an input."""
    names = ("torch", "torchvision", "transformers", "tokenizers", "timm", "pillow", "hftransfer")
    return {name: importlib.metadata.version(name) for name in names}


def weights_hash(model: torch.nn.Module, leave_out: frozenset[str] = frozenset()) -> str:
    """Return a hash of the names and raw bytes of all tensors but those named in `leave_out`; equal on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if name not in leave_out:
            digest.update(name.encode())
            digest.update(full_tensor(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
