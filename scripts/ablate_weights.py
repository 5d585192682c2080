"""Compare the weights of a training: the chosen step, the last, a mean, and those half the way from the head.

    python scripts/ablate_weights.py --data-root DATA --out weights.jsonl --cells digits:20:0 sick:100:0 [--steps 100]
    python scripts/ablate_weights.py --render weights.jsonl

A cell is set:labels a class:seed, as in `scripts/advice.py`. All weights come from one training, and answer the same test rows
(at most 400). `mean` averages the second half of the steps; `half` lies between the start and `last`, `half mean` between
the start and `mean` (Wortsman et al. 2021, arXiv 2109.01903). Log-losses follow a temperature of the validation part.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import torch
from advice import METRIC, SETS, draw
from transformers import TrainerCallback

TEST_ROWS = 400
ARMS = {
    "picture": {
        "full": {"strategy.type": "full"},
        "full, probe head": {"strategy.type": "full", "strategy.head_init": "probe"},
        "frozen": {"strategy.type": "frozen"},
        "lora": {"strategy.type": "lora"},
    },
    "words": {
        "full, last layer": {"strategy.type": "full"},
        "full, best layer": {"strategy.type": "full", "head.layer": "best"},
        "frozen, best layer": {"strategy.type": "frozen", "head.layer": "best"},
    },
}


class Keep(TrainerCallback):
    """Keeps the mean of what trains over the second half of the steps, and the last."""

    def __init__(self, model: torch.nn.Module):
        self.model, self.count, self.mean, self.last = model, 0, {}, {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if 2 * state.global_step <= state.max_steps:
            return
        self.count += 1
        for name, tensor in movable(self.model).items():
            found = self.mean.setdefault(name, torch.zeros_like(tensor))
            found += (tensor.detach() - found) / self.count
        if state.global_step == state.max_steps:
            self.last = copied(self.model)


def movable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in movable(model).items()}


def put(model: torch.nn.Module, values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in movable(model).items():
            tensor.copy_(values[name])


def between(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    return {name: torch.lerp(a[name], b[name], share) for name in a}


def measured(config: Any) -> dict[str, Any]:
    """Train once and return the metrics of the test part with each choice of weights."""
    from hftransfer.data import load_data
    from hftransfer.evaluation.calibration import calibrated_log_loss
    from hftransfer.evaluation.metrics import compute_metrics
    from hftransfer.models.layers import LayerGroups
    from hftransfer.models.loading import load_checkpoint
    from hftransfer.pipeline.activations import network_predictions, stored_activations
    from hftransfer.pipeline.run_context import prepare, solve_head
    from hftransfer.runtime import devices
    from hftransfer.runtime.interruption import Stop
    from hftransfer.runtime.launch import launched_world
    from hftransfer.training import trainer as loop
    from hftransfer.training.examples import Examples

    begin, world = time.perf_counter(), launched_world()
    data = load_data(config.data)
    config = config.resolved(data)
    config = config.model_copy(update={"model": data.fitted(config.model)})
    torch.manual_seed(config.seed)
    checkpoint = load_checkpoint(config.model, data.kind, data.task, False)
    with tempfile.TemporaryDirectory() as scratch:
        device = devices.choose_device(world, True)
        context = prepare(config, data, checkpoint, device, world, Path(scratch) / "features")
        probe = solve_head(context)
        plan = config.strategy.prepare(context.model, LayerGroups.of(context.model, probe.constant if probe else ()))
        split_point, stored = stored_activations(context, plan)
        train, validation = context.positions("train"), context.positions("validation")
        examples = Examples(context.items, context.targets, context.modality, data.task, train, validation, stored)
        defaults = config.strategy.defaults_for(data.kind, context.model)
        setup = loop.Setup(
            config.training, defaults, context.compute_config, config.seed, context.begins_trained(probe)
        )
        plan.freeze()
        start, keep = copied(plan.model), Keep(plan.model)
        own, loop._callbacks = loop._callbacks, lambda *given: [*own(*given), keep]
        found: dict[str, Any] = {}

        def note(name: str) -> None:
            plan.model.eval()
            predictions = network_predictions(context, plan, stored)
            parts = {}
            for part in ("validation", "test"):
                one = predictions.of_split(data.frame, part)
                parts[part] = (data.task.in_units(one.logits), context.targets[one.positions])
            logits, targets = parts["test"]
            values = compute_metrics(data.task, targets, data.task.probabilities(logits))
            found[name] = {"value": values[METRIC[data.task.headline]]}
            if data.task.has_classes:
                both = [np.concatenate(pair) for pair in zip(parts["validation"], parts["test"], strict=True)]
                found[name]["log_loss"] = values.get("log_loss", float("nan"))
                found[name]["calibrated"] = calibrated_log_loss(data.task, *both)

        with split_point.replaying() if split_point else nullcontext():
            if setup.begins_trained:
                note("start")
            try:
                loop.train(plan, examples, setup, Path(scratch), Stop())
            finally:
                loop._callbacks = own
            note("chosen step")
            weights = {"last": keep.last, "mean": keep.mean}
            if setup.begins_trained:
                weights |= {
                    "half": between(start, keep.last, 0.5), "half mean": between(start, keep.mean, 0.5),
                    "three quarters mean": between(start, keep.mean, 0.75),
                }  # fmt: skip
            for name, values in weights.items():
                put(plan.model, values)
                note(name)
    return {"weights": found, "seconds": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("weights.jsonl"))
    parser.add_argument("--cells", nargs="*", default=[])
    parser.add_argument("--arms", nargs="*")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--render", type=Path)
    asked = parser.parse_args()
    if asked.render:
        return print(render([json.loads(line) for line in asked.render.read_text().splitlines()]))
    for cell in asked.cells:
        for line in cell_lines(cell, asked):
            with asked.out.open("a") as file:
                print(json.dumps(line), file=file)
            shown = {name: round(values["value"], 3) for name, values in line["weights"].items()}
            print(cell, line["arm"], shown, f"{line['seconds']:.0f} s", file=sys.stderr, flush=True)


def cell_lines(cell: str, asked: argparse.Namespace) -> Any:
    """Yield one line for each arm of a cell."""
    from hftransfer.config import parse_overrides, with_overrides

    name, labels, seed = cell.split(":")
    title, model, arguments = SETS[name]
    with tempfile.TemporaryDirectory() as place:
        table = Path(place) / "rows.csv"
        rows = draw(name, asked.data_root, int(labels), int(seed))
        test = rows[rows["split"] == "test"].head(TEST_ROWS)
        pd.concat([rows[rows["split"] == "train"], test]).to_csv(table, index=False)
        further = [*arguments, "data.label=label", "data.allow_outside=true", f"seed={seed}"]
        further += [f"training.max_steps={asked.steps}"]
        base = {"data": {"train": str(table)}, "model": model, "output": f"{place}/run"}
        values = with_overrides(base, parse_overrides(further)).model_dump(mode="json")
        for arm, changes in ARMS["words" if "minilm" in model else "picture"].items():
            if asked.arms and arm not in asked.arms:
                continue
            config = with_overrides(json.loads(json.dumps(values)), changes)
            yield {"set": name, "labels": int(labels), "seed": int(seed), "arm": arm, **measured(config)}


def render(lines: list[dict[str, Any]]) -> str:
    """Return the mean over seeds of every cell and arm, and the means over all."""
    cells = defaultdict(list)
    for line in lines:
        cells[line["arm"], line["set"], line["labels"]].append(line["weights"])
    columns = list(dict.fromkeys(name for line in lines for name in line["weights"]))
    rows = [f"| arm | set | a class | seeds | {' | '.join(columns)} |", "|---|---|---|---|" + "---|" * len(columns)]
    for (arm, name, labels), found in cells.items():
        shown = [
            f"{mean(w[c]['value'] for w in found):.3f}, {mean(w[c].get('calibrated', np.nan) for w in found):.2f}"
            if all(c in w for w in found)
            else ""
            for c in columns
        ]
        rows.append(f"| {arm} | {name} | {labels} | {len(found)} | {' | '.join(shown)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
