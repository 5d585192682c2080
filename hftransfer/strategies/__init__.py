"""What adapts. A new strategy is one new file here and one row in the behaviour matrix of the tests."""

from typing import Annotated

from pydantic import Field

from hftransfer.strategies.auto import AutoStrategy
from hftransfer.strategies.base import Defaults, Plan, Strategy
from hftransfer.strategies.frozen import FrozenStrategy
from hftransfer.strategies.full import FullStrategy
from hftransfer.strategies.gradual import GradualStrategy
from hftransfer.strategies.lora import LoraStrategy
from hftransfer.strategies.probe import ProbeStrategy
from hftransfer.strategies.scratch import ScratchStrategy

AnyStrategy = Annotated[
    ProbeStrategy | FrozenStrategy | FullStrategy | GradualStrategy | LoraStrategy | ScratchStrategy | AutoStrategy,
    Field(discriminator="type"),
]
STRATEGIES = ("probe", "frozen", "full", "gradual", "lora", "scratch")
CHOICES = (*STRATEGIES, "auto")  # what `strategy.type` may say; `auto` becomes one of the others

__all__ = ["AnyStrategy", "AutoStrategy", "CHOICES", "Defaults", "Plan", "STRATEGIES", "Strategy"]
