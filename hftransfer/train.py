"""One run from configuration to run folder: the one place where all parts meet."""

import hashlib
import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hftransfer.config import RunConfig
from hftransfer.core.errors import UserError
from hftransfer.core.wording import ends
from hftransfer.data import LabelledData, load_data
from hftransfer.doctor import examine_loaded
from hftransfer.evaluation.kinds import titled
from hftransfer.features.store import FeatureStore
from hftransfer.models.loading import Checkpoint, load_checkpoint
from hftransfer.pipeline import summary
from hftransfer.pipeline.error_translation import explained
from hftransfer.pipeline.fit import Seconds, fit
from hftransfer.pipeline.repeats import check_parts, check_repeats, offer_folds, repeat
from hftransfer.pipeline.run_context import RunContext, finalise, prepare
from hftransfer.runs import folder as run_folder
from hftransfer.runs.reader import RecordedRun
from hftransfer.runs.record import MetricsRecord, RunRecord
from hftransfer.runtime import devices
from hftransfer.runtime.interruption import Interruption, Stop, StopRequest, listening
from hftransfer.runtime.launch import World, launched_world
from hftransfer.strategies import AutoStrategy, ProbeStrategy
from hftransfer.training.freeze_check import tensor_hashes

if TYPE_CHECKING:
    from hftransfer.prediction.predictor import Predictor
    from hftransfer.publish.hub import Pushed

log = logging.getLogger(__name__)

