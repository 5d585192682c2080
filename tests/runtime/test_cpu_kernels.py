"""What a CPU trains faster with, against torch's own: the same numbers without dropout, the same distribution with it."""

import threading

import pytest
import torch
import torch.utils.checkpoint
from torch.nn import functional

from hftransfer.runtime import cpu_kernels
from hftransfer.runtime.cpu_kernels import quick_operations

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
    assert not torch.equal(cpu_kernels.mask(torch.ones(50), 0.5), cpu_kernels.mask(torch.ones(50), 0.5))


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
    monkeypatch.setattr(cpu_kernels, "mask", lambda like, rate: torch.ones_like(like))
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
    monkeypatch.setattr(cpu_kernels, "FEW_SCORES", few)
    q, k, v = (torch.randn(2, 3, 7, 4).to(dtype).requires_grad_(gradient) for _ in range(3))
    own = functional.scaled_dot_product_attention(q, k, v)
    with quick_operations(CPU):
        assert torch.equal(functional.scaled_dot_product_attention(q, k, v), own)


def convolved(x, weight, bias, **settings):
    """Output and gradients of input, weight and bias, with weights of the task that differ from place to place."""
    y = functional.conv2d(x, weight, bias, **settings)
    places = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return y, *torch.autograd.grad((y.float() * places).sum(), [x, weight, *([] if bias is None else [bias])])


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 7), (2, 5), (1, 4)])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("padding", [0, 2, (1, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_depthwise_convolution_in_bfloat16_is_torchs(kernel, stride, padding, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 6, 11, 14, requires_grad=True), torch.randn(6, 1, *kernel, requires_grad=True)
    given = (x, weight, torch.randn(6, requires_grad=True) if bias else None)
    settings = {"stride": stride, "padding": padding, "groups": 6}
    exact = convolved(*given, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        own = convolved(*given, **settings)
        with quick_operations(CPU):
            found = convolved(*given, **settings)
    for ours, torchs, float32 in zip(found, own, exact, strict=True):
        assert ours.dtype == torchs.dtype and ours.shape == torchs.shape
        scale = float32.abs().max()
        assert (ours - float32).abs().max() <= 0.02 * scale and (ours - torchs).abs().max() <= 0.02 * scale


SLOW_BACK = {"weight": (6, 1, 5, 5), "padding": 2, "groups": 6}


@pytest.mark.parametrize(
    "other",
    [{"dtype": torch.float32}, {"weight": (6, 6, 5, 5), "groups": 1}, {"weight": (12, 1, 5, 5)}, {"dilation": 2},
     {"padding": "same"}, {"weight": (6, 1, 3, 3)}, {"shape": (6, 12, 12)}],
    ids=str,
)  # fmt: skip
def test_other_convolutions_are_torchs_own(other):
    def made(shape=(2, 6, 12, 12), dtype=torch.bfloat16, weight=(), **settings):
        torch.manual_seed(0)
        return functional.conv2d(
            torch.randn(shape).to(dtype), torch.randn(weight).to(dtype).requires_grad_(), **settings
        )

    own = made(**SLOW_BACK | other)
    with quick_operations(CPU):
        assert type(made(**SLOW_BACK).grad_fn).__name__ == "_DepthwiseBackward"
        found = made(**SLOW_BACK | other)
    assert torch.equal(found, own) and type(found.grad_fn) is type(own.grad_fn)


def test_a_frozen_convolution_has_no_gradient_and_passes_its_inputs():
    x, weight = torch.randn(2, 6, 8, 8, requires_grad=True), torch.randn(6, 1, 5, 5)
    with quick_operations(CPU), torch.autocast("cpu", torch.bfloat16):
        functional.conv2d(x, weight, groups=6).float().sum().backward()
    assert x.grad is not None and weight.grad is None
    with quick_operations(CPU), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert not functional.conv2d(x, weight, groups=6).requires_grad


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


def test_other_threads_keep_torchs_operations():
    """A thread that did not ask for quick operations computes with torch's, while another trains."""
    inside, done = threading.Event(), threading.Event()

    def elsewhere():
        with quick_operations(CPU):
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert inside.wait(60)
    try:
        torch.manual_seed(0)
        here = functional.dropout(torch.ones(1000), 0.5)
        torch.manual_seed(0)
        assert torch.equal(here, cpu_kernels._torchs_dropout(torch.ones(1000), 0.5))
        with quick_operations(CPU):
            torch.manual_seed(0)
            assert not torch.equal(functional.dropout(torch.ones(1000), 0.5), here)
    finally:
        done.set()
        thread.join()
    assert functional.dropout is cpu_kernels._torchs_dropout


def test_quick_operations_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("HFTRANSFER_CPU_KERNELS", "0")
    with quick_operations(CPU):
        assert functional.dropout is cpu_kernels._torchs_dropout
    assert cpu_kernels.replaced() == ()
