"""Feature extraction: the backbone stays as it is and a linear probe is solved on its features.

Kornblith et al. 2019 (arXiv 1805.08974): L2-regularised logistic regression on frozen features. The safest choice for a
few examples a class, and the fastest by construction: one pass over the data.
"""

from typing import ClassVar, Literal

from torch import nn

from hftransfer.modalities import ModalityKind
from hftransfer.models.layers import LayerGroups
from hftransfer.strategies.base import Defaults, Plan, Strategy, factors


class ProbeStrategy(Strategy):
    """Head only. The options of the linear probe stand under `head:`, because every strategy may begin with it.

    A decoder for pixels has no closed solution: it begins at random and is trained on stored feature maps.
    """

    type: Literal["probe"] = "probe"
    rate: ClassVar[float] = 1e-3
    head_init: Literal["probe", "random"] = "probe"

    def resolved(self, kind: ModalityKind, keep_head: bool = False) -> "ProbeStrategy":
        return self if kind.solves_head else self.model_copy(update={"head_init": "random"})

    def prepare(self, model: nn.Module, layer_groups: LayerGroups) -> Plan:
        return Plan(
            model,
            layer_groups,
            factors(model, layer_groups, layer_groups.head_depth, head=1.0),
            split_point=layer_groups.head_depth,
        )

    def defaults(self, kind: ModalityKind) -> Defaults | None:
        return Defaults(self.rate_for(kind), epochs=10, min_steps=200) if self.head_init == "random" else None
