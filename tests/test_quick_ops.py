"""What a CPU trains faster with, against torch's own: the same numbers without dropout, the same distribution with it."""

import pytest
import torch
import torch.utils.checkpoint
from torch.nn import functional

from hftransfer import quick_ops
from hftransfer.quick_ops import quick_operations

CPU = torch.device("cpu")


def drawn(rate, seed=0, dtype=torch.float32, **settings):
    torch.manual_seed(seed)
    with quick_operations(CPU):
        return functional.dropout(torch.full((1000, 401), 3.0, dtype=dtype), rate, **settings)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_its_rate_and_its_mean(rate, dtype):
    found = drawn(rate, dtype=dtype).double()
    assert (found == 0).double().mean() == pytest.approx(rate, abs=0.0035)  # six standard errors at 0.5
    assert set(found.unique().tolist()) == {0.0, float((torch.ones(1, dtype=dtype) / (1 - rate) * 3).double())}
    neighbours = (found[:, 1:] == 0) & (found[:, :-1] == 0)
    assert neighbours.double().mean() == pytest.approx(rate**2, abs=0.005)


def test_masks_follow_torchs_generator():
    assert torch.equal(drawn(0.3, seed=1), drawn(0.3, seed=1))
    assert not torch.equal(drawn(0.3, seed=1), drawn(0.3, seed=2))
    torch.manual_seed(0)
    assert not torch.equal(quick_ops.mask(torch.ones(50), 0.5), quick_ops.mask(torch.ones(50), 0.5))


def test_the_gradient_passes_where_the_input_did_and_inplace_is_in_place():
    x = torch.ones(20, 20, requires_grad=True)
    with quick_operations(CPU):
        y = functional.dropout(x, 0.25)
        y.sum().backward()
        z = torch.ones(20, 20)
        assert functional.dropout(z, 0.25, inplace=True) is z and (z == 0).any()
    assert torch.equal(x.grad, y.detach())


def test_nothing_is_dropped_in_evaluation_and_with_a_rate_of_none_or_all():
    x = torch.randn(5, 5)
    with quick_operations(CPU):
        assert torch.equal(functional.dropout(x, 0.5, training=False), x)
        assert torch.equal(functional.dropout(x, 0.0), x) and not functional.dropout(x, 1.0).any()


@pytest.mark.parametrize("how", ["plain", "causal", "bool", "float", "scaled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_torchs(how, dtype, monkeypatch):
    """With masks of ones alone, so that dropout goes the new way and drops nothing; in bfloat16 without dropout too."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 4).to(dtype).requires_grad_() for _ in range(3))
    allowed = torch.rand(2, 1, 7, 7) < 0.7
    allowed[..., 0] = True
    settings = {
        "plain": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": allowed},
        "float": {"attn_mask": torch.zeros(2, 1, 7, 7, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)},
        "scaled": {"scale": 0.3},
    }[how]
    expected = functional.scaled_dot_product_attention(q, k, v, **settings)
    gradients = torch.autograd.grad(expected.sum(), (q, k, v), retain_graph=True)
    monkeypatch.setattr(quick_ops, "mask", lambda like, rate: torch.ones_like(like))
    for rate in (0.1, 0.0):
        with quick_operations(CPU):
            found = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, **settings)
            ours = torch.autograd.grad(found.sum(), (q, k, v))
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        assert torch.allclose(found, expected, atol=tolerance)
        assert all(torch.allclose(a, b, atol=tolerance) for a, b in zip(ours, gradients, strict=True))


def test_a_row_of_padding_alone_stays_finite():
    q, k, v = (torch.randn(1, 1, 3, 4) for _ in range(3))
    nothing = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    with quick_operations(CPU):
        assert functional.scaled_dot_product_attention(q, k, v, attn_mask=nothing, dropout_p=0.1).isfinite().all()


def test_attention_drops_weights(monkeypatch):
    q, k, v = (torch.randn(4, 2, 30, 8) for _ in range(3))
    torch.manual_seed(0)
    with quick_operations(CPU):
        found = [functional.scaled_dot_product_attention(q, k, v, dropout_p=0.5) for _ in range(400)]
    expected = functional.scaled_dot_product_attention(q, k, v)
    assert not torch.equal(found[0], found[1])
    assert (torch.stack(found).mean(0) - expected).abs().max() < 0.25
    assert (torch.stack(found).mean(0) - expected).abs().mean() < 0.02


@pytest.mark.parametrize(("dtype", "gradient", "few"), [(torch.float32, True, 2**24), (torch.bfloat16, False, 2**24),
                                                        (torch.bfloat16, True, 1)])  # fmt: skip
def test_attention_without_dropout_is_torchs_own_elsewhere(dtype, gradient, few, monkeypatch):
    monkeypatch.setattr(quick_ops, "FEW_SCORES", few)
    q, k, v = (torch.randn(2, 3, 7, 4).to(dtype).requires_grad_(gradient) for _ in range(3))
    own = functional.scaled_dot_product_attention(q, k, v)
    with quick_operations(CPU):
        assert torch.equal(functional.scaled_dot_product_attention(q, k, v), own)


def test_on_another_device_nothing_is_replaced():
    torch.manual_seed(0)
    expected = functional.dropout(torch.ones(50), 0.5)
    torch.manual_seed(0)
    with quick_operations(torch.device("cuda")):
        assert torch.equal(functional.dropout(torch.ones(50), 0.5), expected)
    torch.manual_seed(0)
    with quick_operations(CPU):
        assert not torch.equal(functional.dropout(torch.ones(50), 0.5), expected)


def test_gradient_checkpointing_draws_the_same_masks_again():
    def step(x):
        return functional.dropout(x, 0.5) ** 2

    x = torch.ones(200, requires_grad=True)
    with quick_operations(CPU):
        y = torch.utils.checkpoint.checkpoint(step, x, use_reentrant=False)
        y.sum().backward()
    assert torch.equal(x.grad, 2 * y.detach())
