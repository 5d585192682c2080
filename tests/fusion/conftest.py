"""One run on a picture, a text, a number and a category, made once for all tests that only read it."""

import pytest

from hftransfer.config import checked
from hftransfer.train import run
from tests.support import several, tiny


def configuration(folder, table, inputs, task=None, **evaluation):
    models = {"photo": "timm-resnet", "caption": "bert"}
    makers = tiny.VISION_FAMILIES | tiny.TEXT_FAMILIES
    for name in models.keys() & inputs.keys():
        if not (folder / name).exists():
            makers[models[name]](folder / name)
    return checked({
        "data": {"train": str(table), "input": inputs, "label": "label", "task": task, "split": {"test": 0.4}},
        "model": {name: str(folder / name) for name in models if name in inputs},
        "evaluation": {"resamples": 100, "folds": 0, **evaluation},
        "output": str(folder / f"run-{'-'.join(inputs)}-{task}"),
    })  # fmt: skip


@pytest.fixture(scope="session")
def listings(tmp_path_factory):
    return several.table(tmp_path_factory.mktemp("listings"), rows=160)


@pytest.fixture(scope="session")
def fused(listings):
    """The folder of a finished run on four inputs."""
    return run(configuration(listings.parent, listings, several.KINDS)).folder
