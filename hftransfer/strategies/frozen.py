"""Train the head and the last blocks; what lies below stays frozen and is computed once.

Yosinski et al. 2014 (arXiv 1411.1792): early layers are general, late ones specific to the source. Lee et al. 2023
(arXiv 2210.11466) give the exception: where the pixels themselves differ (another scanner), early layers must move.
"""

from typing import ClassVar, Literal

from torch import nn

from hftransfer.modalities import ModalityKind
from hftransfer.models.layers import LayerGroups
from hftransfer.strategies.base import L2SP, Defaults, LayerDecay, Plan, Strategy, factors


class FrozenStrategy(Strategy):
    """`top`: how many blocks train, as a count (int) or a share of the depth (float); 0 trains the head by gradient."""

    type: Literal["frozen"] = "frozen"
    rate: ClassVar[float] = 1e-4
    top: int | float = 0.25
    layer_decay: LayerDecay = 1.0
    batchnorm: Literal["frozen", "adapt"] = "frozen"
    l2_sp: L2SP = 0.0

    def prepare(self, model: nn.Module, layer_groups: LayerGroups) -> Plan:
        lowest = layer_groups.first_trainable_depth(self.top)
        rates = factors(model, layer_groups, lowest, self.head_factor, self.layer_decay)
        return Plan(model, layer_groups, rates, split_point=lowest, batchnorm=self.batchnorm, l2_sp=self.l2_sp)

    def defaults(self, kind: ModalityKind) -> Defaults:
        return Defaults(self.rate_for(kind), epochs=10, min_steps=200)
