"""How well the learning curve forecasts, and whether the chosen labels beat random ones: the tables of docs/labels.md.

    python scripts/labels.py --data-root DATA --out labels.jsonl [--sets bbc flowers5] [--parts curve active cold]
    python scripts/labels.py --render labels.jsonl > tables.md
    python scripts/labels.py --render labels.jsonl --figures docs

Sets are those of `results.py`; DATA holds their public sources. Features come from one pass, or from the store. Of the
training rows a stratified part is taken as what the user has; the rest plays the labels that come later, or the pool.
Everything is judged on the test part, which is the public one where there is one.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from results import SETS
from tqdm import tqdm

from hftransfer.planning.labels.choice import choose, directions, doubt
from hftransfer.planning.labels.curve import METRIC, Judge, Problem, arrange, fitted, measure_curve, solved


@dataclass(frozen=True)
class Sizes:
    """`rows` of the curve's first part; `start`, `batch` and `rounds` of the choice; `seeds` of both; `limit` of the pool."""

    rows: int
    start: int
    batch: int
    rounds: int = 4
    seeds: int = 5
    limit: int | None = None
    test: float | None = None


MEASURED = {
    "clothing10": Sizes(300, 50, 25),
    "flowers5": Sizes(300, 25, 25),
    "digits": Sizes(600, 50, 50, limit=2750, test=0.4),
    "bbc": Sizes(300, 25, 25),
    "banking77": Sizes(770, 231, 150, rounds=3, seeds=3, limit=4000),
    "goemotions": Sizes(1000, 280, 200, rounds=3, seeds=3, limit=4000),
}
FURTHER = (1.25, 1.5, 2.0)


def problem_of(name: str, root: str) -> Problem:
    """Features of a set by its starter checkpoint: the mean of the tokens, or what the network's head reads."""
    from hftransfer.config import parse_overrides, with_overrides
    from hftransfer.data import load_data
    from hftransfer.models.layers import LayerGroups
    from hftransfer.models.loading import load_checkpoint
    from hftransfer.pipeline.run_context import prepare
    from hftransfer.probe.fit import plain_features
    from hftransfer.runtime import devices
    from hftransfer.runtime.launch import World

    source, *overrides = (argument.replace("{root}", root) for argument in SETS[name].arguments.split())
    changes = parse_overrides(overrides) | {"data.train_examples": MEASURED[name].limit}
    if MEASURED[name].test:
        changes["data.split.test"] = MEASURED[name].test
    config = with_overrides({"data": {"train": source}, "model": SETS[name].model}, changes)
    devices.keep_freed_memory()
    data = load_data(config.data)
    checkpoint = load_checkpoint(config.model, data.kind, data.task)
    with tempfile.TemporaryDirectory() as scratch:
        context = prepare(config, data, checkpoint, devices.choose_device(), World(), Path(scratch))
        keys = data.frame["digest"].tolist()
        features = plain_features(context.frozen(LayerGroups.of(context.model)), context.items, keys)
    return Problem(
        data.task,
        features,
        context.targets,
        context.positions("train", "validation"),
        context.positions("test"),
        context.groups,
    )


# --- the curve: forecast and fact -------------------------------------------------------------------------------------


def forecasts(name: str, problem: Problem, sizes: Sizes) -> Iterator[dict]:
    """For each seed another first part: what its curve says of more rows, and what these rows then gave."""
    judge = Judge(problem, 0)
    for seed in tqdm(range(sizes.seeds), desc=f"{name}: curve"):
        order = arrange(problem, 100 + seed)
        curve = measure_curve(replace(problem, pool=order[: sizes.rows]), seed=seed)
        laws = curve.laws(seed)
        now = float(curve.values[-1, 0, 0])
        for factor in FURTHER:
            rows = round(sizes.rows * factor)
            if rows > len(order):
                continue
            value, gain = curve.at(rows, laws), curve.gain(rows - sizes.rows, laws)
            fact = float(judge(solved(problem, order[:rows], seed), curve.metric)[0])
            yield {
                "set": name, "part": "curve", "seed": seed, "metric": curve.metric, "rows": sizes.rows, "then": rows,
                "sizes": curve.sizes.tolist(), "measured": curve.values[:, :, 0].mean(1).tolist(),
                "law": [curve.at(size, laws).value for size in curve.sizes], "now": now, "fact": fact,
                "forecast": [value.value, value.low, value.high], "gain": [gain.value, gain.low, gain.high],
            }  # fmt: skip


# --- the choice against others ----------------------------------------------------------------------------------------

Chooser = Callable[[Problem, np.ndarray, np.ndarray, np.ndarray, int, int], np.ndarray]


def at_random(problem, labelled, pool, doubts, count, seed):
    return np.random.default_rng(seed).permutation(pool)[:count]


