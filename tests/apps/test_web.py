"""The served pages: for this machine alone, with a proxy in the environment, and behind a path prefix."""

import gradio as gr
import httpx
import pytest

from hftransfer.apps.web import OPENED_BY, start
from hftransfer.core.errors import UserError


@pytest.fixture
def served(monkeypatch):
    """What serves a small page; `variables` are set before."""
    apps = []

    def serve(share: bool = False, **variables: str) -> str:
        for name in (*OPENED_BY, "NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with gr.Blocks(analytics_enabled=False) as app:
            gr.Button("Go").click(lambda: None, api_name="go")
        apps.append(app)
        return start(app, share, None, False, "1mb", [])[1]

    yield serve
    for app in apps:
        app.close()


def ask(url: str, method: str = "GET", **headers: str) -> int:
    with httpx.Client(trust_env=False) as client:
        return client.request(method, url, headers=headers).status_code


def test_other_hosts_and_origins_are_refused(served):
    url = served()
    port = url.rstrip("/").rsplit(":")[-1]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert ask(url, Host=host) == 200, host
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", "[", ""):
        assert ask(url, Host=host) == 400, host
    call = f"{url}gradio_api/call/go"
    assert ask(call, "POST", Origin="http://evil.example") == 400
    assert ask(call, "POST", Origin="null") == 400
    assert ask(call, "POST", Origin="http://localhost:1") == 400
    assert ask(call, "POST", Origin=url.rstrip("/")) != 400 and ask(call, "POST") != 400


def test_page_starts_with_a_proxy_in_the_environment(served, monkeypatch):
    dead = "http://127.0.0.1:9"
    url = served(http_proxy=dead, https_proxy=dead, HTTP_PROXY=dead, NO_PROXY="intranet.example")
    assert ask(url) == 200


def test_page_that_cannot_be_reached_is_one_sentence(served, monkeypatch):
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    with pytest.raises(UserError, match="set NO_PROXY=localhost,127.0.0.1 and try again"):
        served()


def test_behind_a_prefix_other_hosts_are_answered(served):
    url = served(GRADIO_ROOT_PATH="/demo")
    assert ask(url, Host="models.example") == 200
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"{url}config").json()["root"].endswith("/demo")
