"""The studio: one local page from data to a model, which calls what the command line calls."""

import html
import logging
import signal
from pathlib import Path

import gradio as gr

from hftransfer.apps.web import start
from hftransfer.core.errors import UserError
from hftransfer.studio.data_page import DataPage
from hftransfer.studio.jobs import Jobs
from hftransfer.studio.label_page import LabelPage
from hftransfer.studio.place import Place
from hftransfer.studio.result_page import ResultPage
from hftransfer.studio.train_page import TrainPage

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
APPS = HERE.parent / "apps"
MAX_FILE_SIZE = "2gb"


def build_studio(folder: str | Path = ".") -> gr.Blocks:
    """Return the app for one folder. Raises `UserError` where there is none, or where nothing can be written."""
    root = Path(folder).resolve()
    if not root.is_dir():
        raise UserError(f"There is no folder {folder}: name the one that holds the data.")
    place, jobs = Place(root), Jobs(root)
    place.remember()
    with gr.Blocks(title=f"{root.name} · hftransfer", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        gr.HTML(f'<header class="headline"><h1>{html.escape(root.name)}</h1><p>{html.escape(str(root))}</p></header>')
        with gr.Tab("Data"):
            data = DataPage(place)
        with gr.Tab("Train"):
            train = TrainPage(place, jobs, data)
        with gr.Tab("Result") as results:
            result = ResultPage(place, jobs)
        with gr.Tab("Label") as labels:
            label = LabelPage(place, jobs)
        options = {"api_visibility": "private", "queue": False}
        app.load(data.loaded, None, data.data, **options)
        app.load(train.loaded, data.data, [train.model, train.chosen, train.name], **options)
        gr.on([app.load, results.select], result.loaded, None, [result.run, result.other], **options)
        gr.on([app.load, labels.select], label.loaded, None, label.run, **options)
    return app.queue(max_size=100, default_concurrency_limit=2, api_open=False)


def launch(folder: str | Path = ".", port: int | None = None, wait: bool = True) -> tuple[gr.Blocks, str]:
    """Serve `build_studio(folder)` on this machine alone until it is interrupted; with `wait=False` return app and address.

    A training that runs goes on when the studio ends. Raises `UserError` when the port is taken.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: its jobs would ignore Stop too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    app = build_studio(folder)
    css = [APPS / "demo.css", APPS / "review" / "review.css", HERE / "studio.css"]
    keys = (APPS / "review" / "keys.js").read_text(encoding="utf-8")
    return start(app, False, port, wait, MAX_FILE_SIZE, css, js=keys, closed=True)
