"""Decisions about the machine, each against a machine, a launch or a network made up for it."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from hftransfer import compute
from hftransfer.compute import World
from hftransfer.errors import UserError

CPU = torch.device("cpu")
SPINNING = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"]
LAUNCH = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in [
        *LAUNCH,
        "ACCELERATE_USE_CPU",
        "OMP_NUM_THREADS",
        "HFTRANSFER_MALLOPT",
        "CUDA_VISIBLE_DEVICES",
        *SPINNING,
    ]:
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def short_trials(monkeypatch):
    monkeypatch.setattr(compute, "TRIAL_SECONDS", 0.03)


FAULTS = """
import resource
from hftransfer.compute import keep_freed_memory
kept = keep_freed_memory()
import numpy as np
for _ in range(3): np.ones(5_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): np.ones(5_000_000)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults of glibc")
def test_kept_memory_is_reused_without_page_faults():
    def faults(switch):
        environment = os.environ | {"HFTRANSFER_MALLOPT": switch}
        answer = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True)
        return tuple(map(int, answer.stdout.split()))

    (off, many), (on, few) = faults("0"), faults("1")
    assert (off, on) == (0, 1)
    assert few < many / 10


def test_memory_is_left_alone_without_glibc(monkeypatch):
    monkeypatch.setattr(compute.platform, "libc_ver", lambda: ("", ""))
    assert compute.keep_freed_memory() is False


SPIN = "from hftransfer.compute import wait_briefly\nprint(wait_briefly())\nimport torch\nprint(wait_briefly())"


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")
@pytest.mark.parametrize(("user", "done", "turns"), [({}, True, "10000"), ({"GOMP_SPINCOUNT": "77"}, False, "77")])
def test_idle_threads_spin_briefly_unless_the_user_says_otherwise(user, done, turns):
    environment = os.environ | {"OMP_DISPLAY_ENV": "VERBOSE"} | user
    answer = subprocess.run([sys.executable, "-c", SPIN], env=environment, capture_output=True, text=True)
    assert answer.stdout.split() == [str(done), "False"]
    assert f"GOMP_SPINCOUNT = '{turns}'" in answer.stderr


def test_world_of_a_plain_start_and_of_torchrun(monkeypatch):
    assert compute.launched_world() == World(0, 1, 0, 1)
    launched = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert compute.launched_world() == World(3, 4, 1, 2)


