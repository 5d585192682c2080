"""The tab "Map" of the page Label: a click on a point shows its example, and relabels it."""

import html

import gradio as gr

from hftransfer.apps.web import with_messages
from hftransfer.runs.reader import RecordedRun
from hftransfer.studio.feature_map import FeatureMap
from hftransfer.studio.place import Place

OPTIONS = {"api_visibility": "private"}
CLICKED = """element.addEventListener('click', (event) => {
  const row = event.target.closest('[data-row]');
  if (row) trigger('select', { index: Number(row.dataset.row) });
});"""


class MapTab:
    """The widgets of the tab. The slider reaches every point by the keyboard."""

    def __init__(self, place: Place, run: gr.Dropdown):
        self.place = place
        draw = gr.Button("Draw the map", elem_id="draw")
        with gr.Row(equal_height=False, visible=False) as self.drawn:
            with gr.Column(scale=3, min_width=300):
                self.map = gr.HTML(js_on_load=CLICKED, elem_id="map")
            with gr.Column(scale=2, min_width=300):
                self.number = gr.Slider(1, 2, 1, step=1, label="Example", elem_id="point")
                self.example = gr.HTML(min_height=0)
                self.label = gr.Dropdown([], label="Right label", value=None)
                relabel = gr.Button("Relabel", elem_id="relabel-point")
                self.said = gr.HTML(min_height=0)
        shown = [self.drawn, self.map, self.number, self.label, self.example]
        draw.click(with_messages(self._draw), run, shown, **OPTIONS)
        self.map.select(self._picked, None, self.number, **OPTIONS)
        self.number.change(with_messages(self._show), [run, self.number], [self.example, self.said], **OPTIONS)
        relabel.click(with_messages(self._relabel), [run, self.number, self.label], self.said, **OPTIONS)

    def _map(self, run: str | None) -> FeatureMap:
        return FeatureMap.of(RecordedRun.open(self.place.run(run)))

    def _draw(self, run: str | None) -> tuple:
        found = self._map(run)
        slider = gr.Slider(minimum=1, maximum=max(2, len(found.rows)), value=1, step=1)
        choices = gr.update(choices=list(found.run.task.names), value=None)
        return gr.update(visible=True), found.svg(), slider, choices, found.example_html(0)

    def _picked(self, event: gr.EventData) -> int:
        return int(event.index) + 1

    def _show(self, run: str | None, number: float) -> tuple[str, str]:
        found = self._map(run)
        return found.example_html(min(int(number), len(found.rows)) - 1), ""

    def _relabel(self, run: str | None, number: float, label: str | None) -> str:
        found = self._map(run)
        said = found.relabel(min(int(number), len(found.rows)) - 1, label)
        return f'<p class="good">{html.escape(said)}</p>'
