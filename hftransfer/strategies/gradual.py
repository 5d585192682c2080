"""Gradual unfreezing: the head first, then one layer group after another from the top.

Howard & Ruder 2018, ULMFiT (arXiv 1801.06146, section 3.3), with its discriminative rates (section 3.2). All parameters
enter the optimizer at the start and layer groups are opened as a function of progress, so that a resumed run needs no memory.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.modalities import ModalityKind
from hftransfer.models.layers import LayerGroups
from hftransfer.strategies.base import L2SP, Defaults, LayerDecay, Plan, Strategy, factors


class GradualStrategy(Strategy):
    """`open_all_by`: share of the training after which every layer group is open, reached in even steps.

    `schedule` names the shares itself, from the last block down to the stem (the head is open from the start); with fewer
    entries than layer groups, the remaining layer groups stay frozen.
    """

    type: Literal["gradual"] = "gradual"
    rate: ClassVar[float] = 1e-4
    open_all_by: float = Field(0.5, ge=0, lt=1)
    schedule: list[Annotated[float, Field(ge=0, lt=1)]] | None = Field(None, min_length=1)
    layer_decay: LayerDecay = 0.8
    batchnorm: Literal["frozen", "adapt"] = "frozen"
    l2_sp: L2SP = 0.0

    def prepare(self, model: nn.Module, layer_groups: LayerGroups) -> Plan:
        opens_at = self._opens_at(layer_groups)
        lowest = min(opens_at)
        rates = factors(model, layer_groups, lowest, self.head_factor, self.layer_decay)
        return Plan(
            model, layer_groups, rates, split_point=lowest or None, opens_at=opens_at, batchnorm=self.batchnorm,
            l2_sp=self.l2_sp,
        )  # fmt: skip

    def _opens_at(self, layer_groups: LayerGroups) -> dict[int, float]:
        depths = range(len(layer_groups.blocks), -1, -1)
        shares = self.schedule or [self.open_all_by * (i + 1) / len(depths) for i in range(len(depths))]
        if len(shares) > len(depths):
            raise UserError(
                f"strategy.schedule has {len(shares)} entries; the network has {len(depths)} layer groups below the head."
            )
        return dict(zip(depths, shares, strict=False))

    def defaults(self, kind: ModalityKind) -> Defaults:
        return Defaults(self.rate_for(kind), epochs=12, min_steps=240, augment=True)