def by_doubt(problem, labelled, pool, doubts, count, seed):
    """Choose the most doubtful alone (margin sampling, Scheffer et al. 2001)."""
    return pool[np.argsort(-doubts, kind="stable")[:count]]


def by_distance(problem, labelled, pool, doubts, count, seed):
    """Choose the farthest from all that is labelled or chosen (k-center greedy, Sener & Savarese 2018, arXiv 1708.00489)."""
    rows = directions(problem.features[np.concatenate([labelled, pool])])
    known, unknown = rows[: len(labelled)], rows[len(labelled) :]
    nearest, chosen = (unknown @ known.T).max(1), []
    for _ in range(count):
        chosen.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, unknown @ unknown[chosen[-1]])
        nearest[chosen] = np.inf
    return pool[chosen]


def ours(problem, labelled, pool, doubts, count, seed):
    return pool[choose(problem.features[pool], doubts, count, seed).rows]


CHOOSERS: dict[str, Chooser] = {
    "random": at_random,
    "doubt": by_doubt,
    "distance": by_distance,
    "hftransfer next": ours,
}


def rounds(name: str, problem: Problem, sizes: Sizes) -> Iterator[dict]:
    """From the same first labels, batch after batch chosen one way or another.

    The penalty is chosen anew after each batch; with many classes it stays that of the first labels, to save hours.
    """
    judge = Judge(problem, 0)
    for seed in tqdm(range(sizes.seeds), desc=f"{name}: choice"):
        first = arrange(problem, 200 + seed)[: sizes.start]
        like = solved(problem, first, seed)
        for chooser, pick in CHOOSERS.items():
            labelled = first
            for number in range(sizes.rounds + 1):
                many = problem.task.head_size > 20
                head = fitted(problem, labelled, like) if many else solved(problem, labelled, seed)
                value = float(judge(head, METRIC[problem.task.type])[0])
                yield _chosen(name, "active", chooser, seed, len(labelled), value, problem)
                if number == sizes.rounds:
                    break
                pool = np.setdiff1d(problem.pool, labelled)
                doubts = doubt(problem.task, problem.task.probabilities(head.logits(problem.features[pool])))
                labelled = np.concatenate([labelled, pick(problem, labelled, pool, doubts, sizes.batch, seed)])


def cold(name: str, problem: Problem, sizes: Sizes) -> Iterator[dict]:
    """Yield the very first labels, chosen without a model, against as many at random."""
    judge, equal = Judge(problem, 0), np.ones(len(problem.pool))
    for seed in tqdm(range(sizes.seeds), desc=f"{name}: first labels"):
        for chooser, pick in {"random": at_random, "hftransfer next": ours}.items():
            rows = pick(problem, np.empty(0, int), problem.pool, equal, sizes.start, 300 + seed)
            value = float(judge(solved(problem, rows, seed), METRIC[problem.task.type])[0])
            yield _chosen(name, "cold", chooser, seed, sizes.start, value, problem)


def _chosen(name: str, part: str, chooser: str, seed: int, labels: int, value: float, problem: Problem) -> dict:
    metric = METRIC[problem.task.type]
    return {
        "set": name,
        "part": part,
        "chooser": chooser,
        "seed": seed,
        "labels": labels,
        "value": value,
        "metric": metric,
    }


PARTS = {"curve": forecasts, "active": rounds, "cold": cold}


# --- tables and figures -----------------------------------------------------------------------------------------------


def render(lines: list[dict]) -> str:
    tables = []
    if curves := [line for line in lines if line["part"] == "curve"]:
        tables.append(_curve_table(curves))
    for part in ("active", "cold"):
        if found := [line for line in lines if line["part"] == part]:
            tables.append(_choice_table(found))
    return "\n\n".join(tables)


