"""Decisions about the machine, each against a machine, a launch or a network made up for it."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.runtime import devices
from hftransfer.runtime.launch import World, launched_world

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


FAULTS = """
import resource
from hftransfer.runtime.devices import keep_freed_memory
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
    monkeypatch.setattr(devices.platform, "libc_ver", lambda: ("", ""))
    assert devices.keep_freed_memory() is False


SPIN = "from hftransfer.runtime.devices import wait_briefly\nprint(wait_briefly())\nimport torch\nprint(wait_briefly())"


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")
@pytest.mark.parametrize(("user", "done", "turns"), [({}, True, "10000"), ({"GOMP_SPINCOUNT": "77"}, False, "77")])
def test_idle_threads_spin_briefly_unless_the_user_says_otherwise(user, done, turns):
    environment = os.environ | {"OMP_DISPLAY_ENV": "VERBOSE"} | user
    answer = subprocess.run([sys.executable, "-c", SPIN], env=environment, capture_output=True, text=True)
    assert answer.stdout.split() == [str(done), "False"]
    assert f"GOMP_SPINCOUNT = '{turns}'" in answer.stderr


def test_world_of_a_plain_start_and_of_torchrun(monkeypatch):
    assert launched_world() == World(0, 1, 0, 1)
    launched = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert launched_world() == World(3, 4, 1, 2)


def test_world_of_mpi(monkeypatch):
    launched = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    for name, value in (launched | {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    assert launched_world() == World(1, 2, 1, 2)


@pytest.mark.parametrize("switch, name", [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")])
def test_a_launch_that_divides_the_network_is_refused(monkeypatch, switch, name):
    monkeypatch.setenv(switch, "false")
    launched_world()
    monkeypatch.setenv(switch, "true")
    with pytest.raises(UserError) as caught:
        launched_world()
    assert str(caught.value) == (
        f"This launch divides the network among its processes ({name}). hftransfer trains only networks that are whole "
        "in each: running one from a split point, averaging and merging were not tested on divided ones. Answer no "
        f"to {name} in `accelerate config`, or start with `accelerate launch --multi_gpu --num_processes N ...`; for "
        "less memory take strategy probe or lora, or training.gradient_checkpointing=true."
    )


def test_fewer_processes_than_asked_for_is_an_error(monkeypatch):
    # What `accelerate launch --cpu --num_processes 2` leaves in the environment of the one process it starts.
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        launched_world()
    assert str(caught.value) == (
        "`accelerate launch` was asked for several processes but started only this one, as it does on a machine "
        "without a GPU. Start with `accelerate launch --multi_gpu --num_processes 2 ...` (it works on CPUs too) or "
        "`torchrun --nproc_per_node 2 ...`, or ask for one process."
    )
    monkeypatch.delenv("MASTER_PORT")  # `accelerate launch --cpu` that asks for one process
    assert launched_world().size == 1


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
    script.write_text("from hftransfer.runtime.launch import launched_world\nprint('started', launched_world().size)\n")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    answer = subprocess.run(
        [sys.executable, "-m", *launcher, str(script)], env=environment, capture_output=True, text=True
    )
    assert answer.stdout.count(f"started {processes}") == processes
    assert ("Start with `accelerate launch --multi_gpu" in answer.stderr) == (processes == 0)


def test_device_is_the_cpu_when_asked_for_or_alone(monkeypatch):
    monkeypatch.setattr(devices, "_accelerator", lambda: "mps")
    assert devices.choose_device().type == "mps"
    assert devices.choose_device(use_cpu=True) == CPU
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert devices.choose_device() == CPU


def test_one_process_uses_one_of_several_gpus(monkeypatch, caplog):
    monkeypatch.setattr(devices, "_accelerator", lambda: "cuda")
    monkeypatch.setattr(devices, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert devices.choose_device(World(1, 2, 1, 2)) == torch.device("cuda", 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    caplog.set_level("INFO")
    assert devices.choose_device() == torch.device("cuda", 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"  # the environment is the caller's
    assert "accelerate launch --num_processes 2" in caplog.text


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "threads"),
    [(8, 1, None, 4), (8, 4, None, 2), (2, 4, None, 1), (8, 1, "2", 2), (8, 4, "4", 2), (3, 1, "64", 3)],
)
def test_processes_times_threads_never_exceeds_the_cores(monkeypatch, cores, processes, asked, threads):
    torch.set_num_threads(4)
    monkeypatch.setattr(devices, "available_cores", lambda: cores)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    plan = devices.thread_plan(CPU, World(0, processes, 0, processes))
    assert plan.threads == threads == torch.get_num_threads() and plan.workers == 0


def test_workers_on_a_gpu_are_bounded_by_cores_and_shared_memory(monkeypatch):
    gpu, megabytes = torch.device("cuda", 0), 2**20
    monkeypatch.setattr(devices, "available_cores", lambda: 16)
    monkeypatch.setattr(devices, "_shared_memory_bytes", lambda: 64 * megabytes)  # what Docker gives
    assert devices.thread_plan(gpu, batch_bytes=40 * megabytes).workers == 0
    assert devices.thread_plan(gpu, batch_bytes=10 * megabytes).workers == 2
    monkeypatch.setattr(devices, "_shared_memory_bytes", lambda: sys.maxsize)
    assert devices.thread_plan(gpu).workers == 8
    assert devices.thread_plan(gpu, World(0, 4, 0, 4)).workers == 3


def test_channels_last_is_for_convolution_networks():
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4))
    patches = nn.Sequential(nn.Conv2d(3, 4, 16, stride=16))
    x = torch.randn(2, 3, 32, 32)
    before = convolutions(x)
    assert devices.channels_last(convolutions) is True and devices.channels_last(patches) is False
    assert convolutions[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert convolutions(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(convolutions(x), before)
    assert devices.channels_last(nn.Linear(2, 2)) is False


def test_peak_memory_and_hardware():
    before = devices.peak_memory()
    assert before > 50 * 2**20
    block = torch.ones(before // 4)  # four bytes each
    assert devices.peak_memory(CPU) > before * 1.2
    del block
    facts = json.loads(json.dumps(devices.hardware(CPU)))
    assert facts["device_type"] == "cpu" and facts["cores"] >= 1 and facts["memory_bytes"] > before
    assert facts["torch"] == torch.__version__
