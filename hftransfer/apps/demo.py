"""The demo: a trained model to try in the browser, for images, texts and pairs of texts alike."""

import html
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from hftransfer.apps import uploads
from hftransfer.apps.corrections import keep_correction
from hftransfer.apps.masks import OPACITY, mask_tab, overlay
from hftransfer.apps.serving import Served, answered, serve
from hftransfer.apps.web import start, with_messages
from hftransfer.apps.why import why_html
from hftransfer.core.errors import UserError
from hftransfer.core.wording import ends
from hftransfer.data.named_inputs import CATEGORY, NUMBER
from hftransfer.evaluation.kinds import titled
from hftransfer.modalities import ModalityKind, kind_of
from hftransfer.probe.fused import Block
from hftransfer.runs.folder import beside
from hftransfer.runs.record import MetricsRecord
from hftransfer.tasks import Task

MAX_FILE_SIZE = "100mb"
WAITING = 300  # requests that may stand in line
CHUNK = 16  # rows of a batch between two looks at the line: single questions pass in between
CSS = Path(__file__).with_name("demo.css")


# --- the page --------------------------------------------------------------------------------------------------------


def build_demo(path: str | list[str], examples: bool = True) -> gr.Blocks:
    """Return the app for one run, or for two runs to compare; a run folder, a model folder, or a Hub id each.

    With `examples` it shows the training rows that are most like an input, where they are at hand, and the report, which
    quotes training and test rows.

    Raises `UserError` for a folder that holds no model, and for two runs with different kinds of input.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    if not 1 <= len(paths) <= 2:
        raise UserError(f"The demo shows one run, or compares two; found {len(paths)}.")
    models = [serve(one, examples) for one in paths]
    if len({(model.kind.name, _fields(model)) for model in models}) > 1:
        raise UserError(f"{paths[0]} and {paths[1]} take different inputs, so nothing can be asked of both.")
    with gr.Blocks(title=f"{models[0].name} · hftransfer", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        gr.HTML(_headline(models[0]))
        with gr.Tab("Predict"):
            predict_tab(models[0])
        if not models[0].several:
            with gr.Tab("Batch"):
                _batch_tab(models[0])
        if len(models) == 2:
            with gr.Tab("Compare"):
                _compare_tab(models)
        if examples and (models[0].folder / "report.html").is_file():
            with gr.Tab("Report") as tab:
                _report_tab(tab, models[0].folder / "report.html")
    return app.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)


def launch(
    path: str | list[str], share: bool = False, port: int | None = None, wait: bool = True
) -> tuple[gr.Blocks, str]:
    """Serve `build_demo(path)` until it is interrupted; with `wait=False` return the app and its address at once.

    A public link shows no examples of the data and no report, which quotes some. Raises `UserError` when the port is taken.
    """
    app = build_demo(path, examples=not share)
    return start(app, share, port, wait, MAX_FILE_SIZE, [CSS], footer_links=["api"])


def _headline(model: Served) -> str:
    names = model.task.names
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    facts = [_measured(model.folder), f"{'predicts' if not model.task.has_classes else 'knows'} {shown}"]
    lines = "".join(f"<p>{html.escape(fact)}</p>" for fact in facts if fact)
    return f'<header class="headline"><h1>{html.escape(model.name)}</h1>{lines}</header>'


def _measured(folder: Path) -> str:
    """Return the first metric of the test part with its interval ("" where nothing was measured)."""
    found = MetricsRecord.read(folder).test if (folder / MetricsRecord.NAME).is_file() else None
    if not found:
        return ""
    name, value = next(iter(found.items()))
    interval = ends(value, 3)
    return f"{titled(name)} {value['value']:.3f} on held-out examples (95 % interval {interval})"


def _fields(model: Served) -> Any:
    """Return what two models have to share, so that one form asks both."""
    return model.columns if model.several or model.predictor.named else len(model.columns)


def _names(model: Served) -> list[str]:
    """Return what the API calls the inputs."""
    names = model.columns if model.several else model.predictor.named and model.predictor.named.kinds
    if names:
        return [re.sub(r"\W", "_", name) for name in names]
    return list(model.kind.api_names[: len(model.columns)])


# --- one question ----------------------------------------------------------------------------------------------------


def _inputs(model: Served) -> list[gr.components.Component]:
    name = model.kind.noun.capitalize()
    if model.several:
        return [_field(block) for block in model.predictor.head.layout.blocks]
    if model.kind.shows != "words":
        return [_file(model.kind, name)]
    if named := model.predictor.named:
        return [gr.Textbox(label=label, lines=4 if kind == model.kind.name else 1, max_lines=16, info=kind)
                for label, kind in named.kinds.items()]  # fmt: skip
    labels = [name] if len(model.columns) == 1 else [name.replace("_", " ") for name in model.columns]
    return [
        gr.Textbox(label=label, lines=8 // len(labels), max_lines=16, placeholder="Write or paste here",
                   info="Shift + Enter asks the model")
        for label in labels
    ]  # fmt: skip


def _file(kind: ModalityKind, label: str, height: int = 320) -> gr.components.Component:
    if kind.shows == "picture":
        shown = gr.Image(type="filepath", sources=["upload", "webcam", "clipboard"], label=label, height=height)
    else:
        shown = gr.Audio(type="filepath", sources=["upload", "microphone"], label=label)
    shown.preprocess = _undecoded  # a subclass would have Gradio write a .pyi beside this file
    return shown


def _field(block: Block) -> gr.components.Component:
    """Return the field of one of several inputs; each may be left empty."""
    if block.kind == NUMBER:
        return gr.Number(label=block.name, value=None)
    if block.kind == CATEGORY:
        return gr.Dropdown(list(block.categories), label=block.name, value=None, allow_custom_value=True)
    kind = kind_of(block.kind)
    return (
        _file(kind, block.name, 240) if kind.shows != "words" else gr.Textbox(label=block.name, lines=4, max_lines=16)
    )


def _undecoded(upload: Any) -> str | None:
    """Return the uploaded file as it is: whether to decode it is decided by `uploads`."""
    return None if upload is None else upload.path


def _answer(task: Task, label: str = "Prediction") -> gr.components.Component:
    if task.by_word:
        return gr.HighlightedText(label=label, show_legend=True, combine_adjacent=False)
    if task.by_pixel:
        return gr.Image(type="pil", format="png", label=label, interactive=False, height=320)
    if not task.has_classes:
        return gr.Dataframe(headers=["target", "value"], label=label, interactive=False, elem_classes="values")
    top = min(8, len(task.names))
    return gr.Label(num_top_classes=top, label=label, show_heading=task.exclusive)


def _asked(model: Served, frame: pd.DataFrame) -> tuple[Any, dict[str, Any]]:
    """Return the answer to one input as `_answer` takes it, and what the run knows of its limits."""
    if model.task.by_word:
        found = [{"entity": e["label"], "start": e["start"], "end": e["end"]} for e in model.entities(frame)[0]]
        return dict(text=frame["input"].iloc[0], entities=found), {}
    if model.task.by_pixel:
        return overlay(model.task, frame["input"].iloc[0], model.masks(frame)[0], OPACITY), {}
    scores, limits = model.ask(frame)
    return _shown(model.task, scores[0]), limits


def _shown(task: Task, scores: np.ndarray) -> Any:
    """One row of scores as `_answer` takes it."""
    if not task.has_classes:
        return [[name, f"{value:.4g}"] for name, value in zip(task.names, scores, strict=True)]
    return dict(zip(task.names, map(float, scores), strict=True))


def _events(given: Any) -> list[Any]:
    """Return what asks the model beside the button: a new picture, a recording, or Shift + Enter in a text."""
    if isinstance(given, gr.Slider):
        return []
    if isinstance(given, gr.Audio):
        return [given.upload, given.stop_recording]
    return [given.input if isinstance(given, gr.Image) else given.submit]


def _asking(
    model: Served, inputs: Sequence[Any], button: gr.Button, ask: Callable, outputs: list[Any], api_name: str,
    settings: Sequence[str] = (),
) -> None:  # fmt: skip
    """Connect the button, and what each input has for it: a new picture, or Shift + Enter in a text.

    `settings` are what the API calls inputs beside those of the model.
    """
    own = [] if model.several else [event for each in inputs for event in _events(each)]
    asking = with_messages(ask, *_names(model), *settings)
    gr.on([button.click, *own], asking, list(inputs), outputs, api_name=api_name, concurrency_id="ask",
          show_progress_on=outputs[:1])  # fmt: skip
    for each in inputs:
        if isinstance(each, gr.Image | gr.Audio):
            each.clear(lambda: [None] * len(outputs), None, outputs, api_visibility="private", queue=False)


def predict_tab(model: Served) -> None:
    """Build what asks the model one question, in the surrounding tab."""
    if model.task.by_pixel:
        return mask_tab(model, lambda: _inputs(model), with_messages, _asking)

    def ask(*inputs: str | None) -> tuple[Any, str]:
        """Probabilities, or values, for one input, and remarks on it."""
        frame, remark = model.frame(*inputs)
        found, limits = _asked(model, frame)
        return found, _remarks(model, limits, remark)

    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            inputs = _inputs(model)
            button = gr.Button("Predict", variant="primary")
        with gr.Column(min_width=300):
            answer = _answer(model.task)
            remarks = gr.HTML(elem_classes="remark")
            why = None if model.lacks("--explain") else _why(model, inputs)
            if not (model.lacks("review") or model.task.by_part):  # words and pixels take more than a choice
                _correction(model, inputs)
    _asking(model, inputs, button, ask, [answer, remarks], "predict")
    if why is not None:
        answer.change(lambda: "", None, why, api_visibility="private", queue=False)


def _why(model: Served, inputs: list[Any]) -> gr.HTML:
    """Return what spoke for the answer, on demand: it costs as much as many answers."""

    def because(*inputs: str | None) -> str:
        return why_html(model, model.frame(*inputs)[0])

    with gr.Accordion("Why?", open=False):
        button = gr.Button("Show what led to the answer", size="sm")
        shown = gr.HTML(elem_classes="why")
    button.click(
        with_messages(because), inputs, shown, api_visibility="private", concurrency_id="why", concurrency_limit=1
    )
    return shown


def _remarks(model: Served, limits: dict[str, Any], remark: str) -> str:
    """Return what the run knows of its limits on one input, and what was found odd in the input, as HTML."""
    said = [remark]
    if limits.get("unknown", [False])[0]:
        said.append("This input is unlike the training data: it may be none of these.")
    if limits.get("set", [""])[0]:
        names = limits["set"][0].replace("|", ", ")
        said.append(f"At {100 * model.predictor.reliability.level:.0f} % confidence: {names}.")
    for name in model.task.names:
        if f"lower:{name}" in limits:
            low, high = (limits[f"{end}:{name}"][0] for end in ("lower", "upper"))
            said.append(
                f"{name}: {low:.4g} to {high:.4g} at {100 * model.predictor.reliability.level:.0f} % confidence."
            )
    if model.task.several and not model.task.by_word:
        said.append("Each label has a probability of its own; those above 50 % are predicted.")
    return "".join(f"<p>{html.escape(each)}</p>" for each in said if each)


def _compare_tab(models: list[Served]) -> None:
    def ask(*inputs: str | None) -> tuple[Any, ...]:
        """Return what both runs say to one input, and a remark on the input."""
        frame, remark = models[0].frame(*inputs)
        return *(_asked(model, frame)[0] for model in models), html.escape(remark)

    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            inputs = _inputs(models[0])
            button = gr.Button("Compare", variant="primary")
            remark = gr.HTML(elem_classes="remark")
        with gr.Column(min_width=300):
            answers = [_answer(model.task, model.name) for model in models]
    _asking(models[0], inputs, button, ask, [*answers, remark], "compare")


# --- corrections -----------------------------------------------------------------------------------------------------


def _correction(model: Served, inputs: list[Any]) -> None:
    patch = beside(model.folder, "corrections")

    def wrong(*given: Any) -> str:
        """Keep an input with its right label."""
        *questions, label = given
        frame, _ = model.frame(*questions)
        keep_correction(patch, model, frame, label)
        return f"Kept in {patch.name}, thank you."

    with gr.Accordion("This is wrong", open=False):
        label = _label_input(model.task)
        button = gr.Button("Keep the right answer", size="sm")
        thanks = gr.Markdown(elem_classes="remark")
    button.click(
        with_messages(wrong, *_names(model), "label"),
        [*inputs, label],
        thanks,
        api_name="wrong",
        concurrency_id="keep",
        concurrency_limit=1,
    )


def _label_input(task: Task) -> gr.components.Component:
    if not task.has_classes:
        return gr.Textbox(label=f"Right value ({', '.join(task.names)})", placeholder="numbers, separated by spaces")
    return gr.Dropdown(list(task.names), value=None, multiselect=task.several, label="Right label")


# --- many questions --------------------------------------------------------------------------------------------------


def _batch_tab(model: Served) -> None:
    made = tempfile.TemporaryDirectory(prefix="hftransfer-demo-")

    def answer(file: str | None, progress: gr.Progress = gr.Progress()) -> tuple[str, dict[str, Any], str]:  # noqa: B008
        """Return a CSV with one prediction a row, its first rows, and how many inputs could not be read."""
        for earlier in Path(made.name).iterdir():  # Gradio has its own copy, which it removes after an hour
            shutil.rmtree(earlier)
        with tempfile.TemporaryDirectory() as place:
            frame = uploads.read_batch(file, model.kind, model.predictor.named or model.columns, Path(place))
            table = pd.concat(_chunks(model, frame, progress), ignore_index=True)
        target = Path(made.name) / uuid.uuid4().hex / "predictions.csv"
        target.parent.mkdir()
        table.to_csv(target, index=False)
        failed = int((table["error"] != "").sum())
        said = f"{len(table)} predictions." + (
            f" {failed} without an answer: see the column `error`." if failed else ""
        )
        return str(target), gr.update(value=_preview(table), visible=True), said

    wanted = uploads.expected(model.kind, len(model.columns) == 2)
    gr.Markdown(f"Send {wanted}; a CSV with the predictions comes back. At most {uploads.MAX_ROWS:,} rows.")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            types = uploads.suffixes(model.kind)
            file = gr.File(label=wanted[0].upper() + wanted[1:], file_types=types, height=160)
            button = gr.Button("Predict all", variant="primary")
        with gr.Column(min_width=300):
            result = gr.File(label="Predictions (CSV)", height=120)
            said = gr.Markdown(elem_classes="remark")
    preview = gr.Dataframe(label="First rows", interactive=False, visible=False)
    button.click(
        with_messages(answer),
        file,
        [result, preview, said],
        api_name="batch",
        concurrency_id="batch",
        concurrency_limit=1,
    )


def _chunks(model: Served, frame: pd.DataFrame, progress: gr.Progress) -> Iterator[pd.DataFrame]:
    start = 0
    while start < len(frame):
        progress((start, len(frame)), desc="Predicting", unit="rows")
        size = _chunk_size(model, frame.iloc[start : start + CHUNK])
        yield answered(model, frame.iloc[start : start + size])
        start += size


def _chunk_size(model: Served, frame: pd.DataFrame) -> int:
    """Return how many of the first rows fit into memory together: pictures of one chunk are decoded before any answer."""
    if model.kind.shows != "picture":
        return len(frame)
    total = np.cumsum([uploads.pixels(path) for path in frame["input"]])
    return max(1, int(np.searchsorted(total, uploads.MAX_PIXELS, side="right")))


def _preview(table: pd.DataFrame) -> pd.DataFrame:
    """Ten rows without the scores, long texts cut."""
    shown = (
        table[[name for name in table if not name.startswith("score:")]].head(10).astype(object).fillna("").astype(str)
    )
    return shown.map(lambda value: value if len(value) <= 120 else value[:119] + "…")


# --- the report ------------------------------------------------------------------------------------------------------


def _report_tab(tab: gr.Tab, report: Path) -> None:
    """Show the report when it is asked for."""

    def page() -> str:
        return report_html(report)

    frame = gr.HTML()
    tab.select(page, None, frame, api_visibility="private")


def report_html(report: Path) -> str:
    """Return a report in a frame in which it can run nothing and reach nothing."""
    content = html.escape(report.read_text(encoding="utf-8"), quote=True)
    return f'<iframe class="report" title="Report of the run" sandbox srcdoc="{content}"></iframe>'
