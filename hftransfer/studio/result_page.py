"""The page "Result": the runs, what they measured, their report, and the demo of the one that is chosen."""

import html
from pathlib import Path

import gradio as gr

from hftransfer.apps import demo
from hftransfer.apps.serving import Served, serve
from hftransfer.apps.web import with_messages
from hftransfer.core.wording import ends
from hftransfer.evaluation.comparison import Comparison, compare
from hftransfer.evaluation.kinds import titled
from hftransfer.runs.reader import RecordedRun
from hftransfer.studio.deliver import DeliverTab
from hftransfer.studio.jobs import Jobs
from hftransfer.studio.place import Place
from hftransfer.studio.progress import headline


class ResultPage:
    """The widgets of the page; `run` is the name of the chosen run, which the page of the labels reads too."""

    def __init__(self, place: Place, jobs: Jobs):
        self.place = place
        with gr.Row(equal_height=True):
            self.run = gr.Dropdown([], label="Run", elem_id="run", min_width=260)
            self.other = gr.Dropdown([], label="Compare with", min_width=260)
        with gr.Tabs():
            with gr.Tab("Metrics"):
                self.metrics, self.compared = gr.HTML(min_height=0), gr.HTML(min_height=0)
            with gr.Tab("Report") as report:
                self.report = gr.HTML(min_height=0)
            with gr.Tab("Try it"):
                self.load = gr.Button("Load the model", elem_id="load")
                gr.render(self.run, [self.load.click])(self._try)
            with gr.Tab("Deliver"):
                DeliverTab(place, jobs, self.run)
        self._connect(report)

    def _connect(self, report: gr.Tab) -> None:
        options = {"api_visibility": "private"}
        gr.on([self.run.change, report.select], with_messages(self._report), self.run, self.report, **options)
        self.run.change(with_messages(self._metrics), self.run, self.metrics, **options)
        gr.on([self.run.change, self.other.change], with_messages(self._compared), [self.run, self.other], self.compared,
              **options)  # fmt: skip

    def loaded(self) -> tuple:
        """Return the runs that there are; the latest one is shown."""
        names = self.place.run_names()
        return gr.update(choices=names, value=next(iter(names), None)), gr.update(choices=["", *names], value="")

    def _metrics(self, name: str | None) -> str:
        return (
            metrics_html(RecordedRun.open(self.place.run(name))) if name else "<p>There is no run yet: train one.</p>"
        )

    def _compared(self, name: str | None, other: str | None) -> str:
        if not name or not other or name == other:
            return ""
        return comparison_html(compare([self.place.run(name), self.place.run(other)]))

    def _report(self, name: str | None) -> str:
        report = self.place.run(name) / "report.html" if name else None
        return demo.report_html(report) if report and report.is_file() else "<p>This run has no report.</p>"

    def _try(self, name: str | None) -> None:
        if name:
            demo.predict_tab(_served(self.place.run(name)))


_loaded: dict[Path, Served] = {}


def _served(folder: Path) -> Served:
    """Return the model of a run; the last one stays loaded."""
    if folder not in _loaded:
        model = serve(folder)
        _loaded.clear()
        _loaded[folder] = model
    return _loaded[folder]


def metrics_html(run: RecordedRun) -> str:
    """Return the result of a run in one sentence, then each part with its metrics and intervals."""
    record = run.record
    about = f"{record.strategy} on {record.checkpoint.source}, {run.seconds:.0f} s"
    tables = "".join(
        f'<table class="metrics"><caption>{html.escape(run.metrics.describe_part(part).capitalize())}</caption>'
        f"<tr><th>metric</th><th>value</th><th>95 % interval</th></tr>{_rows(found)}</table>"
        for part, found in sorted(run.metrics.parts.items(), key=lambda item: item[0] != run.metrics.headline)
    )
    ended = f'<p class="bad">Ended early: {html.escape(record.interrupted)}</p>' if record.interrupted else ""
    return (f'<p class="headline-result">{html.escape(headline(run.metrics))}</p><p class="quiet">{html.escape(about)}</p>'
            f"{ended}{tables}")  # fmt: skip


def _rows(found: dict[str, dict]) -> str:
    return "".join(
        f'<tr><th scope="row">{html.escape(titled(name))}</th><td>{value["value"]:.3f}</td><td>{ends(value, 3)}</td></tr>'
        for name, value in found.items()
    )


def comparison_html(found: Comparison) -> str:
    """Return the verdict of a comparison, the runs, and the difference with its interval."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(run.name)}</th><td>{run.metrics[found.metric].value:.3f}</td>'
        f"<td>{run.metrics[found.metric].low:.3f} to {run.metrics[found.metric].high:.3f}</td></tr>"
        for run in found.runs
    )
    pairs = "".join(
        f"<p>{html.escape(pair.second)} against {html.escape(pair.first)}: {pair.difference:+.3f} "
        f"({pair.low:+.3f} to {pair.high:+.3f}), p = {pair.p_value:.3f}</p>"
        for pair in found.pairs
    )
    notes = "".join(f'<p class="quiet">{html.escape(note)}</p>' for note in found.notes)
    return (f'<section class="compared"><h3>{html.escape(found.verdict)}</h3><table class="metrics">'
            f"<tr><th>run</th><th>{html.escape(titled(found.metric))}</th><th>95 % interval</th></tr>{rows}</table>"
            f"{pairs}{notes}</section>")  # fmt: skip
