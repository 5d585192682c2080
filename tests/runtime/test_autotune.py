"""Short trials on networks made up for them: what they choose, and that they leave the network as it was."""

import time

import pytest
import torch
from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.runtime import autotune

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short_trials(monkeypatch):
    monkeypatch.setattr(autotune, "TRIAL_SECONDS", 0.03)


class Timed(nn.Module):
    """A network that takes `fp32` seconds, or `bf16` seconds under autocast, and is off by `error` there."""

    def __init__(self, fp32=0.002, bf16=0.002, error=0.0):
        super().__init__()
        self.fp32, self.bf16, self.error = fp32, bf16, error
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        fast = torch.is_autocast_enabled("cpu")
        time.sleep(self.bf16 if fast else self.fp32)
        return (self.norm(x) + 100 + (self.error * torch.randn(x.shape) if fast else 0),)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Timed(fp32=0.004), "bf16"),
        (Timed(fp32=0.002), "fp32"),
        (Timed(fp32=0.004, error=0.02), "bf16"),
        (Timed(fp32=0.004, error=0.5), "fp32"),  # small beside the constant 100, large beside the rows' spread
    ],
)
def test_bf16_is_taken_where_it_is_faster_and_right(network, expected):
    torch.manual_seed(0)
    assert autotune.measure_precision(network, {"x": torch.randn(6, 4)}, CPU) == expected


def test_a_disturbance_meets_both_precisions(monkeypatch):
    """Another program takes the machine for a while in the middle of the trial: one precision alone must not pay for it."""
    monkeypatch.setattr(autotune, "TRIAL_SECONDS", 0.1)

    class Disturbed(Timed):
        passes = 0

        def forward(self, x):
            self.passes += 1
            if 25 < self.passes < 90:
                time.sleep(0.02)
            return super().forward(x)

    assert autotune.measure_precision(Disturbed(fp32=0.004), {"x": torch.randn(6, 4)}, CPU) == "bf16"


@pytest.mark.parametrize(("first", "second", "expected"), [
    ([0.3, 0.3, 0.3, 0.1], [0.5, 0.5, 0.1], [0.3, 0.1]),  # two busy moments do not decide
    ([1.2, 0.1], [2.0, 0.1], [1.2, 2.0]),  # what takes a second is timed once
    ([0.6, 0.5, 0.1], [0.6, 0.5, 0.1], [0.5, 0.5]),
])  # fmt: skip
def test_how_often_something_is_timed(monkeypatch, first, second, expected):
    taken = {"first": iter(first), "second": iter(second)}
    monkeypatch.setattr(autotune, "seconds_of", lambda step, device: next(taken[step]))
    assert autotune.best_seconds(["first", "second"], CPU) == expected


def test_precision_of_training_is_measured_with_the_way_back():
    class SlowBack(torch.autograd.Function):
        @staticmethod
        def forward(context, x, seconds):
            context.seconds = seconds
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            time.sleep(context.seconds)
            return gradient, None

    class TwoWays(Timed):  # forward 4 and 2 ms, back 2 and 20 ms
        def forward(self, x):
            return (SlowBack.apply(super().forward(x)[0], 0.02 if torch.is_autocast_enabled("cpu") else 0.002),)

    network, batch = TwoWays(fp32=0.004), {"x": torch.randn(6, 4)}
    assert autotune.measure_precision(network, batch, CPU) == "bf16"
    assert autotune.measure_precision(network, batch, CPU, training=True) == "fp32"


def test_a_trial_of_training_compares_outputs_of_the_same_network():
    """Statistics of norms move in every training pass: they must not be taken for an error of bf16."""
    torch.manual_seed(0)
    network, batch = Timed(fp32=0.004), {"x": 5 + 3 * torch.randn(6, 4)}
    assert autotune.measure_precision(network, batch, CPU, training=True) == "bf16"


def test_what_a_trial_found_is_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path))
    assert (
        autotune.remembered("a", lambda: {"size": 8}) == autotune.remembered("a", lambda: {"size": 16}) == {"size": 8}
    )
    assert autotune.remembered("b", lambda: {"size": 16}) == {"size": 16}
    (damaged,) = [path for path in tmp_path.glob("trials/*.json") if "16" in path.read_text()]
    damaged.write_text('{"si')
    assert autotune.remembered("b", lambda: {"size": 32}) == {"size": 32}


def test_fp32_where_bf16_fails(caplog):
    class Failing(Timed):
        def forward(self, x):
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("no bf16 form")
            return super().forward(x)

    caplog.set_level("INFO")
    assert autotune.measure_precision(Failing(), {"x": torch.randn(6, 4)}, CPU) == "fp32"
    assert "bf16 fails: no bf16 form" in caplog.text


def test_trials_leave_the_network_as_it_was():
    network = nn.Sequential(Timed(), nn.Dropout())
    network.train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    inner = network[0]
    seed = torch.random.get_rng_state()
    for training in (False, True):
        autotune.measure_precision(inner, {"x": torch.ones(6, 4)}, CPU, training)
    autotune.batch_size_for_inference(inner, lambda rows: {"x": torch.ones(rows, 4)}, CPU)
    assert torch.equal(seed, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [module.training for module in network.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_forward_context_computes_in_bf16_without_gradients():
    layer, x = nn.Linear(3, 2), torch.randn(1, 3)
    with autotune.forward_context("bf16", CPU):
        assert layer(x).dtype == torch.bfloat16 and not layer(x).requires_grad
    with autotune.forward_context("fp32", CPU):
        assert layer(x).dtype == torch.float32 and not layer(x).requires_grad


@pytest.mark.parametrize(("fixed", "per_row", "expected"), [(0.02, 0.0, 32), (0.0, 0.001, 8), (0.012, 0.0006, 32)])
def test_inference_batch_grows_while_a_row_gets_cheaper(fixed, per_row, expected):
    class Sized(nn.Module):
        def forward(self, x):
            time.sleep(fixed + per_row * len(x))
            return (x,)

    assert autotune.batch_size_for_inference(Sized(), lambda rows: {"x": torch.ones(rows, 1)}, CPU) == expected


@pytest.mark.parametrize("rows_that_fit", [16, 5, 1])
def test_inference_batch_fits_into_memory(rows_that_fit, monkeypatch):
    class Small(nn.Module):
        def forward(self, x):
            if len(x) > rows_that_fit:
                raise torch.OutOfMemoryError("too large")
            time.sleep(0.005)
            return (x,)

    def batch_size():
        return autotune.batch_size_for_inference(Small(), lambda rows: {"x": torch.ones(rows, 1)}, CPU)

    assert batch_size() == {16: 16, 5: 4, 1: 1}[rows_that_fit]
    rows_that_fit = 0
    with pytest.raises(UserError, match="does not hold the network and one row. Take a smaller network"):
        batch_size()


def test_bf16_that_is_emulated_is_given_up_after_one_row(caplog):
    """On a CPU without it a decoder's trial took 140 seconds."""

    class Emulated(Timed):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    seen: list[int] = []
    with caplog.at_level("INFO"):
        assert autotune.measure_precision(Emulated(fp32=0.001, bf16=0.02), {"x": torch.randn(6, 4)}, CPU) == "fp32"
    assert set(seen) == {1} and "much slower on one row" in caplog.text
