"""The forms that a run's model takes, each asked raw inputs in a process of its own.

`round_trip` starts it:

    python -P hftransfer/publish/targets.py job.json answers.json

`pipeline` and `onnx` are what a stranger would write and import nothing of ours; `adapter` and `demo` run our code.
"""

import base64
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# `input`: a text or the path of a file; `array`: a file with what the pipeline takes instead; `input_pair`: the second
# text of a pair.
Row = dict[str, str]
Ask = Callable[[Row], dict[str, Any]]  # a score for each name; of segmentation `mask`, a PNG of class numbers in base64
MASKS = "image-segmentation"
OPAQUE = 100  # per cent of a mask over its image


def through_pipeline(job: dict[str, Any]) -> Ask:
    """Plain `transformers.pipeline` on a model folder."""
    import numpy as np
    import transformers

    task, own_code, options = job["pipeline_task"], job["trust_remote_code"], job["pipeline_options"]
    pipe = transformers.pipeline(task, job["folder"], device="cpu", trust_remote_code=own_code)

    def ask(row: Row) -> dict[str, Any]:
        pair = {"text": row["input"], "text_pair": row.get("input_pair")}
        one = np.load(row["array"]) if "array" in row else row["input"]
        answer = pipe(pair if "input_pair" in row else one, **options)
        if task == MASKS:
            return {"mask": _mask({segment["label"]: segment["mask"] for segment in answer}, job["names"])}
        if all("entity_group" in entry for entry in answer):  # also of no entity
            return {f"{e['entity_group']} {e['start']}-{e['end']}": float(e["score"]) for e in answer}
        return {entry["label"]: entry["score"] for entry in answer}

    return ask


def through_onnx(job: dict[str, Any]) -> Ask:
    """ONNX Runtime on an exported folder: the graph, its own metadata and the processor beside it."""
    import numpy as np
    import onnxruntime
    import transformers

    session = onnxruntime.InferenceSession(f"{job['folder']}/model.onnx", providers=["CPUExecutionProvider"])
    wanted = [given.name for given in session.get_inputs()]
    about = session.get_modelmeta().custom_metadata_map
    processor = getattr(transformers, job["processor"]).from_pretrained(
        job["folder"], trust_remote_code=job["trust_remote_code"]
    )

    def ask(row: Row) -> dict[str, float]:
        if "array" in row:
            read = processor(np.load(row["array"]), sampling_rate=processor.sampling_rate, return_tensors="np")
        elif job["files"]:
            read = processor(transformers.image_utils.load_image(row["input"]), return_tensors="pt")
        else:
            read = processor(row["input"], row.get("input_pair"), truncation=True, return_tensors="np")
        (logits,) = session.run(None, {name: np.asarray(read[name]) for name in wanted})[0]
        return dict(zip(json.loads(about["labels"]), _scores(about["task"], logits).tolist(), strict=True))

    return ask


def _scores(problem_type: str, logits: Any) -> Any:
    import numpy as np

    if problem_type == "regression":
        return logits
    raised = np.exp(logits - logits.max())
    return raised / raised.sum() if problem_type == "single_label_classification" else 1 / (1 + np.exp(-logits))


def through_adapter(job: dict[str, Any]) -> Ask:
    """Return the published checkpoint with a LoRA run's adapter put on by peft: never merged."""
    import pandas as pd
    import torch
    from peft import PeftModel

    from hftransfer.features.passes import ComputeConfig
    from hftransfer.modalities import kind_of
    from hftransfer.models.loading import load_checkpoint
    from hftransfer.models.references import ModelConfig
    from hftransfer.prediction.predictor import Predictor
    from hftransfer.runs.reader import RecordedRun

    run = RecordedRun.open(job["folder"])
    kind = kind_of(job["modality"]).for_task(run.task)
    base = load_checkpoint(ModelConfig.model_validate(run.config["model"]), kind, run.task)
    model = PeftModel.from_pretrained(base.model, run.folder / "adapter").eval()
    predictor = Predictor(
        model, kind.bind(base.processor), run.task, ComputeConfig(torch.device("cpu"), workers=0, batch_size=1)
    )

    def ask(row: Row) -> dict[str, float]:
        if run.task.by_word:
            (found,) = predictor.table(pd.DataFrame([{"id": ""} | row]))["prediction"]
            return {f"{e['label']} {e['start']}-{e['end']}": e["score"] for e in found}
        scores = run.task.probabilities(predictor.logits(pd.DataFrame([{"id": ""} | row])))[0]
        return dict(zip(run.task.names, scores.tolist(), strict=True))

    return ask


def through_demo(job: dict[str, Any]) -> Ask:
    """Return the demo, served on loopback and asked by Gradio's own client; of many scores it shows the best."""
    from gradio_client import Client, handle_file

    from hftransfer.apps.demo import launch

    _, url = launch(job["folder"], wait=False)
    client = Client(url, verbose=False)

    def ask(row: Row) -> dict[str, float]:
        given = [handle_file(row["input"])] if job["files"] else list(row.values())
        if job["pipeline_task"] == MASKS:
            *_, file = client.predict(*given, OPAQUE, api_name="/predict")[:4]
            return {"mask": base64.b64encode(Path(file).read_bytes()).decode()}
        answer, *_ = client.predict(*given, api_name="/predict")
        if isinstance(answer, list):  # a text in pieces, some of them entities
            return _entities(answer)
        if "data" in answer:  # values stand in a table
            return {name: float(value) for name, value in answer["data"]}
        return {entry["label"]: entry["confidence"] for entry in answer["confidences"]}

    return ask


def _mask(masks: dict[str, Any], names: list[str]) -> str:
    """Return the masks (H, W) of all classes as one PNG of class numbers in base64."""
    import numpy as np
    from PIL import Image

    numbers = np.zeros(np.asarray(next(iter(masks.values()))).shape, dtype=np.uint8)
    for name, mask in masks.items():
        numbers[np.asarray(mask) > 0] = names.index(name)
    stream = io.BytesIO()
    Image.fromarray(numbers).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _entities(pieces: list[dict[str, Any]]) -> dict[str, float]:
    """Return the entities of a highlighted text, which shows no scores."""
    found, end = {}, 0
    for piece in pieces:
        start, end = end, end + len(piece["token"])
        if piece["class_or_confidence"]:
            found[f"{piece['class_or_confidence']} {start}-{end}"] = float("nan")
    return found


FORMS = {
    "pipeline": through_pipeline,
    "onnx": through_onnx,
    "adapter": through_adapter,
    "demo": through_demo,
}


def main(asked: str, answered: str) -> None:
    """Answer the rows of the job one by one; the first is asked once more before, to load what loads late."""
    job = json.loads(Path(asked).read_text(encoding="utf-8"))
    ask = FORMS[job["form"]](job)
    ask(job["rows"][0])
    begin = time.perf_counter()
    answers = []
    for row in job["rows"]:
        answers.append(ask(row))
        if time.perf_counter() - begin > job["most_seconds"]:
            break
    found = {"answers": answers, "seconds": time.perf_counter() - begin, "alone": "hftransfer" not in sys.modules}
    Path(answered).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
