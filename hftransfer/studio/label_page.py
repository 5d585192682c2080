"""The page "Label": suspected errors and uncertain examples of a run, and the training with the decisions about them."""

import html

import gradio as gr

from hftransfer.apps.review.page import Review, ReviewPage
from hftransfer.apps.web import with_messages
from hftransfer.core.errors import UserError
from hftransfer.studio.jobs import Jobs
from hftransfer.studio.map_tab import MapTab
from hftransfer.studio.place import Place
from hftransfer.studio.training import train_again
from hftransfer.studio.uncertain import Uncertain, question_html

OPTIONS = {"api_visibility": "private"}
MOST_BUTTONS = 12  # more labels are chosen from a list


class LabelPage:
    """The widgets of the page. Decisions go to the patch of the run, as `hftransfer review` writes it."""

    def __init__(self, place: Place, jobs: Jobs):
        self.place, self.jobs, self.uncertain = place, jobs, Uncertain(place)
        with gr.Row(equal_height=True):
            self.run = gr.Dropdown([], label="Run", elem_id="labelled-run", min_width=260)
            self.again = gr.Button("Train again with the decisions", elem_id="again", min_width=260)
        self.started = gr.HTML(min_height=0)
        with gr.Tabs():
            with gr.Tab("Suspected"):
                self.open = gr.Button("Show what is suspected", elem_id="suspected")
                gr.render(self.run, [self.open.click])(self._review)
            with gr.Tab("Uncertain") as uncertain:
                self._build_uncertain()
            with gr.Tab("Map"):
                MapTab(place, self.run)
        self._connect(uncertain)

    def _build_uncertain(self) -> None:
        with gr.Row(equal_height=True):
            self.pool = gr.Textbox("", label="Examples without labels", placeholder="a folder or table, such as new/",
                                   max_lines=1, elem_id="pool", min_width=260)  # fmt: skip
            self.count = gr.Slider(5, 200, 20, step=5, label="How many", min_width=200)
        self.choose = gr.Button("Choose what to label", elem_id="choose")
        with gr.Row(equal_height=False, visible=False) as self.asked:
            with gr.Column(scale=3, min_width=300):
                self.question = gr.HTML(min_height=0)
            with gr.Column(scale=2, min_width=300):
                self.left = gr.HTML(min_height=0)
                self.buttons = gr.Radio([], label="Label", elem_id="labels")
                self.list = gr.Dropdown([], label="Label", visible=False)
                self.keep = gr.Button("Keep the label", variant="primary", elem_id="keep-label")
                self.skip = gr.Button("Skip", elem_id="skip")
        self.current = gr.State(None)

    def _connect(self, uncertain: gr.Tab) -> None:
        shown = [self.current, self.asked, self.question, self.left, self.buttons, self.list]
        self.choose.click(with_messages(self._choose), [self.run, self.pool, self.count], shown, **OPTIONS)
        uncertain.select(with_messages(self._next), None, shown, **OPTIONS)
        self.keep.click(with_messages(self._label), [self.current, self.buttons, self.list], shown, **OPTIONS)
        self.skip.click(with_messages(self._skip), self.current, shown, **OPTIONS)
        self.again.click(with_messages(self._again), self.run, self.started, **OPTIONS)

    def loaded(self) -> dict:
        """Return the runs that there are; the latest one is chosen."""
        names = self.place.run_names()
        return gr.update(choices=names, value=next(iter(names), None))

    def _review(self, name: str | None) -> None:
        """Build the page of `hftransfer review` for a run; a timer shows its first question, and rests."""
        if not name:
            return
        try:
            review = Review(self.place.run(name))
        except UserError as error:
            gr.HTML(f"<p>{html.escape(str(error))}</p>")
            return
        if not review.items:
            gr.HTML('<p class="good">Nothing in this run needs a second look.</p>')
            return
        timer = gr.Timer(0.5)
        ReviewPage(review).build(timer.tick)
        timer.tick(lambda: gr.Timer(active=False), None, timer, **OPTIONS)

    def _choose(self, run: str | None, pool: str, count: float) -> tuple:
        if not run or not pool.strip():
            raise UserError("Choose a run, and name the folder or table with examples to label.")
        self.uncertain.choose(run, pool.strip(), int(count))
        return self._next()

    def _next(self) -> tuple:
        waiting, run = self.uncertain.waiting(), self.uncertain.run
        if not waiting:
            return None, gr.update(visible=False), "", "", gr.skip(), gr.skip()
        names, several = list(run.task.names), run.task.several
        few = len(names) <= MOST_BUTTONS and not several
        left = f"<p>{len(waiting)} to label, for <b>{html.escape(run.name)}</b></p>"
        buttons = gr.update(choices=names, value=None, visible=few)
        listed = gr.Dropdown(choices=names, value=None, multiselect=several, visible=not few)
        return waiting[0], gr.update(visible=True), question_html(run, waiting[0]), left, buttons, listed

    def _label(self, question: dict | None, chosen: str | None, listed: str | list[str] | None) -> tuple:
        if question:
            self.uncertain.label(question, chosen or listed)
        return self._next()

    def _skip(self, question: dict | None) -> tuple:
        if question:
            self.uncertain.skip(question)
        return self._next()

    def _again(self, name: str | None) -> str:
        if not name:
            raise UserError("Choose a run first.")
        job = train_again(self.place, self.jobs, name)
        return (f"<p>Started, see the page Train: <code>{html.escape(job.command)}</code>. Then compare "
                f"<b>{html.escape(job.output.name)}</b> with <b>{html.escape(name)}</b> on the page Result.</p>")  # fmt: skip
