"""Train everything, lower blocks more slowly.

Layer-wise decay: ELECTRA (arXiv 2003.10555), BEiT (arXiv 2106.08254); the idea of one rate per layer: ULMFiT (arXiv
1801.06146, section 3.2). Right when there is enough data or the source was trained by reconstruction (MAE).
"""

from typing import Literal

from torch import nn

from hftransfer.modalities import ModalityKind
from hftransfer.models.layers import LayerGroups
from hftransfer.strategies.base import L2SP, Defaults, LayerDecay, Plan, Strategy, factors


class FullStrategy(Strategy):
    """`layer_decay`: factor on the rate from each block to the one below; 1 is one rate for all.

    `l2_sp`: strength of the pull to the pretrained values, in place of weight decay there (`training/start_penalty.py`).
    Weights then stay within about 1 / strength of their start, whatever the rate.
    """

    type: Literal["full"] = "full"
    layer_decay: LayerDecay = 0.8
    batchnorm: Literal["frozen", "adapt"] = "frozen"
    l2_sp: L2SP = 0.0

    def prepare(self, model: nn.Module, layer_groups: LayerGroups) -> Plan:
        rates = factors(model, layer_groups, 0, self.head_factor, self.layer_decay)
        return Plan(model, layer_groups, rates, batchnorm=self.batchnorm, l2_sp=self.l2_sp)

    def defaults(self, kind: ModalityKind) -> Defaults:
        return Defaults(self.rate_for(kind), epochs=10, min_steps=200, augment=True)
