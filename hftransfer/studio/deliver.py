"""Export and push of a run: the command is shown, and the same command is run as a job."""

import html
import shlex
from typing import get_args

import gradio as gr

from hftransfer.apps.web import with_messages
from hftransfer.core.errors import UserError
from hftransfer.publish.export import Format
from hftransfer.studio.jobs import Jobs
from hftransfer.studio.place import Place

OPTIONS = {"api_visibility": "private"}


def export_arguments(run: str, form: str) -> list[str]:
    """Return the arguments of `hftransfer export`."""
    return ["export", f"runs/{run}", "--format", form]


def push_arguments(run: str, repository: str, private: bool) -> list[str]:
    """Return the arguments of `hftransfer push`. Raises `UserError` for a name that is not OWNER/NAME."""
    if repository.strip().count("/") != 1 or repository.strip().startswith("-"):
        raise UserError(f"Expected OWNER/NAME, found {repository!r}.")
    return ["push", f"runs/{run}", repository.strip(), *(["--private"] if private else [])]


def command_html(arguments: list[str]) -> str:
    return f"<pre>{html.escape(shlex.join(['hftransfer', *arguments]))}</pre>"


class DeliverTab:
    """The widgets of a tab of the page Result; `run` is the chosen run."""

    def __init__(self, place: Place, jobs: Jobs, run: gr.Dropdown):
        self.place, self.jobs = place, jobs
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                self.form = gr.Dropdown(list(get_args(Format)), value="onnx", label="Export as")
                self.exported = gr.HTML(min_height=0)
                export = gr.Button("Export", elem_id="export")
            with gr.Column(min_width=300):
                self.repository = gr.Textbox("", label="Push to the Hub as", placeholder="OWNER/NAME", max_lines=1)
                self.private = gr.Checkbox(True, label="Private")
                self.pushed = gr.HTML(min_height=0)
                push = gr.Button("Push", elem_id="push")
        exported, pushed = [run, self.form], [run, self.repository, self.private]
        gr.on([run.change, self.form.change], self._show_export, exported, self.exported, **OPTIONS)
        gr.on(
            [run.change, self.repository.change, self.private.change], self._show_push, pushed, self.pushed, **OPTIONS
        )
        export.click(with_messages(self._export), exported, self.exported, **OPTIONS)
        push.click(with_messages(self._push), pushed, self.pushed, **OPTIONS)

    def _show_export(self, run: str | None, form: str) -> str:
        return command_html(export_arguments(run, form)) if run else ""

    def _show_push(self, run: str | None, repository: str, private: bool) -> str:
        return command_html(push_arguments(run, repository, private)) if run and "/" in repository.strip("/") else ""

    def _export(self, run: str | None, form: str) -> str:
        output = self.place.run(run) / "exports" / form
        return self._started(self.jobs.start(export_arguments(run, form), output).arguments)

    def _push(self, run: str | None, repository: str, private: bool) -> str:
        self.place.run(run)
        return self._started(self.jobs.start(push_arguments(run, repository, private)).arguments)

    def _started(self, arguments: list[str]) -> str:
        return f"{command_html(arguments)}<p>Started: the page Train shows how far it is.</p>"
