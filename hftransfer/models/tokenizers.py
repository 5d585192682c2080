"""Tokenizers of checkpoints: whether they fit the model, and what is set before texts are read with them."""

import logging
from typing import TYPE_CHECKING, Any

from torch import nn

from hftransfer.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

UNLIMITED = 10**9  # transformers writes 1e30 for "no limit", which no tokenizer takes as a number
DEFAULT_LENGTH = 512  # tokens


def check_vocabulary(tokenizer: Any, model: "PreTrainedModel", name: str) -> None:
    """Where the files are missing, transformers makes a tokenizer that knows its special tokens alone."""
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if not words:
        raise UserError(f"{name} has no tokenizer: copy the tokenizer's files of the original model into its folder.")
    size = _vocabulary_size(model)
    if size is not None and len(tokenizer) > size:
        raise UserError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens, its model {size}: they do not belong together."
        )


def _vocabulary_size(model: "PreTrainedModel") -> int | None:
    """Return how many tokens the model has embeddings for; None where it hashes characters (CANINE)."""
    try:
        return model.get_input_embeddings().num_embeddings
    except (NotImplementedError, AttributeError):
        return None


def split_special_tokens(model: "PreTrainedModel", tokenizer: Any, split: bool) -> None:
    """Let names of special tokens inside of texts be plain text: BART stops at a second "</s>", GPT-2 reads only up to it.

    The setting is saved with the tokenizer, so that `pipeline` reads texts alike. Tokenizers written in Python lose their
    vocabulary with it (ESM splits residues by it): they are left as they are.
    """
    if not split and model.config.is_encoder_decoder:
        raise UserError(
            f"model.split_special_tokens=false: {type(model).__name__} reads a text up to its last {tokenizer.eos_token}, "
            "so a text cannot hold one. Leave it out."
        )
    if hasattr(tokenizer, "backend_tokenizer"):
        tokenizer.split_special_tokens = split
        tokenizer.init_kwargs["split_special_tokens"] = split


def ensure_padding(model: "PreTrainedModel", tokenizer: Any, name: str) -> None:
    """Batches of texts need a padding token, which decoders such as GPT-2 come without."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise UserError(
                f"The tokenizer of {name} has no padding, end or unknown token, and batches of texts need one. "
                "Add one to the checkpoint: tokenizer.add_special_tokens({'pad_token': '[PAD]'}), then "
                "model.resize_token_embeddings(len(tokenizer)), and save both."
            )
        log.info("the tokenizer has no padding token: %r takes its place", tokenizer.pad_token)
    model.config.pad_token_id = tokenizer.pad_token_id


def limit_length(model: "PreTrainedModel", tokenizer: Any, max_length: int | None = None) -> None:
    """Set `tokenizer.model_max_length`, in tokens, to what is wanted or else to the most the model can take.

    Many tokenizers on the Hub state no limit at all, and a text beyond the last position embedding stops the model.
    """
    limit = _positions_of(model)
    if max_length and limit and max_length > limit:
        raise UserError(f"model.max_length={max_length}: this model takes at most {limit} tokens.")
    stated = min(tokenizer.model_max_length, limit or tokenizer.model_max_length)
    if not max_length and stated > UNLIMITED:
        log.info("The checkpoint states no length limit: texts are cut at %d tokens; model.max_length sets another.",
                 DEFAULT_LENGTH)  # fmt: skip
        stated = DEFAULT_LENGTH
    tokenizer.model_max_length = max_length or stated


def _positions_of(model: "PreTrainedModel") -> int | None:
    """How many tokens there are positions for. RoBERTa and its kin begin to count after their padding index."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if limit and limit > 0 else None  # XLNet, which has none, says -1
