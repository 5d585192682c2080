"""The page "Data": choose, send or photograph examples; what was detected in them, and the doctor's findings."""

from pathlib import Path

import gradio as gr

from hftransfer.apps.web import with_messages
from hftransfer.studio.captures import counts_html, keep_picture
from hftransfer.studio.detected import can_be_fixed, data_config, examined, findings_html, fixed
from hftransfer.studio.place import TABLES, Place
from hftransfer.studio.training import data_sets

OPTIONS = "data.label=stars\ndata.input=text\ndata.split.group=author"


class DataPage:
    """The widgets of the page; `data` and `options` are read by the page of the training too."""

    def __init__(self, place: Place):
        self.place = place
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self._build_choice()
                self._build_upload()
                self._build_camera()
            with gr.Column(scale=3, min_width=300):
                self.facts = gr.HTML('<p class="quiet">Choose data, and look at them.</p>', min_height=0)
                self.findings = gr.HTML(min_height=0)
                self.fix = gr.Button("Write a cleaned copy", visible=False)
        self._connect()

    def _build_choice(self) -> None:
        known = self.loaded()
        self.data = gr.Dropdown(known["choices"], value=known["value"], label="Data", allow_custom_value=True,
                                elem_id="data", info="class folders or a table; or hub:owner/name")  # fmt: skip
        with gr.Accordion("Columns and other options", open=False):
            self.options = gr.Textbox("", lines=3, label="key=value, one a line", placeholder=OPTIONS)
        self.look = gr.Button("Look at the data", variant="primary", elem_id="look")

    def _build_upload(self) -> None:
        with gr.Accordion("Send a zip or a table", open=False):
            self.sent = gr.File(label="A zip of class folders, or a table", file_types=[".zip", *TABLES], height=140)

    def _build_camera(self) -> None:
        with gr.Accordion("Take pictures with the camera", open=False):
            self.set = gr.Textbox("captures", label="Folder", max_lines=1)
            self.name = gr.Textbox("", label="Class", max_lines=1, placeholder="what the picture shows")
            self.picture = gr.Image(type="filepath", sources=["webcam", "upload"], label="Picture", height=280)
            self.keep = gr.Button("Keep the picture")
            self.kept = gr.HTML(min_height=0)

    def _connect(self) -> None:
        seen = [self.facts, self.findings, self.fix]
        self.look.click(with_messages(self._look), [self.data, self.options], seen, api_visibility="private")
        self.fix.click(
            with_messages(self._fix), [self.data, self.options], [self.data, *seen], api_visibility="private"
        )
        self.sent.upload(with_messages(self._receive), self.sent, [self.data, self.sent], api_visibility="private")
        shot = [self.set, self.name, self.picture]
        self.keep.click(with_messages(self._keep), shot, [self.picture, self.kept, self.data], api_visibility="private")

    def loaded(self) -> dict:
        """Return what a reload shows: the choices, as they were."""
        return self._choices(self.place.choices().get("data"))

    def _choices(self, value: str | None) -> dict:
        known = data_sets(self.place)
        return gr.update(choices=known, value=value or next(iter(known), None))

    def _look(self, name: str | None, options: str) -> tuple:
        config = data_config(self.place, name, options)
        self.place.remember(data=name)
        facts, findings = examined(config)
        return facts, findings_html(findings), gr.update(visible=can_be_fixed(findings))

    def _fix(self, name: str | None, options: str) -> tuple:
        cleaned = fixed(self.place, name or "", data_config(self.place, name, options))
        return self._choices(cleaned), *self._look(cleaned, options)

    def _receive(self, sent: str | None) -> tuple:
        name = self.place.receive(Path(sent))
        self.place.remember(data=name)
        return self._choices(name), None

    def _keep(self, folder: str, name: str, picture: str | None) -> tuple:
        kept = keep_picture(self.place, folder, name, picture)
        return None, counts_html(kept), self._choices(kept.relative_to(self.place.root).as_posix())