CHECKED_BY_TRANSFORMERS = {"extra", "report_to", "lr_scheduler_type", "metric_for_best_model"}
USED_BY_HEADS = {"imbalance", "bf16"}  # of the training's settings: what a linear probe, too, is made with


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, what `metrics.json` holds (on the main process), and why it ended early."""

    folder: Path
    metrics: dict[str, Any]
    interruption: Interruption | None = None

    @cached_property
    def predictor(self) -> "Predictor":
        """The trained model, ready to answer."""
        from hftransfer.prediction.predictor import load

        return load(self.folder)

    def report(self) -> Path:
        """Write the one-page report, and return its file."""
        from hftransfer.report import write_report

        return write_report(self.folder)

    def push(
        self, repo_id: str, private: bool = False, update: bool = False, space: str | None = None,
        dry_run: str | Path | None = None,
    ) -> "Pushed | None":  # fmt: skip
        """Put the model on the Hub as `repo_id`, with card and metrics (`hftransfer.publish.hub.push`)."""
        from hftransfer.publish.hub import push

        return push(self.folder, repo_id, private=private, update=update, dry_run=dry_run, space=space)

    def _repr_html_(self) -> str:
        """Return the run as a notebook shows it: its folder and every metric with its interval."""
        from hftransfer.core.notebook import as_card

        record = MetricsRecord.of(self.metrics)
        rows = {
            f"{record.describe_part(part)}: {name.replace('_', ' ')}": f"{found['value']:.4f} ({ends(found)})"
            for part, metrics in record.parts.items()
            if part == record.headline
            for name, found in metrics.items()
        }
        return as_card(f"Run {self.folder}", rows, "run.predictor.predict([…]), run.report(), run.push(…)")


def run(config: RunConfig, dataset: Any = None, resume: bool = False) -> Run:
    """Adapt a checkpoint to labelled data as `config` says and write the run folder.

    `dataset` is a `datasets.Dataset` or `DatasetDict` in place of `config.data.train`. With `resume` an interrupted run
    goes on and ends with the weights that it would have had; one that is whole is left as it is, but for its pages.

    The first Ctrl-C or SIGTERM while it trains ends the training, and the run is finished with the best weights so far.
    Raises `UserError` for every mistake in the input, and where disk or memory run out.
    """
    if config.evaluation.metrics:  # fetched later on, a missing one would cost a training
        from hftransfer.evaluation.evaluate_library import load_further

        load_further(config.evaluation.metrics)
    check_repeats(config)
    _check_training(config)
    if config.push_to_hub.repo_id:
        from hftransfer.publish.hub import check_ready, push_as_configured

        check_ready(config.push_to_hub.repo_id, config.push_to_hub.space, config.push_to_hub.update)
    with explained(config.output_folder), devices.threads_as_before(), listening() as stop:
        if isinstance(config.strategy, AutoStrategy):
            config, made = _chosen(config, dataset, resume)
        else:
            made = (_finished(config, dataset) if resume else None) or _once(config, dataset, resume, stop)
        repeated = {} if made.interruption else repeat(config, lambda other: _again(other, dataset))
        if made.metrics:
            if repeated:
                made.metrics.update(repeated)
                MetricsRecord.of(made.metrics).write(made.folder)
            _log_result(made)
            _explain(config, made)
            _write_pages(made.folder)
            if config.push_to_hub.repo_id and not made.interruption:
                push_as_configured(made.folder, config.push_to_hub)
            if config.store:
                FeatureStore().keep_to_limit()  # nothing of the run is open now
        return made


def _check_training(config: RunConfig) -> None:
    """Check what transformers alone can judge, before minutes of features are spent on it."""
    named = CHECKED_BY_TRANSFORMERS & config.training.model_dump(exclude_defaults=True).keys()
    if named and not isinstance(config.strategy, ProbeStrategy):
        from hftransfer.training.arguments import check_arguments

        check_arguments(config.training)


def _explain(config: RunConfig, made: Run) -> None:
    """Write what led to the answers that the report shows, where there are any."""
    wanted = config.evaluation.explanations and not RecordedRun(made.folder).lacks("--explain")
    if wanted and {"test", "validation"} & made.metrics.keys():
        from hftransfer.prediction.explain import explain_run

        explain_run(made.folder, config.use_cpu)


def _write_pages(folder: Path) -> None:
    from hftransfer.pipeline.outputs import write_pages  # scikit-learn and scipy.stats: not before the first batch

    write_pages(folder)


def _log_result(made: Run) -> None:
    """Log the first metric, before explanations and pages, which take some seconds more."""
    part = made.metrics.get("headline")
    if part:
        name, found = next(iter(made.metrics[part].items()))
        title = MetricsRecord.of(made.metrics).describe_part(part)
        log.info("Run saved to %s. %s %s %.4f (%s). Writing the report.", made.folder, title.capitalize(),
                 titled(name), found["value"], ends(found))  # fmt: skip


def _chosen(config: RunConfig, dataset: Any, resume: bool) -> tuple[RunConfig, Run]:
    """Strategy auto: what the data chose, and its run. Ctrl-C ends the search at once: its output is whole already."""
    from hftransfer.planning.strategies.command import keep_the_best

    if resume:
        raise UserError("strategy auto is not resumed: its output is a whole run from the first minute on. Train anew.")

    def once(other: RunConfig) -> dict[str, Any]:
        metrics = _once(other, dataset, False, Stop()).metrics
        _write_pages(other.output_folder)
        return metrics

    kept, interrupted = keep_the_best(config, dataset, once)
    interruption = Interruption(StopRequest.of_signal(signal.SIGINT)) if interrupted else None
    return kept.config, Run(kept.output, kept.metrics, interruption)


def _finished(config: RunConfig, dataset: Any) -> Run | None:
    """Return the run to resume if it is complete, else None. Raises `UserError` for a run of another configuration."""
    folder = config.output_folder
    if not (folder / run_folder.COMPLETE).is_file():
        return None
    record = RunRecord.read(folder)
    stored = {
        "config": _described(RunConfig.from_yaml(folder / "config.yaml")),
        "data": record.data.fingerprint,
    }
    data = load_data(config.data, dataset)
    run_folder.refuse_differences(folder, stored, stored | {"config": _described(config.resolved(data))})
    run_folder.refuse_differences(folder, stored, stored | {"data": data.fingerprint})
    log.info("Nothing to resume: %s is whole", folder)
    world = launched_world()
    return Run(folder, MetricsRecord.read(folder).as_dict() if world.rank == 0 else {})


def _described(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as JSON, without the place of the run, which may be moved."""
    return config.model_dump(mode="json", exclude={"output"})


def _origin(config: RunConfig, data: LabelledData, checkpoint: Checkpoint, processes: int) -> dict[str, Any]:
    """Return what a run is made from: its configuration, hashes of examples, division and weights, the processes.

    The number of processes decides how many examples a step has, and which checkpoints are complete.
    """
    rows = data.frame[["id", "split", "group"]].sort_values("id").to_json(orient="values")
    return {
        "config": _described(config),
        "data": data.fingerprint,
        "split": hashlib.sha256(rows.encode()).hexdigest(),
        "weights": checkpoint.weights_hash,
        "processes": processes,
    }


