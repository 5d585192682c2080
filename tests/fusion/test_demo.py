"""The demo of a run on several inputs: one field for each, any of which may be left empty."""

import pandas as pd
import pytest
from gradio_client import Client, handle_file

from hftransfer.apps.demo import build_demo, launch
from hftransfer.apps.serving import serve
from hftransfer.core.errors import UserError


def test_each_input_has_a_field_of_its_kind(fused):
    app = build_demo(str(fused), examples=False)
    fields = [(type(block).__name__, block.label) for block in app.blocks.values() if hasattr(block, "label")]
    assert [field for field in fields if field[1] in ("photo", "caption", "price", "brand")] == [
        ("Image", "photo"), ("Textbox", "caption"), ("Number", "price"), ("Dropdown", "brand")
    ]  # fmt: skip


def test_the_page_answers_as_the_folder_does(fused):
    rows = pd.read_parquet(fused / "splits.parquet")
    rows = rows.dropna(subset=[name for name in rows if name.startswith("input:")])
    row = rows[rows["split"] == "test"].iloc[0]
    recorded = pd.read_parquet(fused / "predictions.parquet").set_index("id").loc[row["id"]]
    app, address = launch(str(fused), wait=False)
    try:
        client = Client(address, verbose=False)
        answer, _ = client.predict(
            handle_file(row["input:photo"]), row["input:caption"], float(row["input:price"]), row["input:brand"],
            api_name="/predict",
        )  # fmt: skip
        found = {entry["label"]: entry["confidence"] for entry in answer["confidences"]}
        assert found == pytest.approx({name: recorded[f"score:{name}"] for name in found}, abs=1e-3)
        answer, _ = client.predict(None, "", float(row["input:price"]), None, api_name="/predict")
        assert answer["label"] in found
        with pytest.raises(Exception, match="Give at least one of photo, caption, price, brand"):
            client.predict(None, "", None, None, api_name="/predict")
    finally:
        app.close()


def test_a_file_that_is_no_picture_is_refused(fused, tmp_path):
    (tmp_path / "text.png").write_bytes(b"text")
    with pytest.raises(UserError):
        serve(fused, examples=False).frame(str(tmp_path / "text.png"), "", None, None)
