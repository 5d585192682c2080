"""Low-rank adapters beside frozen weights, merged into the plain model at the end.

Hu et al. 2021, LoRA (arXiv 2106.09685): W + (alpha / r) B A with B = 0 at the start. On small networks it saves optimizer
memory and disk, not time: gradients still run through all blocks. Learning rates are about ten times those of `full`.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.core.settings import Count
from hftransfer.modalities import ModalityKind
from hftransfer.models.heads import head_of
from hftransfer.models.layers import LayerGroups
from hftransfer.strategies.base import Defaults, Plan, Strategy
from hftransfer.strategies.head import HeadConfig


class LoraStrategy(Strategy):
    """`r`: rank; `alpha`: scale (the paper's alpha / r = 2); `top`: adapt the last blocks alone (count or share)."""

    type: Literal["lora"] = "lora"
    rate: ClassVar[float] = 5e-4
    without_batchnorm: ClassVar[float] = 0.25
    r: Count = 8
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    top: int | float = 1.0

    def prepare(self, model: nn.Module, layer_groups: LayerGroups) -> Plan:
        from peft import LoraConfig, get_peft_model

        lowest = max(layer_groups.first_trainable_depth(self.top), 1)
        targets = lora_targets(model, layer_groups, lowest)
        adapter = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            fan_in_fan_out=any(_is_transposed(model.get_submodule(path)) for path in targets),
            modules_to_save=list(head_of(model)),
        )
        wrapped = get_peft_model(model, adapter)
        rates = {n: self._factor(n) for n, p in wrapped.named_parameters() if p.requires_grad}
        return Plan(
            wrapped, layer_groups, rates, split_point=None if lowest == 1 else lowest,
            finish=lambda m: m.merge_and_unload(), save_adapter=_save_adapter,
        )  # fmt: skip

    def _factor(self, name: str) -> float:
        return 1.0 if "lora_" in name else self.head_factor

    def readable(self, head: HeadConfig) -> HeadConfig:
        """Return the options under which the adapter fits the published checkpoint, unless others are asked for."""
        asked = head.layer != "last" or head.pooling == "mean"
        return head if asked else head.model_copy(update={"pooling": "head"})

    def defaults(self, kind: ModalityKind) -> Defaults:
        return Defaults(self.rate_for(kind), epochs=10, min_steps=200, weight_decay=0.0, augment=True)


def lora_targets(model: nn.Module, layer_groups: LayerGroups, lowest: int) -> list[str]:
    """Paths of the layers to adapt: linear layers and full convolutions in the blocks from layer group `lowest` on.

    Depthwise convolutions are left out: one filter a channel has no low-rank form worth the name. Raises `UserError` when
    there is nothing to adapt.
    """
    from transformers.pytorch_utils import Conv1D

    targets = [
        path
        for path, module in model.named_modules()
        if lowest <= layer_groups.depth_of(path) < layer_groups.head_depth
        and not layer_groups.is_constant(path)
        and (isinstance(module, nn.Linear | Conv1D) or (isinstance(module, nn.Conv2d) and module.groups == 1))
    ]
    if not targets:
        raise UserError(f"No linear layer or convolution to adapt in the blocks of {type(model).__name__}.")
    return targets


def _is_transposed(module: nn.Module) -> bool:
    """Return whether a linear layer keeps its weight as (inputs, outputs), as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _save_adapter(model: nn.Module, folder: Path) -> None:
    model.save_pretrained(folder, safe_serialization=True)
