"""Start the pages of demo, review and studio, for this machine alone unless the user opens them to others."""

import contextlib
import functools
import html
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from hftransfer.apps import uploads
from hftransfer.apps.theme import theme
from hftransfer.core.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPENED_BY = ("GRADIO_SERVER_NAME", "GRADIO_ROOT_PATH", "SPACE_ID")  # set where others shall reach the page


def start(
    app: gr.Blocks,
    share: bool,
    port: int | None,
    wait: bool,
    max_file_size: str,
    css_paths: Sequence[Path],
    js: str | None = None,
    footer_links: Sequence[str] = (),
    closed: bool = False,
) -> tuple[gr.Blocks, str]:
    """Serve `app` until it is interrupted; with `wait=False` return it and its address at once.

    Requests under another name than localhost, or from pages of other sites, are refused unless the page is open to
    others, which `closed` forbids. Raises `UserError` when the port is taken, and when the page cannot be reached from
    this machine.
    """
    is_open = not closed and (share or any(os.environ.get(name) for name in OPENED_BY))
    guard = {} if is_open else {"middleware": [Middleware(LocalRequests)]}
    try:
        with _loopback_without_proxy():
            _, url, _ = app.launch(
                share=share and not closed, server_name="127.0.0.1" if closed else None, server_port=port,
                prevent_thread_lock=not wait, quiet=not wait,
                max_file_size=max_file_size, allowed_paths=[], show_error=False, theme=theme(),
                css_paths=list(css_paths), js=js, footer_links=list(footer_links), ssr_mode=False, app_kwargs=guard,
            )  # fmt: skip
    except OSError as error:
        raise UserError(f"Cannot serve on port {port}: {error}. Choose another --port.") from None
    except ValueError as error:
        if "localhost is not accessible" not in str(error):
            raise
        raise UserError(
            "This machine cannot reach its own page. A proxy or a firewall stands between: set "
            "NO_PROXY=localhost,127.0.0.1 and try again."
        ) from None
    return app, url


@contextlib.contextmanager
def _loopback_without_proxy() -> Iterator[None]:
    """Keep a proxy out of the requests to this machine: Gradio asks its own page whether it is there."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    listed = next((value for value in before.values() if value), "")
    os.environ.update(dict.fromkeys(before, ",".join(filter(None, (listed, *LOOPBACK[:2])))))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class LocalRequests:
    """ASGI middleware that answers requests to this machine's own name, from its own pages.

    A foreign page could otherwise ask through the user's browser: by a name of its own that resolves to 127.0.0.1 (DNS
    rebinding), or by a form (cross-site request forgery), which browsers mark with `Origin`.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] in ("http", "websocket") and not _is_local(Headers(scope=scope)):
            refusal = (
                "This page answers to localhost alone: open the address that the command printed. Behind a proxy, start it "
                "with GRADIO_ROOT_PATH=/PATH of the page there, or with GRADIO_SERVER_NAME=127.0.0.1 where it has none."
            )
            await PlainTextResponse(refusal, status_code=400)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _is_local(headers: Headers) -> bool:
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        local = urlsplit(f"//{host}").hostname in LOOPBACK
        return local and (origin is None or urlsplit(origin).netloc == host)
    except ValueError:  # no host name
        return False


def with_messages(function: Callable, *names: str) -> Callable:
    """Return a user's mistake as a message for the page, escaped, since the page shows it as HTML.

    `names` are what the API calls the arguments.
    """

    @functools.wraps(function)
    def answer(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            message = html.escape(uploads.describe(error))
            raise gr.Error(message, title="That did not work", print_exception=False) from None

    if names:
        answer.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
    return answer
