"""The page "Train": checkpoint, strategy and time; what the running training does, and the button that ends it."""

import html

import gradio as gr

from hftransfer.apps.web import with_messages
from hftransfer.studio.data_page import DataPage
from hftransfer.studio.jobs import Job, Jobs
from hftransfer.studio.place import Place
from hftransfer.studio.progress import status_html
from hftransfer.studio.training import DESCRIBED, checkpoints, suggested_name, train

SECONDS = 1.5  # between two looks at the job


class TrainPage:
    """The widgets of the page. What is shown of a training is read from its files, whoever started it."""

    def __init__(self, place: Place, jobs: Jobs, data: DataPage):
        self.place, self.jobs, self.data = place, jobs, data
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self._build_choice()
            with gr.Column(scale=3, min_width=300):
                self.status = gr.HTML(min_height=0)
                with gr.Accordion("Log", open=False):
                    self.log = gr.HTML(min_height=0)
        self.seen, self.timer = gr.State(None), gr.Timer(SECONDS)
        self._connect()

    def _build_choice(self) -> None:
        self.chosen = gr.HTML(min_height=0)
        self.model = gr.Dropdown(["auto"], value="auto", label="Checkpoint", allow_custom_value=True,
                                 info="auto: the default for these inputs; or any name on the Hub")  # fmt: skip
        strategies = [(text, name) for name, text in DESCRIBED.items()]
        self.strategy = gr.Dropdown(strategies, value="probe", label="Strategy", elem_id="strategy")
        self.minutes = gr.Slider(1, 60, 10, step=1, label="Time budget (minutes)", visible=False)
        self.name = gr.Textbox("", label="Name of the run", max_lines=1, placeholder="found from data and strategy")
        with gr.Row():
            self.train = gr.Button("Train", variant="primary", elem_id="train")
            self.stop = gr.Button("Stop", interactive=False, elem_id="stop")

    def _connect(self) -> None:
        shown = [self.seen, self.status, self.log, self.train, self.stop]
        asked = [self.data.data, self.model, self.strategy, self.minutes, self.name, self.data.options]
        self.train.click(with_messages(self._train), asked, shown, api_visibility="private")
        self.stop.click(with_messages(self._stop), None, shown, api_visibility="private")
        self.timer.tick(self._look, self.seen, shown, api_visibility="private", show_progress="hidden", queue=False)
        self.strategy.change(lambda name: gr.update(visible=name == "auto"), self.strategy, self.minutes,
                             api_visibility="private", queue=False)  # fmt: skip
        gr.on([self.data.data.change, self.strategy.change], self._suggested, [self.data.data, self.strategy],
              [self.chosen, self.name], api_visibility="private", queue=False)  # fmt: skip

    def loaded(self, data: str | None) -> tuple:
        """Return what a reload shows: the checkpoints at hand, the data, and the name that a run of it would have."""
        return gr.update(choices=checkpoints(self.place)), *self._suggested(data, "probe")

    def _suggested(self, data: str | None, strategy: str) -> tuple:
        name = suggested_name(self.place, data, strategy)
        shown = f"<p>Data: <b>{html.escape(data)}</b></p>" if data else '<p class="quiet">Choose the data first.</p>'
        return shown, gr.update(placeholder=name)

    def _train(self, data: str | None, model: str, strategy: str, minutes: float, name: str, options: str) -> tuple:
        job = train(self.place, self.jobs, data, model, strategy, minutes, name, "", options)
        self.place.remember(data=data)
        return self._shown(job)

    def _stop(self) -> tuple:
        job = self.jobs.last
        if job is not None:
            job.stop()
            gr.Info("Asked to end: a training keeps its best weights so far. Press again to stop at once.")
        return self._shown(job)

    def _look(self, seen: tuple | None) -> tuple:
        """Return the state of the last job; nothing where it is shown already, so that a page stands still."""
        job = self.jobs.last
        return (gr.skip(),) * 5 if seen is not None and seen == _signature(job) else self._shown(job)

    def _shown(self, job: Job | None) -> tuple:
        running = job is not None and job.running
        log = "" if job is None else f"<pre>{html.escape(chr(10).join(job.log()))}</pre>"
        buttons = (gr.update(interactive=not running), gr.update(interactive=running))
        return _signature(job), status_html(job), log, *buttons


def _signature(job: Job | None) -> list:
    """Return what changes when there is something new to show."""
    if job is None:
        return []
    return [job.folder.name, job.state, int(job.seconds), len(job.log(10**6))]