def _again(config: RunConfig, dataset: Any) -> dict[str, Any]:
    """Return the metrics of one run of several; a signal stops it at once, since half of it says nothing."""
    with summary.silent():
        return _once(config, dataset, False, Stop()).metrics


def _once(config: RunConfig, dataset: Any, resume: bool, stop: Stop) -> Run:
    """Make one run folder; its metrics are known to the main process."""
    world = launched_world()
    seconds = Seconds(world)
    device = devices.choose_device(world, config.use_cpu)
    _join(world, device)
    metrics: dict[str, Any] = {}
    with ExitStack() as stack:
        with world.together():
            folder = stack.enter_context(run_folder.making(config.output_folder, resume, world.rank == 0))
        with seconds("data"):
            data = load_data(config.data, dataset)
            summary.log_data(config, data)
            summary.log_findings(config, list(examine_loaded(data)))
            check_parts(config, data.frame["split"])
        config = config.resolved(data)
        offer_folds(config, len(data.frame), data.given, data.kind)
        if data.several:
            from hftransfer.fusion.run import fuse  # scikit-learn and scipy.stats: not before the first batch

            return Run(config.output_folder, fuse(config, data, device, world, folder, stop))
        with seconds("checkpoint"):
            _seed(config.seed)
            random_weights = config.strategy.from_random_weights
            checkpoint = load_checkpoint(config.model, data.kind, data.task, random_weights)
            if world.rank == 0:
                run_folder.check_origin(folder, _origin(config, data, checkpoint, world.size), resume)
        with seconds("preparation"):
            context = prepare(config, data, checkpoint, device, world, run_folder.scratch(config.output_folder))
        _log_without_effect(context)
        fitted = fit(context, folder, stop, seconds)
        plan, trained = fitted.plan, fitted.trained
        with seconds("writing"):
            if world.rank == 0:
                from hftransfer.pipeline.outputs import Record, write_run

                predictions = finalise(context, fitted.predictions)
                if plan.save_adapter:
                    plan.save_adapter(plan.model, folder / "adapter")
                model = plan.finish(plan.model)
                record = Record(fitted, tensor_hashes(model, plan.layer_groups), seconds.phases)
                metrics = write_run(folder, context, model, predictions, record)
    return Run(config.output_folder, metrics, trained.interruption if trained else None)


def _join(world: World, device: torch.device) -> None:
    """Connect the processes of a launch before anything is shared between them."""
    if world.size > 1:
        from accelerate import PartialState

        PartialState(cpu=device.type == "cpu")


def _seed(seed: int) -> None:
    """Before the head is made: it is the first thing drawn at random."""
    from accelerate.utils import set_seed

    set_seed(seed)


def _log_without_effect(context: RunContext) -> None:
    """Warn of settings that this run does not use: who named them should not take the result for theirs."""
    for names, reason in _without_effect(context):
        if names:
            log.warning("Without effect: %s (%s)", ", ".join(sorted(names)), reason)


def _without_effect(context: RunContext) -> Iterator[tuple[set[str], str]]:
    """Named settings, and why they change nothing."""
    config, task = context.config, context.data.task
    training, augmentation, head = (
        {f"{section}.{name}" for name in getattr(config, section).model_dump(exclude_defaults=True)}
        for section in ("training", "augmentation", "head")
    )
    if not context.trains:
        reason = f"strategy {config.strategy.type} solves a head, and nothing is trained step by step"
        yield training - {f"training.{name}" for name in USED_BY_HEADS}, reason
    kind = context.data.kind
    if config.strategy.head_init != "probe":
        yield head, "the head begins random; strategy.head_init=probe solves it"
    elif kind.augments:
        yield head & {"head.pooling"}, f"{kind.plural} are pooled as the checkpoint does it"
    if not kind.augments:
        yield augmentation, f"the data are {kind.plural}"
    elif not context.trains:
        yield augmentation, "the features of a probe are of the images as they are"
    if not task.has_classes:
        yield training & {"training.imbalance", "training.label_smoothing_factor"}, "numbers have no classes"