def test_world_of_mpi(monkeypatch):
    launched = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    for name, value in (launched | {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    assert compute.launched_world() == World(1, 2, 1, 2)


@pytest.mark.parametrize("switch, name", [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")])
def test_a_launch_that_divides_the_network_is_refused(monkeypatch, switch, name):
    monkeypatch.setenv(switch, "false")
    compute.launched_world()
    monkeypatch.setenv(switch, "true")
    with pytest.raises(UserError) as caught:
        compute.launched_world()
    assert str(caught.value) == (
        f"This launch divides the network among its processes ({name}). hftransfer needs it whole in each: it "
        f"hashes what must not move, and stores features. Answer no to {name} in `accelerate config`, or start with "
        "`accelerate launch --multi_gpu --num_processes N ...`; for less memory take strategy lora, or "
        "training.gradient_checkpointing=true."
    )


def test_fewer_processes_than_asked_for_is_an_error(monkeypatch):
    # What `accelerate launch --cpu --num_processes 2` leaves in the environment of the one process it starts.
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        compute.launched_world()
    assert str(caught.value) == (
        "`accelerate launch` was asked for several processes but started only this one, as it does on a machine "
        "without a GPU. Start with `accelerate launch --multi_gpu --num_processes 2 ...` (it works on CPUs too) or "
        "`torchrun --nproc_per_node 2 ...`, or ask for one process."
    )
    monkeypatch.delenv("MASTER_PORT")  # `accelerate launch --cpu` that asks for one process
    assert compute.launched_world().size == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        (["accelerate.commands.launch", "--cpu", "--num_processes", "2"], 0),
        (["accelerate.commands.launch", "--num_processes", "1"], 1),
        (["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"], 2),
        (["torch.distributed.run", "--nproc_per_node", "2"], 2),
    ],
)
def test_world_of_real_launchers(tmp_path, launcher, processes):
    script = tmp_path / "script.py"
    script.write_text("from hftransfer.compute import launched_world\nprint('started', launched_world().size)\n")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    answer = subprocess.run(
        [sys.executable, "-m", *launcher, str(script)], env=environment, capture_output=True, text=True
    )
    assert answer.stdout.count(f"started {processes}") == processes
    assert ("Start with `accelerate launch --multi_gpu" in answer.stderr) == (processes == 0)


def test_device_is_the_cpu_when_asked_for_or_alone(monkeypatch):
    monkeypatch.setattr(compute, "_accelerator", lambda: "mps")
    assert compute.choose_device().type == "mps"
    assert compute.choose_device(use_cpu=True) == CPU
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert compute.choose_device() == CPU


def test_one_process_uses_one_of_several_gpus(monkeypatch, caplog):
    monkeypatch.setattr(compute, "_accelerator", lambda: "cuda")
    monkeypatch.setattr(compute, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert compute.choose_device(World(1, 2, 1, 2)) == torch.device("cuda", 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    caplog.set_level("INFO")
    assert compute.choose_device() == torch.device("cuda", 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert "accelerate launch --num_processes 2" in caplog.text


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "threads"),
    [(8, 1, None, 4), (8, 4, None, 2), (2, 4, None, 1), (8, 1, "2", 2), (8, 4, "4", 2), (3, 1, "64", 3)],
)
def test_processes_times_threads_never_exceeds_the_cores(monkeypatch, cores, processes, asked, threads):
    torch.set_num_threads(4)
    monkeypatch.setattr(compute, "available_cores", lambda: cores)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    plan = compute.thread_plan(CPU, World(0, processes, 0, processes))
    assert plan.threads == threads == torch.get_num_threads() and plan.workers == 0


def test_workers_on_a_gpu_are_bounded_by_cores_and_shared_memory(monkeypatch):
    gpu, megabytes = torch.device("cuda", 0), 2**20
    monkeypatch.setattr(compute, "available_cores", lambda: 16)
    monkeypatch.setattr(compute, "_shared_memory_bytes", lambda: 64 * megabytes)  # what Docker gives
    assert compute.thread_plan(gpu, batch_bytes=40 * megabytes).workers == 0
    assert compute.thread_plan(gpu, batch_bytes=10 * megabytes).workers == 2
    monkeypatch.setattr(compute, "_shared_memory_bytes", lambda: sys.maxsize)
    assert compute.thread_plan(gpu).workers == 8
    assert compute.thread_plan(gpu, World(0, 4, 0, 4)).workers == 3


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
    assert compute.measure_precision(network, {"x": torch.randn(6, 4)}, CPU) == expected


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
    assert compute.measure_precision(network, batch, CPU) == "bf16"
    assert compute.measure_precision(network, batch, CPU, training=True) == "fp32"


def test_a_trial_of_training_compares_outputs_of_the_same_network():
    """Statistics of norms move in every training pass: they must not be taken for an error of bf16."""
    torch.manual_seed(0)
    network, batch = Timed(fp32=0.004), {"x": 5 + 3 * torch.randn(6, 4)}
    assert compute.measure_precision(network, batch, CPU, training=True) == "bf16"


def test_what_a_trial_found_is_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path))
    assert compute.remembered("a", lambda: {"size": 8}) == compute.remembered("a", lambda: {"size": 16}) == {"size": 8}
    assert compute.remembered("b", lambda: {"size": 16}) == {"size": 16}
    (damaged,) = [path for path in tmp_path.glob("trials/*.json") if "16" in path.read_text()]
    damaged.write_text('{"si')
    assert compute.remembered("b", lambda: {"size": 32}) == {"size": 32}


def test_fp32_where_bf16_fails(caplog):
    class Failing(Timed):
        def forward(self, x):
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("no bf16 form")
            return super().forward(x)

    caplog.set_level("INFO")
    assert compute.measure_precision(Failing(), {"x": torch.randn(6, 4)}, CPU) == "fp32"
    assert "bf16 fails: no bf16 form" in caplog.text


def test_trials_leave_the_network_as_it_was():
    network = nn.Sequential(Timed(), nn.Dropout())
    network.train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    inner = network[0]
    seed = torch.random.get_rng_state()
    for training in (False, True):
        compute.measure_precision(inner, {"x": torch.ones(6, 4)}, CPU, training)
    compute.batch_size_for_inference(inner, lambda rows: {"x": torch.ones(rows, 4)}, CPU)
    assert torch.equal(seed, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [module.training for module in network.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_forward_context_computes_in_bf16_without_gradients():
    layer, x = nn.Linear(3, 2), torch.randn(1, 3)
    with compute.forward_context("bf16", CPU):
        assert layer(x).dtype == torch.bfloat16 and not layer(x).requires_grad
    with compute.forward_context("fp32", CPU):
        assert layer(x).dtype == torch.float32 and not layer(x).requires_grad


def test_channels_last_is_for_convolution_networks():
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4))
    patches = nn.Sequential(nn.Conv2d(3, 4, 16, stride=16))
    x = torch.randn(2, 3, 32, 32)
    before = convolutions(x)
    assert compute.channels_last(convolutions) is True and compute.channels_last(patches) is False
    assert convolutions[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert convolutions(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(convolutions(x), before)
    assert compute.channels_last(nn.Linear(2, 2)) is False


@pytest.mark.parametrize(("fixed", "per_row", "expected"), [(0.02, 0.0, 32), (0.0, 0.001, 8), (0.012, 0.0006, 32)])
def test_inference_batch_grows_while_a_row_gets_cheaper(fixed, per_row, expected):
    class Sized(nn.Module):
        def forward(self, x):
            time.sleep(fixed + per_row * len(x))
            return (x,)

    assert compute.batch_size_for_inference(Sized(), lambda rows: {"x": torch.ones(rows, 1)}, CPU) == expected


@pytest.mark.parametrize("rows_that_fit", [16, 5, 1])
def test_inference_batch_fits_into_memory(rows_that_fit, monkeypatch):
    class Small(nn.Module):
        def forward(self, x):
            if len(x) > rows_that_fit:
                raise torch.OutOfMemoryError("too large")
            time.sleep(0.005)
            return (x,)

    def batch_size():
        return compute.batch_size_for_inference(Small(), lambda rows: {"x": torch.ones(rows, 1)}, CPU)

    assert batch_size() == {16: 16, 5: 4, 1: 1}[rows_that_fit]
    rows_that_fit = 0
    with pytest.raises(UserError, match="does not hold the network and one row. Take a smaller network"):
        batch_size()


def test_peak_memory_and_hardware():
    before = compute.peak_memory()
    assert before > 50 * 2**20
    block = torch.ones(before // 4)  # four bytes each
    assert compute.peak_memory(CPU) > before * 1.2
    del block
    facts = json.loads(json.dumps(compute.hardware(CPU)))
    assert facts["device_type"] == "cpu" and facts["cores"] >= 1 and facts["memory_bytes"] > before
    assert facts["torch"] == torch.__version__
