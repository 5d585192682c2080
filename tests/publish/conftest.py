"""Exports trace each network once."""

import pytest

from hftransfer.publish import export as module


@pytest.fixture(scope="package", autouse=True)
def traced_once():
    """PyTorch's exporter takes eight seconds for a network, and several formats begin with it."""
    trace, known = module._traced, {}

    def traced(model, batch):
        key = (model.config.name_or_path, *batch)
        if key not in known:
            known[key] = trace(model, batch)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_traced", traced)
        yield
