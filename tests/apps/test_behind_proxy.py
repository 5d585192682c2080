"""The demo behind a reverse proxy: a path prefix, another host, TLS in front of it; as nginx or Traefik forward requests."""

import http.client
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pandas as pd
import pytest

from hftransfer.apps.demo import launch
from hftransfer.apps.web import OPENED_BY
from hftransfer.train import run
from tests.behaviour.test_matrix import configuration

PUBLIC = "https://models.example/demo"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length", "host"}


class Forwarding(BaseHTTPRequestHandler):
    """Passes what stands below /demo on, without that prefix; everything else is not found."""

    protocol_version = "HTTP/1.1"
    target, keeps_host = "", False

    def forward(self) -> None:
        if not self.path.startswith("/demo/"):
            return self.send_error(404)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        headers |= {"X-Forwarded-Host": "models.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/demo"}
        headers["Host"] = "models.example" if self.keeps_host else self.target
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self.target, timeout=60)
        connection.request(self.command, self.path.removeprefix("/demo"), body, headers)
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        while piece := answer.read1(65536):  # events are passed on as they come
            self.wfile.write(piece)
            self.wfile.flush()
        connection.close()
        self.close_connection = True

    do_GET = do_POST = do_HEAD = forward  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def proxy(target: str, keeps_host: bool) -> Iterator[str]:
    kind = type("Handler", (Forwarding,), {"target": urlsplit(target).netloc, "keeps_host": keeps_host})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/demo"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return run(configuration("probe", "image", tmp_path_factory.mktemp("image"))).folder


@pytest.fixture
def served(made, monkeypatch):
    """The address of the demo; `variables` are set before it starts."""
    apps = []

    def serve(**variables: str) -> str:
        for name in OPENED_BY:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        app, url = launch(str(made), wait=False)
        apps.append(app)
        return url

    yield serve
    for app in apps:
        app.close()


def ask(client: httpx.Client, name: str, *data: object) -> list:
    """The answer of an endpoint, as the page gets it: a call, then its events."""
    call = client.post(f"gradio_api/call/{name}", json={"data": list(data)})
    events = client.get(f"gradio_api/call/{name}/{call.json()['event_id']}").text
    assert "event: complete" in events, events
    return json.loads(events.split("event: complete\ndata: ", 1)[1].splitlines()[0])


def upload(client: httpx.Client, name: str, content: bytes) -> dict:
    (path,) = client.post("gradio_api/upload", files={"files": (name, content)}).json()
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("keeps_host", [False, True])
def test_pictures_batches_and_styles_pass_a_proxy_with_a_prefix(made, served, keeps_host):
    table = pd.read_parquet(made / "splits.parquet").query("split == 'test'").head(2)
    pictures = [Path(path).read_bytes() for path in table["input"]]
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for number, picture in enumerate(pictures):
            archive.writestr(f"{number}.png", picture)
    url = served(GRADIO_ROOT_PATH="/demo")
    origin = {"Origin": "https://models.example"}
    with (
        proxy(url, keeps_host) as address,
        httpx.Client(base_url=f"{address}/", headers=origin, trust_env=False, timeout=60) as client,
    ):
        page = client.get("")
        assert page.status_code == 200 and client.get("config").json()["root"] == PUBLIC
        linked = {path for path in re.findall(r'(?:href|src)="([^"]+\.(?:css|js))"', page.text) if "cdnjs" not in path}
        below = {path.removeprefix(PUBLIC).lstrip("./") for path in (*linked, "theme.css")}
        assert len(below) > 1 and not [path for path in below if client.get(path).status_code != 200]

        answer, _ = ask(client, "predict", upload(client, "a.png", pictures[0]))
        expected = pd.read_parquet(made / "predictions.parquet").set_index("id").loc[table["id"].iloc[0], "prediction"]
        assert answer["label"] == expected

        csv, _, said = ask(client, "batch", upload(client, "a.zip", zipped.getvalue()))
        assert said == "2 predictions." and csv["url"].startswith(f"{PUBLIC}/gradio_api/file=")
        sent = client.get(csv["url"].removeprefix(f"{PUBLIC}/"))
        assert pd.read_csv(io.StringIO(sent.text))["id"].tolist() == ["0.png", "1.png"]


def test_behind_a_proxy_that_it_was_not_told_of_the_refusal_names_the_variable(served):
    with proxy(served(), keeps_host=True) as address, httpx.Client(trust_env=False) as client:
        page = client.get(f"{address}/")
    assert page.status_code == 400
    assert "Behind a proxy, start it with GRADIO_ROOT_PATH=/PATH of the page there" in page.text
