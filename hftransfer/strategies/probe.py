"""Feature extraction: the backbone stays as it is and a linear probe is solved on its features.

Kornblith et al. 2019 (arXiv 1805.08974): L2-regularised logistic regression on frozen features. The safest choice for a
few examples a class, and the fastest by construction: one pass over the data.
"""

from typing import Literal

from torch import nn

from hftransfer.models.layers import LayerGroups
from hftransfer.strategies.base import Defaults, Plan, Strategy, factors


class ProbeStrategy(Strategy):
    """Head only. The options of the linear probe stand under `probe:`, because every strategy may begin with it."""

    type: Literal["probe"] = "probe"
    head_init: Literal["probe"] = "probe"

    def prepare(self, model: nn.Module, layer_groups: LayerGroups) -> Plan:
        return Plan(
            model,
            layer_groups,
            factors(model, layer_groups, layer_groups.head_depth, head=1.0),
            split_point=layer_groups.head_depth,
        )

    def defaults(self, modality: str) -> Defaults | None:
        return None
