"""Measures what channels-last, bf16 autocast, the allocator and fused normalisation bring on this machine's CPU.

    python scripts/measure_compute.py [--threads 2] [--seconds 0.8] [--rounds 3]

EfficientNet-lite0 at 224 px (batch 16) and a 6-layer, 384-wide BERT (32 sequences of 64 tokens), random weights: speed
depends on the shapes alone. Rows per second of the fastest step in all rounds: what disturbs a step only adds. Each
allocator setting runs in a process of its own, since it can be chosen only before the first large allocation.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable


def models() -> dict[str, tuple]:
    """Name -> (model, inputs)."""
    import timm
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    image_model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=10)
    shape = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    text_model = BertForSequenceClassification(BertConfig(**shape, num_labels=10))
    tokens = torch.randint(1000, 30000, (32, 64))
    return {
        "EfficientNet-lite0, 16 x 224 px": (image_model, torch.randn(16, 3, 224, 224)),
        "MiniLM shape, 32 x 64 tokens": (text_model, tokens),
    }


def rows_per_second(step: Callable[[], None], rows: int, seconds: float) -> float:
    """Speed of the fastest of as many steps as fit into `seconds`, after one to warm up."""
    step()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return rows / min(times)


def steps(model, inputs, bf16: bool) -> dict[str, Callable[[], None]]:
    """One forward pass without gradients, and one step of AdamW."""
    import torch

    targets = torch.arange(len(inputs)) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def logits():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = model(inputs)
        return getattr(output, "logits", output)

    def forward():
        model.eval()
        with torch.inference_mode():
            logits()

    def training_step():
        model.train()
        torch.nn.functional.cross_entropy(logits().float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"forward": forward, "training step": training_step}


def measure(name: str, model, inputs, settings: list[str], phases: list[str], seconds: float, allocator: str) -> None:
    """Print one JSON line per setting and phase."""
    import torch

    for setting in settings:
        if inputs.ndim == 4:
            layout = torch.channels_last if setting in ("channels-last", "both") else torch.contiguous_format
            model, inputs = model.to(memory_format=layout), inputs.contiguous(memory_format=layout)
        runs = steps(model, inputs, bf16=setting in ("bf16", "both"))
        for phase in phases:
            speed = rows_per_second(runs[phase], len(inputs), seconds)
            print(json.dumps([name, setting, phase, allocator, speed]), flush=True)


def fuse_batch_norm(model, inputs) -> None:
    """Folds every BatchNorm that reads a convolution's output into that convolution, in place."""
    import torch
    from torch.nn.utils import fuse_conv_bn_weights

    writers, pairs = {}, []

    def note(module, arguments, output):
        if isinstance(module, torch.nn.BatchNorm2d) and id(arguments[0]) in writers:
            pairs.append((writers[id(arguments[0])][0], module))
        if isinstance(module, torch.nn.Conv2d):
            writers[id(output)] = (module, output)  # the output is held, so that its id is not given away again

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    with torch.no_grad():
        model.eval()(inputs[:1])
    [hook.remove() for hook in hooks]
    for convolution, norm in pairs:
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        norm.forward = getattr(norm, "act", torch.nn.Identity())


def child(arguments: argparse.Namespace) -> None:
    from hftransfer.runtime.devices import keep_freed_memory

    allocator = "kept" if keep_freed_memory() else "as is"
    import torch

    torch.set_num_threads(arguments.threads)
    for name, (model, inputs) in models().items():
        settings = ["fp32", "channels-last", "bf16", "both"] if inputs.ndim == 4 else ["fp32", "bf16"]
        measure(name, model, inputs, settings, ["forward", "training step"], arguments.seconds, allocator)
        if inputs.ndim == 4:
            fuse_batch_norm(model, inputs)
            measure(f"{name}, norms fused", model, inputs, settings, ["forward"], arguments.seconds, allocator)


def parent(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    results: dict[tuple, dict[str, float]] = {}
    for switch in ["0", "1"] * arguments.rounds:
        command = [sys.executable, __file__, "--child", *sys.argv[1:]]
        environment = os.environ | {"HFTRANSFER_MALLOPT": switch, "OMP_NUM_THREADS": str(arguments.threads)}
        lines = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        for name, setting, phase, allocator, speed in map(json.loads, lines.splitlines()):
            speeds = results.setdefault((name, phase, setting), {})
            speeds[allocator] = max(speed, speeds.get(allocator, 0))
    table = Table(title=f"Rows per second, {arguments.threads} threads")
    for column in ["network", "phase", "setting", "memory as is", "memory kept", "gain"]:
        table.add_column(column, justify="right" if column[:3] in ("mem", "gai") else "left")
    for (name, phase, setting), speeds in results.items():
        plain, kept = speeds["as is"], speeds.get("kept", float("nan"))
        table.add_row(name, phase, setting, f"{plain:.1f}", f"{kept:.1f}", f"{kept / plain:.2f}x")
    Console(width=120).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.8, help="per setting and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    child(parsed) if parsed.child else parent(parsed)
