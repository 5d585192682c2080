"""The examination: one reading of the data, then check after check, each finding as soon as it is there."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Union

from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig, LabelledData
from hftransfer.data.masks import usable_masks
from hftransfer.data.read import read_rows
from hftransfer.doctor.copies import check_copies
from hftransfer.doctor.entities import check_entities
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.files import check_files, check_readable
from hftransfer.doctor.findings import Finding
from hftransfer.doctor.images import check_images
from hftransfer.doctor.inputs import check_named_inputs, inputs_of, rows_of_several
from hftransfer.doctor.labels import check_labels
from hftransfer.doctor.masks import check_masks
from hftransfer.doctor.recordings import check_recordings
from hftransfer.doctor.shortcuts import check_hints
from hftransfer.doctor.sources import check_sources
from hftransfer.doctor.texts import check_texts
from hftransfer.modalities import kind_of

if TYPE_CHECKING:
    import datasets

    from hftransfer.config import RunConfig

USUAL_IMAGE_SIZE = 224


def examine(
    config: DataConfig,
    run: "RunConfig | None" = None,
    dataset: Union["datasets.Dataset", "datasets.DatasetDict", None] = None,
    measure: bool = False,
) -> Iterator[Finding]:
    """Yield findings about the data that `config` names, as they turn up.

    With `run` its model and the machine are examined too, and sizes and lengths are compared with what the model reads, else
    by 224 pixels and an estimate of 512 tokens. With `measure` its probe says how much a random split would flatter (one
    pass over the data). What the user got wrong is a finding, not an exception.
    """
    try:
        facts = gather_facts(config, dataset)
    except UserError as error:
        yield Finding("data-unreadable", str(error))
        return
    if run is None or facts.several:  # of several inputs, which have a model each, the data alone are checked
        yield from check_data(facts)
        return
    from hftransfer.doctor.training import check_machine, check_model
    from hftransfer.models.loading import load_checkpoint

    try:
        checkpoint = load_checkpoint(run.model, facts.kind, facts.task)
    except UserError as error:
        yield Finding("model-unreadable", str(error))
        yield from check_data(facts)
        return
    yield from check_machine(checkpoint.model, run)
    yield from check_model(checkpoint, facts, run)
    yield from check_data(facts, checkpoint.processor)
    if measure:
        from hftransfer.doctor.split_bias import measure_honesty

        yield from measure_honesty(run, dataset)


def examine_loaded(data: LabelledData) -> Iterator[Finding]:
    """Yield what can be said at once about data that is about to be trained on: labels, and copies across its splits."""
    frame = data.frame.assign(where=data.frame["id"])
    facts = Facts(frame, data.modality, data.task, data.inspections, DataConfig(), known_links=data.links)
    yield from check_labels(facts)
    if facts.task.by_pixel:
        yield from check_masks(facts)
    yield from check_copies(facts)


def gather_facts(config: DataConfig, dataset: Any = None) -> Facts:
    """Read all rows and look at each input once. Raises `UserError`."""
    read = read_rows(config, dataset)
    frame = read.frame.reset_index(drop=True)
    frame["label"] = frame["label"].astype(object).where(frame["label"].notna(), None)
    named, faults = read.columns[0].named, {}
    several = named is not None and bool(named.files)
    inspections = rows_of_several(frame, named.kinds) if several else kind_of(read.modality).inspect(frame)
    if read.task.by_pixel:
        frame, faults = usable_masks(frame, inspections)
    return Facts(frame, read.modality, read.task, inspections, config, read, mask_faults=faults)


def check_data(facts: Facts, processor: Any = None) -> Iterator[Finding]:
    """All checks of the data, the cheap ones first."""
    yield from check_labels(facts)
    yield from check_files(facts)
    for each in inputs_of(facts):
        yield from check_contents(each, processor)
    if facts.task.by_pixel:
        yield from check_masks(facts)
    if facts.task.by_word:
        yield from check_entities(facts, processor)
    yield from check_copies(facts)
    yield from check_sources(facts)
    yield from check_named_inputs(facts)
    yield from check_hints(facts)


def check_contents(facts: Facts, processor: Any) -> Iterator[Finding]:
    """Yield what the values of an input show."""
    if facts.kind.content == "words":
        yield from check_texts(facts, processor)
    else:
        yield from check_readable(facts)
    if facts.kind.content == "picture":
        yield from check_images(facts, image_size(processor))
    elif facts.kind.content == "sound":
        yield from check_recordings(facts, processor)


def image_size(processor: Any) -> int:
    """Return the side in pixels of what an image processor gives (224 without one)."""
    timm = getattr(processor, "data_config", None)
    if timm:
        return int(timm["input_size"][-1])
    size = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
    return min((int(side) for side in dict(size).values() if side), default=USUAL_IMAGE_SIZE)
