"""Masks as a task: its loss beside a reference, what it counts, and how predictions are told apart."""

import numpy as np
import pytest
import torch

from hftransfer.core.mask_files import encode_mask, encode_prediction
from hftransfer.tasks import Masks
from hftransfer.tasks.masks import pixels_of
from hftransfer.tasks.tokens import IGNORED, ragged

TASK = Masks(("background", "crack", "hole"))


def reference(logits, labels):
    """Cross-entropy and soft Dice, pixel by pixel and class by class."""
    chances, known = logits.softmax(1), labels != IGNORED
    entropy = torch.stack([-chances[b, labels[b, y, x], y, x].log() for b, y, x in known.nonzero().tolist()]).mean()
    ratios = []
    for number in range(logits.shape[1]):
        truth, chance = (labels == number)[known].double(), chances[:, number][known]
        if truth.sum():
            ratios.append(2 * (truth * chance).sum() / (truth.sum() + chance.sum()))
    return entropy + 1 - torch.stack(ratios).mean()


def test_the_loss_is_cross_entropy_and_soft_dice_over_labelled_pixels():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.randint(0, 2, (2, 6, 5))
    labels[0, :2] = IGNORED
    found = TASK.loss(logits, labels.to(torch.int16), 0.0)
    assert (found[labels == IGNORED] == 0).all()
    assert found.sum() / (labels != IGNORED).sum() == pytest.approx(reference(logits, labels).item(), rel=1e-9)


def test_the_loss_of_coarse_logits_is_at_the_size_of_the_labels():
    assert TASK.loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 16, 16, dtype=torch.int64), 0.0).shape == (1, 16, 16)


def test_a_batch_without_labelled_pixels_has_no_gradient():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    TASK.loss(logits, torch.full((1, 4, 4), IGNORED), 0.0).sum().backward()
    assert (logits.grad == 0).all()


def test_balanced_weights_lift_rare_classes_and_keep_the_mean_over_pixels():
    mask = np.zeros((10, 10), np.uint8)
    mask[:1], mask[1:4] = 2, 1
    weights = np.array(TASK.with_balance(ragged([encode_mask(mask)])).weights)
    shares = np.array([0.6, 0.3, 0.1])
    assert (weights * shares).sum() == pytest.approx(1) and weights.argsort().tolist() == [0, 1, 2]
    assert weights[2] / weights[0] == pytest.approx(6**0.5)


def test_areas_and_names_leave_out_ignored_pixels():
    mask = np.full((4, 5), 255, np.uint8)
    mask[0], mask[1, 0] = 1, 2
    label = encode_mask(mask)
    assert pixels_of(label, 3) == (0, 5, 1)
    assert TASK.label_names(label) == ["crack", "hole"]
    assert TASK.one_hot(ragged([label])).tolist() == [[0, 1, 1]]


def test_predictions_differ_where_sure_pixels_do():
    classes, sure = np.zeros((50, 50), np.uint8), np.full((50, 50), 255, np.uint8)
    other = classes.copy()
    other[:5] = 1
    certain, unsure = (encode_prediction(classes, certainty) for certainty in (sure, np.full((50, 50), 119, np.uint8)))
    assert TASK.decides_otherwise(ragged([certain]), ragged([encode_prediction(other, sure)]), 1e-3).all()
    assert not TASK.decides_otherwise(ragged([unsure]), ragged([encode_prediction(other, sure)]), 1e-3).any()
    other[:] = 0
    other[0, 0] = 1  # one pixel of 2,500
    assert not TASK.decides_otherwise(ragged([certain]), ragged([encode_prediction(other, sure)]), 1e-3).any()
