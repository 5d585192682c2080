"""A reference to a pretrained checkpoint becomes a model with the right new head, and its processor or tokenizer.

A reference is a Hub id, a local folder in the layout of transformers or of timm, the name of a timm architecture (with
a weights file, or alone for its weights on the Hub), or `starter/…`. Whatever it is, the model is a plain transformers
class, in float32, that `transformers.pipeline` loads again once `save_model` has written it.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from hftransfer.core.errors import UserError, refuse_lfs_pointer
from hftransfer.models.decoder import pixel_processor, side_of, with_decoder
from hftransfer.models.heads import describe_head, head_parameters, output_layers, reorder_head, reset_head
from hftransfer.models.limits import check_shards, check_sizes
from hftransfer.models.processors import is_timm_config, save_processor
from hftransfer.models.references import ModelConfig, Reference, find, resolved
from hftransfer.models.weights import InputKind, check_finite, pretrained_model, random_model, weights_hash
from hftransfer.runtime.launch import full_state, is_divided
from hftransfer.tasks import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to be adapted. `new_parameters` names the tensors that did not come from the checkpoint."""

    model: PreTrainedModel
    processor: Any
    config: PreTrainedConfig
    weights_hash: str
    source: str
    new_parameters: frozenset[str] = frozenset()


def load_checkpoint(config: ModelConfig, kind: InputKind, task: Task, random_weights: bool = False) -> Checkpoint:
    """Load the model with a head for `task` in float32, and its processor.

    `kind` is the modality of the inputs (`modalities.kind_of`). With `random_weights` only the architecture is taken.
    Raises `UserError` when the reference cannot be found, reads other inputs, or holds other tensors than its
    architecture has.
    """
    _refuse_foreign_settings(kind, config)
    config = resolved(config, kind)
    reference = find(config, random_weights)
    with quiet_transformers(), _readable(reference):
        model_config, old_labels = _read_config(reference, config, kind, task)
        if kind.encoder and not kind.serves(model_config):
            return _with_decoder(reference, model_config, config, kind, task, random_weights)
        _check_class(model_config, reference, kind, config)
        model, new = _read_model(reference, model_config, config, kind, random_weights)
        processor = _read_processor(reference, config, kind, model)
    if config.keep_head:
        _keep_head(model, new, old_labels, task)
    else:
        new = new | _replace_head(model, new, model_config)
    check_finite(model, reference)
    model, processor = kind.adjust(model, processor, config, reference.name)
    identity = weights_hash(model, frozenset() if random_weights else new)
    return Checkpoint(model, processor, model.config, identity, reference.source, new)


