"""What rounding may do between the evaluated network and the saved one."""

from dataclasses import dataclass

from hftransfer.features.passes import ComputeConfig

EXAMPLES = 16


@dataclass(frozen=True)
class Tolerance:
    """What rounding may do: `logits` as a share of their spread, and `tie` between two probabilities."""

    logits: float
    tie: float

    @classmethod
    def of(cls, compute_config: ComputeConfig) -> "Tolerance":
        return cls(0.02, 0.01) if compute_config.autocast is None else cls(0.3, 0.05)
