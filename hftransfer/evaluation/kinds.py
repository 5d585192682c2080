"""The table of metrics: which direction is good, on which scale the interval is made, and the printed name."""

from dataclasses import dataclass
from typing import Literal

from hftransfer.core.errors import UserError, did_you_mean

Scale = Literal["share", "correlation", "positive", "explained"]  # 0 to 1; -1 to 1; above 0; at most 1


@dataclass(frozen=True)
class Kind:
    """`macro`: an average that the smallest class decides. `title`: the printed name where it is not the name itself."""

    scale: Scale
    higher_is_better: bool = True
    macro: bool = False
    title: str = ""


METRICS = {
    "accuracy": Kind("share"),
    "balanced_accuracy": Kind("share", macro=True),
    "macro_f1": Kind("share", macro=True, title="macro-F1"),
    "micro_f1": Kind("share", title="micro-F1"),
    "auroc": Kind("share", macro=True, title="AUROC"),
    "mcc": Kind("correlation", macro=True, title="MCC"),
    "mean_average_precision": Kind("share", macro=True),
    "subset_accuracy": Kind("share"),
    "entity_f1": Kind("share", title="entity F1"),
    "entity_precision": Kind("share"),
    "entity_recall": Kind("share"),
    "overlap_f1": Kind("share", title="overlap F1"),  # entities that share a word with one of their type
    "mean_iou": Kind("share", macro=True, title="mean IoU"),  # of masks, over all pixels of a part
    "mean_dice": Kind("share", macro=True, title="mean Dice"),
    "pixel_accuracy": Kind("share"),
    "boundary_iou": Kind("share", macro=True, title="boundary IoU"),  # of the pixels near the outlines of areas
    "r2": Kind("explained", title="R²"),
    "pearson": Kind("correlation", title="Pearson's r"),
    "spearman": Kind("correlation", title="Spearman's ρ"),
    "log_loss": Kind("positive", higher_is_better=False, title="log-loss"),
    "calibrated_log_loss": Kind("positive", higher_is_better=False),  # of validation examples, in the log of a training
    "brier": Kind("positive", higher_is_better=False),
    "mae": Kind("positive", higher_is_better=False, title="MAE"),
    "rmse": Kind("positive", higher_is_better=False, title="RMSE"),
    "loss": Kind("positive", higher_is_better=False),  # the Trainer's own
    "f1": Kind("share", title="F1"),  # of one class, as are precision and recall
    "precision": Kind("share"),
    "recall": Kind("share"),
    "iou": Kind("share", title="IoU"),
    "dice": Kind("share", title="Dice"),
}
BOUNDED = tuple(name for name, kind in METRICS.items() if kind.scale != "positive")  # at most 1: one axis holds them


def higher_is_better(name: str) -> bool:
    """Return whether more of a metric is good; the Trainer's prefix `eval_` may stand before its name.

    Raises `UserError` for a name that is not in the table: its direction is not known.
    """
    bare = name.removeprefix("eval_")
    if bare not in METRICS:
        raise UserError(f"Unknown metric {name!r}.{did_you_mean(bare, METRICS)}")
    return METRICS[bare].higher_is_better


def scale_of(name: str) -> Scale | None:
    """Return the scale of a metric; None for one of another library."""
    return METRICS[name].scale if name in METRICS else None


def is_macro(name: str) -> bool:
    """Return whether a metric is an average that the smallest class decides."""
    return name in METRICS and METRICS[name].macro


def titled(name: str) -> str:
    """Return a metric's name as it is printed."""
    return (METRICS[name].title if name in METRICS else "") or name.replace("_", " ")
