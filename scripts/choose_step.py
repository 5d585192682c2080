"""Which rule chooses the step of a training best: regret of several rules on validation parts drawn from test examples.

    python scripts/choose_step.py --data-root DATA --cells banking20:10:0:frozen sick:60:0:full [--steps 100]

A cell is set:labels a class:seed:strategy, with the sets of `scripts/advice.py`. Each is trained once with six evaluations,
and the logits of 400 test examples are kept at each. Then 40 validation parts are drawn from these, and each rule chooses a
step from one of them. Regret is measured on the other test examples: the loss after the temperature of that validation part
and the accuracy, minus those of the best step. docs/decisions.md, section 6, has the result.
"""

import argparse
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
SIZES, DRAWS, FOLDS, TEST_EXAMPLES, EVALUATIONS = (30, 60, 120), 40, 5, 400, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--cells", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=100)
    asked = parser.parse_args()
    for cell in asked.cells:
        name, labels, seed, strategy = cell.split(":")
        logits, targets = evaluations(name, int(labels), int(seed), strategy, asked)
        print(cell, "accuracy by step:", (logits.argmax(2) == targets).mean(1).round(3).tolist())
        for size in SIZES:
            for rule, (loss, accuracy, step) in regrets(logits, targets, size).items():
                print(f"  {size:4d} {rule:24s} loss {loss:.4f}  accuracy {accuracy:+.4f}  step {step:.1f}", flush=True)


def evaluations(
    name: str, labels: int, seed: int, strategy: str, asked: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (S, N, C) of the test examples at each evaluation of a training, and their targets."""
    import torch
    from accelerate.utils import set_seed
    from transformers import TrainerCallback

    from hftransfer.config import parse_overrides, with_overrides
    from hftransfer.data import load_data
    from hftransfer.features.passes import predict_logits
    from hftransfer.models.layers import LayerGroups
    from hftransfer.models.loading import load_checkpoint
    from hftransfer.pipeline.run_context import Replayed, prepare, solve_head, stored_activations
    from hftransfer.runtime.interruption import Stop
    from hftransfer.runtime.launch import World
    from hftransfer.training import trainer
    from scripts.advice import SETS, draw

    with tempfile.TemporaryDirectory() as place:
        table = Path(place) / "rows.csv"
        drawn = draw(name, asked.data_root, labels, seed)
        is_test = drawn["split"] == "test"
        drawn[~is_test | (is_test.cumsum() <= TEST_EXAMPLES)].to_csv(table, index=False)
        further = [
            *SETS[name][2], "data.label=label", "data.allow_outside=true", f"seed={seed}", f"data.split.seed={seed}",
            f"training.max_steps={asked.steps}", f"training.evaluations={EVALUATIONS}", f"strategy.type={strategy}",
        ]  # fmt: skip
        base = {"data": {"train": str(table)}, "model": SETS[name][1], "output": str(Path(place) / "run")}
        config = with_overrides(base, parse_overrides(further))
        data = load_data(config.data, None)
        config = config.resolved(data)
        set_seed(seed)
        checkpoint = load_checkpoint(config.model, data.kind, data.task)
        context = prepare(config, data, checkpoint, torch.device("cpu"), World(), Path(place) / "features")
        head = solve_head(context)
        plan = config.strategy.prepare(context.model, LayerGroups.of(context.model, head.constant if head else ()))
        split_point, stored = stored_activations(context, plan)
        positions, found = context.positions("test"), []
        examples = trainer.Examples(
            context.items, context.targets, context.modality, data.task,
            context.positions("train"), context.positions("validation"), stored,
        )  # fmt: skip
        setup = trainer.Setup(
            config.training, config.strategy.defaults_for(data.modality, context.model), context.compute_config,
            seed, context.begins_trained(head),
        )  # fmt: skip

        class Inspection(TrainerCallback):
            def on_evaluate(self, args, state, control, **kwargs):
                source = context.modality if stored is None else Replayed(context.modality, stored)
                items = [context.items[p] if stored is None else (p, context.items[p]) for p in positions]
                with torch.random.fork_rng([]):
                    found.append(predict_logits(plan.model, source, items, context.compute_config))

        callbacks = trainer._callbacks
        with (
            split_point.replaying() if split_point else nullcontext(),
            mock.patch.object(trainer, "_callbacks", lambda *given: [*callbacks(*given), Inspection()]),
        ):
            trainer.train(plan, examples, setup, Path(place), Stop())
        return np.array(found), context.targets[positions]


def regrets(logits: np.ndarray, targets: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Return mean regret of the loss and of the accuracy, and the mean step, of each rule."""
    from hftransfer.evaluation.calibration import fit_temperature
    from hftransfer.evaluation.metrics import row_losses
    from hftransfer.tasks import SingleLabel

    task, random, found = SingleLabel(tuple(map(str, range(logits.shape[2])))), np.random.default_rng(0), {}

    def losses(step: np.ndarray, truth: np.ndarray, temperature: float) -> np.ndarray:
        return row_losses(task, truth, task.probabilities(step.astype(float) / temperature))

    for _ in range(DRAWS):
        order = random.permutation(len(targets))
        chosen, others = order[:size], order[size:]
        temperatures = [fit_temperature(task, step[chosen], targets[chosen]) for step in logits]
        same = [losses(step[chosen], targets[chosen], t) for step, t in zip(logits, temperatures, strict=True)]
        crossed, fold = np.empty((len(logits), size)), random.permutation(size) % FOLDS
        for step, number in np.ndindex(len(logits), FOLDS):
            out, inside = chosen[fold == number], chosen[fold != number]
            temperature = fit_temperature(task, logits[step][inside], targets[inside])
            crossed[step, fold == number] = losses(logits[step][out], targets[out], temperature)
        loss = np.array(
            [losses(s[others], targets[others], t).mean() for s, t in zip(logits, temperatures, strict=True)]
        )
        accuracy = (logits[:, others].argmax(2) == targets[others]).mean(1)
        for rule, step in choices({"same": np.array(same), "cross-fitted": crossed}).items():
            regret = (loss[step] - loss.min(), accuracy[step] - accuracy.max(), step)
            found.setdefault(rule, []).append(regret)
    return {rule: np.mean(values, 0) for rule, values in found.items()}


def choices(losses: dict[str, np.ndarray]) -> dict[str, int]:
    """Return the step of each rule, from losses (S, n) of each evaluation and example."""
    steps = {}
    for name, found in losses.items():
        mean, root = found.mean(1), np.sqrt(found.shape[1])
        best = steps[name] = int(mean.argmin())
        within = {"one error": found[best].std(ddof=1), "one paired error": (found - found[best]).std(1, ddof=1)}
        for rule, deviation in within.items():
            steps[f"{name}, {rule}"] = int(np.flatnonzero(mean - mean[best] <= deviation / root)[0])
    return steps


if __name__ == "__main__":
    main()
