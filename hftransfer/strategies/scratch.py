"""The same architecture from random weights: the baseline that shows what the transfer is worth.

He et al. 2019 (arXiv 1811.08883): with enough data and steps training from scratch catches up; with hundreds of labels it
does not.
"""

from typing import ClassVar, Literal

from torch import nn

from hftransfer.modalities import ModalityKind
from hftransfer.models.layers import LayerGroups
from hftransfer.strategies.base import Defaults, Plan, Strategy, factors


class ScratchStrategy(Strategy):
    type: Literal["scratch"] = "scratch"
    rate: ClassVar[float] = 3e-4
    head_init: Literal["random"] = "random"
    batchnorm: Literal["adapt"] = "adapt"  # statistics of random weights have to be learned

    def prepare(self, model: nn.Module, layer_groups: LayerGroups) -> Plan:
        return Plan(model, layer_groups, factors(model, layer_groups, 0, head=1.0), batchnorm="adapt")

    def defaults(self, kind: ModalityKind) -> Defaults:
        return Defaults(self.rate_for(kind), epochs=20, min_steps=300, weight_decay=0.05, augment=True)

    @property
    def from_random_weights(self) -> bool:
        return True
