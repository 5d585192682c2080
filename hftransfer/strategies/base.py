"""What a strategy decides: which tensors train, how fast, from when on, and how the head begins.

A strategy is a small piece of configuration with one method, `prepare`, that returns a `Plan`. The plan is plain data
about parameters; the training loop reads it and never asks which strategy made it.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hftransfer.core.errors import UserError
from hftransfer.core.settings import Settings
from hftransfer.modalities import ModalityKind
from hftransfer.models.heads import plain_name
from hftransfer.models.layers import LayerGroups
from hftransfer.strategies.head import HeadConfig

log = logging.getLogger(__name__)

HeadInit = Literal["auto", "probe", "random"]
LayerDecay = Annotated[float, Field(gt=0, le=1)]
L2SP = Annotated[float, Field(ge=0, description="pull of pretrained tensors towards their start (L2-SP); 0: none")]


@dataclass(frozen=True)
class Defaults:
    """Training values a strategy takes when the user names none (see docs/results.md for where they were measured)."""

    learning_rate: float
    epochs: int
    min_steps: int  # few examples make short epochs: steps decide, not epochs (Mosbach et al., arXiv 2006.04884)
    max_steps: int = 4000
    weight_decay: float = 0.01
    augment: bool = False  # whether `augmentation.level: auto` is light

    def steps(self, examples: int, batch_size: int) -> int:
        per_epoch = math.ceil(examples / batch_size)
        return min(max(self.epochs * per_epoch, self.min_steps), max(self.max_steps, per_epoch))


@dataclass
class Plan:
    """What trains. `rate_factors`: parameter name -> factor on the learning rate; parameters not named are frozen.

    `opens_at`: layer group -> the share of the training after which it may move (absent: from the start). `split_point`: the
    lowest layer group that trains, or None where activations below it cannot be stored.
    """

    model: nn.Module
    layer_groups: LayerGroups
    rate_factors: dict[str, float]
    split_point: int | None = None
    opens_at: dict[int, float] = field(default_factory=dict)
    batchnorm: Literal["frozen", "head", "adapt"] = "frozen"  # what learns statistics: nothing, the head, what trains
    l2_sp: float = 0.0  # strength of the penalty on the distance of pretrained tensors from their start
    finish: Callable[[nn.Module], nn.Module] = lambda model: model
    save_adapter: Callable[[nn.Module, Path], None] | None = None

    def depth_of(self, name: str) -> int:
        """Return the layer group of a parameter or module, by its path; wrappers' additions to the path are looked through."""
        return self.layer_groups.depth_of(plain_name(name))

    @property
    def lowest_depth(self) -> int:
        """The lowest layer group with a parameter that trains."""
        return min(self.depth_of(name) for name in self.rate_factors)

    def is_held(self, name: str) -> bool:
        """Whether L2-SP holds a parameter: it trains, and it is not of the head, which has no pretrained values."""
        return self.l2_sp > 0 and name in self.rate_factors and self.depth_of(name) < self.layer_groups.head_depth

    def freeze(self) -> None:
        """Let gradients reach what trains and nothing else."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.rate_factors)

    def still_modules(self, progress: float) -> list[nn.Module]:
        """Modules that must behave as in evaluation at this share of the training.

        Those below the lowest open layer group, and BatchNorm that learns no statistics: `requires_grad = False` stops
        neither running statistics nor dropout. Not leaves alone: attention reads its own `training` flag for its dropout.
        """
        opened = [name for name in self.rate_factors if self.is_open(self.depth_of(name), progress)]
        lowest = min((self.depth_of(name) for name in opened), default=self.layer_groups.head_depth)
        return [
            module
            for path, module in self.model.named_modules()
            if (self.depth_of(path) < lowest and not any(name.startswith(f"{path}.") for name in opened) and path)
            or self.layer_groups.is_constant(plain_name(path))
            or (isinstance(module, _BatchNorm) and not self._learns_statistics(path))
        ]

    def _learns_statistics(self, path: str) -> bool:
        in_head = self.depth_of(path) == self.layer_groups.head_depth
        return self.batchnorm == "adapt" or (self.batchnorm == "head" and in_head)

    def closed(self, progress: float) -> set[int]:
        """Return the layer groups that may not move yet at this share of the training."""
        return {depth for depth in self.opens_at if not self.is_open(depth, progress)}

    def is_open(self, depth: int, progress: float) -> bool:
        return progress >= self.opens_at.get(depth, 0.0) - 1e-9  # shares are sums of fractions


class Strategy(Settings):
    """Base of all strategies. `head_init: probe` starts from the linear probe on frozen features (LP-FT, arXiv 2202.10054).

    `auto` is as it was measured (docs/results.md). Texts begin as the probe: with ten examples of each of 77 intents a
    random head was not learned in the steps that such small data gives. So do `frozen` and `lora` on images, which with
    few labels were 3 points better for it; `full` was not, and begins at random with a higher rate of the head
    (`ModalityKind.random_first`).
    """

    type: str
    head_init: HeadInit = "auto"
    rate: ClassVar[float] = 5e-5  # where none was measured for the modality: what texts need, which is cautious
    without_batchnorm: ClassVar[float] = 0.1  # factor on rates that need it, see `defaults_for`

    def resolved(self, kind: ModalityKind, keep_head: bool = False) -> "Strategy":
        """Return this strategy with `head_init: auto` made definite. A head that is kept is not solved.

        Raises `UserError` where a head is to be solved that has no closed solution.
        """
        if self.head_init == "probe" and not kind.solves_head:
            raise UserError(
                f"strategy.head_init=probe: the head for {kind.plural} is a decoder, which is trained. Leave it out."
            )
        if self.head_init != "auto":
            return self
        chosen = "random" if keep_head or self.type in kind.random_first or not kind.solves_head else "probe"
        log.info(
            "The head begins %s (strategy.head_init=auto)", {"probe": "as the probe's", "random": "as it is"}[chosen]
        )
        return self.model_copy(update={"head_init": chosen})

    @abstractmethod
    def prepare(self, model: nn.Module, layer_groups: LayerGroups) -> Plan:
        """Decide what trains. May wrap the model; the plan's `model` is the one to train."""

    @abstractmethod
    def defaults(self, kind: ModalityKind) -> Defaults | None:
        """Training values for a kind of input; None where nothing is left to train once the head is made."""

    def rate_for(self, kind: ModalityKind) -> float:
        """Return the learning rate that was measured for the kind of input, else `rate`."""
        return kind.learning_rates.get(self.type, self.rate)

    def defaults_for(self, kind: ModalityKind, model: nn.Module) -> Defaults | None:
        """`defaults`, with a lower rate for image networks without BatchNorm: transformers, ConvNeXt, plain VGG.

        At the rates of convolution networks a ViT-S/14 fell to 0.25 on ten classes that it tells apart at 0.86
        (docs/results.md).
        """
        found = self.defaults(kind)
        if found is None or not kind.rates_need_batchnorm or any(isinstance(m, _BatchNorm) for m in model.modules()):
            return found
        rate = found.learning_rate * self.without_batchnorm
        log.info(
            "No BatchNorm in this %s network: the default rate is %.3g, not %.3g", kind.noun, rate, found.learning_rate
        )
        return replace(found, learning_rate=rate)

    def readable(self, head: HeadConfig) -> HeadConfig:
        """Return the options of the linear probe that this strategy can begin from."""
        return head

    @property
    def head_factor(self) -> float:
        """A random head must travel further than the rest; one that begins as the probe must not."""
        return 1.0 if self.head_init == "probe" else 10.0

    @property
    def from_random_weights(self) -> bool:
        return False


def factors(
    model: nn.Module, layer_groups: LayerGroups, lowest: int, head: float, decay: float = 1.0
) -> dict[str, float]:
    """Rate factors of all parameters from layer group `lowest` on: `head` for the head, decaying from the last block down."""
    return {
        name: head
        if layer_groups.depth[name] == layer_groups.head_depth
        else layer_groups.learning_rate(layer_groups.depth[name], 1.0, decay)
        for name, _ in model.named_parameters()
        if layer_groups.depth[name] >= lowest and not layer_groups.is_constant(name)
    }


def rates_by_depth(plan: Plan, learning_rate: float) -> dict[int, float]:
    """Return the highest rate of each layer group: what the freeze check shows."""
    rates: dict[int, float] = {}
    for name, factor in plan.rate_factors.items():
        depth = plan.depth_of(name)
        rates[depth] = max(rates.get(depth, 0.0), learning_rate * factor)
    return rates