def _curve_table(lines: list[dict]) -> str:
    head = "| set | rows | then | forecast (mean) | fact (mean) | mean error | in the interval | gain forecast | gain in fact |"
    rows = [head, "|---" * 9 + "|"]
    for name, then in dict.fromkeys((line["set"], line["then"]) for line in lines):
        found = [line for line in lines if (line["set"], line["then"]) == (name, then)]
        said, fact = (
            np.array([pick(line) for line in found]) for pick in (lambda x: x["forecast"], lambda x: x["fact"])
        )
        gain = 100 * np.mean([line["gain"] for line in found], axis=0)
        real = 100 * np.array([line["fact"] - line["now"] for line in found])
        inside = ((said[:, 1] <= fact) & (fact <= said[:, 2])).sum()
        cells = [
            f"{name}, {found[0]['metric'].replace('_', ' ')}", f"{found[0]['rows']:,}", f"{then:,}", f"{said[:, 0].mean():.3f}",
            f"{fact.mean():.3f}", f"{np.abs(said[:, 0] - fact).mean():.3f}", f"{inside} of {len(found)}",
            f"{gain[0]:+.1f} ({gain[1]:.1f} to {gain[2]:.1f})", f"{real.mean():+.1f}",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _choice_table(lines: list[dict]) -> str:
    choosers = list(dict.fromkeys(line["chooser"] for line in lines))
    rows = [f"| set | labels | {' | '.join(choosers)} | next less random |", "|---" * (3 + len(choosers)) + "|"]
    for name, labels in dict.fromkeys((line["set"], line["labels"]) for line in lines):
        values = {c: _values(lines, name, labels, c) for c in choosers}
        gain = values["hftransfer next"] - values["random"]
        if lines[0]["part"] == "active" and labels == min(line["labels"] for line in lines if line["set"] == name):
            continue  # the first labels are the same
        means = [f"{value.mean():.3f}" for value in values.values()]
        spread = f"{100 * gain.mean():+.1f} ± {100 * gain.std(ddof=1) / np.sqrt(len(gain)):.1f}"
        rows.append(f"| {name} | {labels} | {' | '.join(means)} | {spread} |")
    return "\n".join(rows)


def _values(lines: list[dict], name: str, labels: int, chooser: str) -> np.ndarray:
    wanted = (name, labels, chooser)
    return np.array([line["value"] for line in lines if (line["set"], line["labels"], line["chooser"]) == wanted])


def figures(lines: list[dict], folder: Path) -> None:
    """`labels-curve.svg`: forecasts and facts of the first seed; `labels-next.svg`: the choosers over labels."""
    from hftransfer.report.figures import drawn

    for file, part, draw in (("labels-curve.svg", "curve", _draw_curve), ("labels-next.svg", "active", _draw_choice)):
        found = [line for line in lines if line["part"] == part]
        names = list(dict.fromkeys(line["set"] for line in found))
        if not names:
            continue
        with drawn(folder / file, 9.0, 2.6 * -(-len(names) // 3)) as figure:
            for name, axes in zip(names, figure.subplots(-(-len(names) // 3), 3, squeeze=False).flat, strict=False):
                draw([line for line in found if line["set"] == name], axes)
                axes.set_title(name)
            for axes in figure.axes[len(names) :]:
                axes.remove()


def _draw_curve(lines: list[dict], axes) -> None:
    from hftransfer.report.figures import FIRST, SECOND, log_x

    first = [line for line in lines if line["seed"] == lines[0]["seed"]]
    axes.plot(first[0]["sizes"], first[0]["measured"], "o", color=SECOND, markersize=3, label="measured")
    axes.plot(first[0]["sizes"], first[0]["law"], color=FIRST, linewidth=1)
    then, said = [line["then"] for line in first], np.array([line["forecast"] for line in first]).T
    axes.errorbar(
        then, said[0], yerr=[said[0] - said[1], said[2] - said[0]], fmt="_", color=FIRST, capsize=3, label="forecast"
    )
    axes.plot(then, [line["fact"] for line in first], "x", color=SECOND, markersize=5, label="fact")
    log_x(axes)
    axes.set_xlabel("training rows")
    axes.set_ylabel(lines[0]["metric"].replace("_", " "))
    axes.legend(fontsize=7, loc="lower right")


def _draw_choice(lines: list[dict], axes) -> None:
    from hftransfer.report.figures import FIRST, MUTED, SECOND, THIRD

    colours = {"random": MUTED, "doubt": SECOND, "distance": THIRD, "hftransfer next": FIRST}
    for chooser, colour in colours.items():
        labels = sorted({line["labels"] for line in lines})
        means = [_values(lines, lines[0]["set"], count, chooser).mean() for count in labels]
        axes.plot(labels, means, color=colour, marker="o", markersize=3, linewidth=1.4, label=chooser)
    axes.set_xlabel("labels")
    axes.set_ylabel(lines[0]["metric"].replace("_", " "))
    axes.legend(fontsize=7, loc="lower right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--out", type=Path, default=Path("labels.jsonl"))
    parser.add_argument("--sets", nargs="*", default=list(MEASURED))
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--render", type=Path)
    parser.add_argument("--figures", type=Path, help="with --render: draw into this folder in place of tables")
    asked = parser.parse_args()
    if asked.render:
        lines = [json.loads(line) for line in asked.render.read_text().splitlines()]
        return figures(lines, asked.figures) if asked.figures else print(render(lines))
    logging.basicConfig(level=logging.WARNING)
    for name in asked.sets:
        problem = problem_of(name, asked.data_root)
        for part in asked.parts:
            with asked.out.open("a") as file:
                for line in PARTS[part](name, problem, MEASURED[name]):
                    print(json.dumps(line), file=file, flush=True)
        print(f"{name} done", file=sys.stderr)


if __name__ == "__main__":
    main()