def _read_model(
    reference: Reference, model_config: PreTrainedConfig, config: ModelConfig, kind: InputKind, random_weights: bool
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Return the network and the names of the tensors that did not come from the checkpoint."""
    if not random_weights:
        return pretrained_model(reference, model_config, kind, config)
    model = random_model(model_config, kind, config)
    return model, frozenset(model.state_dict())


def _with_decoder(
    reference: Reference, encoder_config: PreTrainedConfig, config: ModelConfig, kind: InputKind, task: Task,
    random_weights: bool,
) -> Checkpoint:  # fmt: skip
    """Load a checkpoint of whole images as the encoder of a network for their pixels."""
    if config.keep_head:
        raise UserError(f"model.keep_head: {reference.name} has no decoder to keep. Leave keep_head out.")
    _check_class(encoder_config, reference, kind.encoder, config)
    encoder, _ = _read_model(reference, encoder_config, config, kind.encoder, random_weights)
    check_finite(encoder, reference)
    processor = _read_processor(reference, config, kind.encoder, encoder)
    model, new = with_decoder(encoder, task)
    processor = pixel_processor(processor, config.image_size or side_of(encoder))
    new = frozenset(model.state_dict()) if random_weights else new
    identity = weights_hash(model, frozenset() if random_weights else new)
    return Checkpoint(model, processor, model.config, identity, reference.source, new)


def _refuse_foreign_settings(kind: InputKind, config: ModelConfig) -> None:
    for name, others in kind.foreign_settings().items():
        if (found := getattr(config, name)) != ModelConfig.model_fields[name].default:
            raise UserError(f"model.{name}={found} is for {others}, and the data are {kind.plural}. Leave it out.")


# --- the config ------------------------------------------------------------------------------------------------------


def _read_config(
    reference: Reference, config: ModelConfig, kind: InputKind, task: Task
) -> tuple[PreTrainedConfig, list[str]]:
    """Return the model's config with the labels of `task`, and the labels it had before."""
    stored = _stored_config(reference)
    if "architecture" in stored:
        model_config, old_labels = _timm_config(stored, task)
        if not config.keep_head:
            _leave_out_auxiliary_head(model_config)
    else:
        model_config = AutoConfig.from_pretrained(
            reference.path, revision=reference.revision, trust_remote_code=config.trust_remote_code
        )
        model_config = model_config if kind.encoder and kind.serves(model_config) else _as_classifier(model_config)
        kind.prepare_config(model_config, config.keep_head)
        old_labels = [model_config.id2label[key] for key in sorted(model_config.id2label)]
    check_sizes(model_config.to_dict(), reference.name)
    check_shards(reference.path, reference.name)
    model_config.id2label = task.id2label
    model_config.label2id = {name: index for index, name in task.id2label.items()}
    model_config.problem_type = task.problem_type
    return model_config, old_labels


def _stored_config(reference: Reference) -> dict[str, Any]:
    if reference.architecture:
        import timm

        pretrained = timm.get_pretrained_cfg(reference.architecture)
        return {"architecture": reference.architecture, "pretrained_cfg": pretrained.to_dict() if pretrained else {}}
    return PreTrainedConfig.get_config_dict(reference.path, revision=reference.revision)[0]


def _timm_config(stored: dict[str, Any], task: Task) -> tuple[PreTrainedConfig, list[str]]:
    from transformers import TimmWrapperConfig

    stored = dict(stored)
    # timm's own export keeps num_classes among the model's arguments, and the wrapper would pass it twice
    arguments = {key: value for key, value in (stored.get("model_args") or {}).items() if key != "num_classes"}
    labels = stored.get("label_names") or stored.get("pretrained_cfg", {}).get("label_names") or []
    stored["model_args"] = arguments or None
    stored["pretrained_cfg"] = {
        key: value for key, value in stored.get("pretrained_cfg", {}).items() if not key.startswith("label_")
    }
    stored.pop("label_descriptions", None)
    return TimmWrapperConfig.from_dict(stored, num_labels=task.head_size), list(labels)


def _leave_out_auxiliary_head(model_config: PreTrainedConfig) -> None:
    """Make VOLO without its second head, whose patches vote for the labels of the checkpoint beside the first one."""
    if "aux_head" in (model_config.pretrained_cfg.get("classifier") or ()):
        log.info("%s: its auxiliary head is left out, it knows the old labels alone", model_config.architecture)
        model_config.model_args = (model_config.model_args or {}) | {"use_aux_head": False}


# Checkpoints whose tensors are those of a classifier of another type, with the part of its config that they describe.
CLASSIFIER_OF = {
    "vit_mae": ("vit", None),
    "clip_vision_model": ("clip", "vision_config"),
    "siglip_vision_model": ("siglip", "vision_config"),
    "siglip2_vision_model": ("siglip2", "vision_config"),
    "metaclip_2_vision_model": ("metaclip_2", "vision_config"),
}


def _as_classifier(model_config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the image classifier that can hold the checkpoint's tensors, else the config as it is."""
    if model_config.model_type not in CLASSIFIER_OF:
        return model_config
    kind, part = CLASSIFIER_OF[model_config.model_type]
    settings = {key: value for key, value in model_config.to_dict().items() if key != "model_type"}
    log.info("A %s checkpoint: read as an image classifier of the type %s", model_config.model_type, kind)
    return AutoConfig.for_model(kind, **(settings if part is None else {part: settings}))


def _check_class(model_config: PreTrainedConfig, reference: Reference, kind: InputKind, config: ModelConfig) -> None:
    auto = kind.auto_class
    remote = config.trust_remote_code and auto.__name__ in getattr(model_config, "auto_map", {})
    if type(model_config) not in auto._model_mapping and not remote:
        raise UserError(
            f"{reference.name} is a {model_config.model_type} checkpoint, which cannot classify {kind.plural}. "
            f"Take one made for {kind.plural}, such as {kind.example_checkpoints}."
        )


# --- the head --------------------------------------------------------------------------------------------------------


def _replace_head(model: PreTrainedModel, new: frozenset[str], model_config: PreTrainedConfig) -> frozenset[str]:
    """Put a fresh head in place of the old one; return the names of its tensors.

    What a checkpoint that was no classifier has beside its backbone (ModernBERT's dense layer) is pretrained: it stays.
    """
    head = frozenset(head_parameters(model))
    was_classifier = any(name.endswith("Classification") for name in model_config.architectures or ["Classification"])
    kept = frozenset() if was_classifier else head - new - _outputs(model)
    reset_head(model, kept)
    log.info("new head: %s", describe_head(model))
    others = sorted(new - head)
    if others and len(new) < len(model.state_dict()):
        log.info("new as well, as the checkpoint lacks it: %s", ", ".join(others))
    return head - kept


def _outputs(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of the tensors of the layers that end in the labels."""
    last = output_layers(model)
    return frozenset(
        f"{path}.{name}" for path, module in model.named_modules() if any(module is layer for layer in last)
        for name, _ in module.named_parameters()
    )  # fmt: skip


def _keep_head(model: PreTrainedModel, new: frozenset[str], old_labels: list[str], task: Task) -> None:
    if sorted(old_labels) != sorted(task.output_names):
        raise UserError(
            f"model.keep_head: the checkpoint's labels are {_named(old_labels)}, the data's are {_named(task.output_names)}. "
            "They must agree; leave keep_head out for a new head."
        )
    if new & frozenset(head_parameters(model)):
        raise UserError("model.keep_head: the checkpoint has no head to keep. Leave keep_head out.")
    rows = [old_labels.index(name) for name in task.output_names]
    reorder_head(model, rows)
    log.info("kept head: %s%s", describe_head(model), "" if rows == sorted(rows) else ", rows in the data's order")


def _named(labels: Sequence[str]) -> str:
    return f"{', '.join(labels[:10])}{', …' if len(labels) > 10 else ''} ({len(labels)})" if labels else "unnamed"


# --- the processor ---------------------------------------------------------------------------------------------------


def _read_processor(reference: Reference, config: ModelConfig, kind: InputKind, model: PreTrainedModel) -> Any:
    if is_timm_config(model.config):
        from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

        return TimmWrapperImageProcessor(model.config.pretrained_cfg, architecture=model.config.architecture)
    processor = kind.auto_processor.from_pretrained(
        reference.path, revision=reference.revision, trust_remote_code=config.trust_remote_code
    )
    kind.check_processor(processor, model, reference.name)
    if getattr(processor, "do_reduce_labels", False):
        processor.do_reduce_labels = False  # it would take the first class of the data for none
    return processor


# --- saving ----------------------------------------------------------------------------------------------------------


def save_model(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Write a folder that plain `transformers.pipeline(task, folder)` loads: safetensors, config, processor.

    All processes call it for a network that FSDP has divided; the first one writes.
    """
    state = full_state(model) if is_divided(model) else None
    if state == {}:
        return
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=state)
        save_processor(processor, model, Path(folder))


# --- words instead of reports and tracebacks -------------------------------------------------------------------------


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' load report and progress bars: the lines about the head say what matters."""
    logging_ = transformers.utils.logging
    level, bars = logging_.get_verbosity(), logging_.is_progress_bar_enabled()
    logging_.set_verbosity_error()
    logging_.disable_progress_bar()
    try:
        yield
    finally:
        logging_.set_verbosity(level)
        if bars:
            logging_.enable_progress_bar()


@contextmanager
def _readable(reference: Reference) -> Iterator[None]:
    """Turn what reading a broken or foreign checkpoint raises into one sentence."""
    try:
        yield
    except UnpicklingError:
        raise UserError(
            f"{reference.weights or reference.name} is a pickle that holds more than tensors, which could run code "
            "when opened. Save the weights alone, with safetensors.torch.save_file(model.state_dict(), FILE) or timm's "
            "clean_checkpoint.py."
        ) from None
    except UserError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower, and a foreign config can lead anywhere
        for file in [reference.weights, *(Path(reference.path).glob("*") if reference.path else ())]:
            if file is not None:
                refuse_lfs_pointer(file)
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{reference.name} needs Python code from its own repository. Read that code first; then allow it with "
                "model.trust_remote_code=true."
            ) from None
        raise UserError(f"The checkpoint {reference.name} cannot be read: {str(error).strip()}") from error
