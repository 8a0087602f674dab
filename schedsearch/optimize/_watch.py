"""The live view: the report of a run that goes on, on this machine's loopback address and nowhere else.

It answers ``GET /`` with a page that follows the run, ``GET /report`` with the report in it, which is the file that the
run will write, and ``GET /status.json`` with where the run stands; there are no other paths, no files are read by name,
and nothing can be changed. A request must name this machine as its host, so that a web page
elsewhere cannot read it under a name of its own (DNS rebinding). The report is made when somebody asks for it, not more
often than the study grows, and not while wall times are measured. Knows nothing of what is in the report.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

from schedsearch._terminal import plain
from schedsearch.errors import SchedSearchError, UsageError
from schedsearch.optimize._display import Display, Status

HOST = "127.0.0.1"

REST = 5.0
"""Seconds between two reports at least; and four times as long as one takes, so that the search has the processor."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Render = Callable[[Path], str]


def report_page(folder: Path, *, storage: str | None = None, name: str = "") -> str:
    """Return the report of the run in ``folder`` as it stands.

    Args:
        folder: of the run.
        storage: where its study is, if not in the folder.
        name: of the study in that storage.
    """
    from schedsearch_reports import render, report_data

    return render(report_data(folder, storage=storage, name=name))


class LiveView:
    """The page as it is now, and where the run stands; for many threads at once.

    Args:
        folder: of the run.
        render: makes the page of a folder.
        clock: seconds from any moment on.
    """

    def __init__(
        self, folder: Path, *, render: Render = report_page, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._render = render
        self._clock = clock
        self._lock = threading.Lock()
        self._status, self._told_at = Status(), clock()
        self._grown = 0
        self._page, self._page_at, self._not_before = "", -1, -math.inf

    def __call__(self, status: Status) -> None:
        """Take note of ``status``; every one may mean that there is more to report."""
        self._status, self._told_at = status, self._clock()
        self._grown += 1

    def page(self) -> str:
        """Return the report, or as long as there is none, a page that says so."""
        with self._lock:
            if self._is_stale():
                self._make()
            return self._page or _waiting(self._status)

    def status(self) -> dict[str, object]:
        """Return where the run stands, and the number of the page that would be given now."""
        status, ago = self._status, self._clock() - self._told_at
        found = dataclasses.asdict(status)
        for key in ("eta_seconds", "all_seconds"):
            if found[key] is not None:
                found[key] = max(found[key] - ago, 0.0)
        return {**found, "page": self._grown if self._is_stale() else self._page_at}

    def _is_stale(self) -> bool:
        return self._page_at < self._grown and not self._status.is_timing and self._clock() >= self._not_before

    def _make(self) -> None:
        grown, began = self._grown, self._clock()
        # Nothing to report yet, or caught between two records: the page before stays.
        with suppress(SchedSearchError, OSError, ValueError, LookupError):
            self._page = self._render(self._folder)
        took = self._clock() - began
        self._page_at, self._not_before = grown, began + took + max(REST, 4.0 * took)


def _waiting(status: Status) -> str:
    stage = html.escape(status.stage or "starting")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>schedsearch</title>'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        "<style>body{font:1rem/1.5 system-ui,sans-serif;margin:3rem auto;max-width:40rem;padding:0 1rem}</style>"
        f"</head><body><h1>schedsearch</h1><p>Nothing to report yet: {stage}.</p></body></html>"
    )


@cache
def shell() -> tuple[str, str]:
    """Return the page around the report, and the policy it is served under: its own script, and nothing else's."""
    text = (files("schedsearch.optimize") / "_live.html").read_text(encoding="utf-8")
    script = text.partition("<script>")[2].partition("</script>")[0]
    told = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{told}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return text, policy


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # there it would take the port away from another program
    view: LiveView

    def handle_error(self, _request: object, _address: object) -> None:
        """A reader that goes away in the middle is nobody's error."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: _Server
    server_version = "schedsearch"
    sys_version = ""
    timeout = 10.0

    def do_GET(self) -> None:
        """Answer with content."""
        self._answer(is_head=False)

    def do_HEAD(self) -> None:
        """Answer with headers alone."""
        self._answer(is_head=True)

    def _answer(self, *, is_head: bool) -> None:
        path = self.path.partition("?")[0]
        if not self._is_for_us():
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "Not the name of this machine.\n", is_head=is_head)
        elif path == "/":
            text, policy = shell()
            self._send(HTTPStatus.OK, "text/html", text, is_head=is_head, policy=policy)
        elif path == "/report":
            self._send(HTTPStatus.OK, "text/html", self.server.view.page(), is_head=is_head)
        elif path == "/status.json":
            status = json.dumps(plain(self.server.view.status()))
            self._send(HTTPStatus.OK, "application/json", status, is_head=is_head)
        else:
            self._send(
                HTTPStatus.NOT_FOUND, "text/plain", "There is only /, /report and /status.json.\n", is_head=is_head
            )

    def _is_for_us(self) -> bool:
        port = self.server.server_address[1]
        return self.headers.get_all("Host") in ([f"{HOST}:{port}"], [f"localhost:{port}"])

    def _send(
        self, status: HTTPStatus, kind: str, text: str, *, is_head: bool, policy: str = "frame-ancestors 'self'"
    ) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in {**HEADERS, "Content-Security-Policy": policy}.items():
            self.send_header(name, value)
        self.end_headers()
        if not is_head:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: the terminal belongs to the search."""


@contextmanager
def watching(
    folder: Path, port: int | None, display: Display, *, render: Render = report_page
) -> Iterator[LiveView | None]:
    """Serve the report of ``folder`` while the block runs, and show where; nothing without a port.

    Args:
        folder: of the run.
        port: on the loopback address; 0 takes a free one.
        display: whose stages are told.
        render: makes the page of a folder.

    Raises:
        UsageError: the port cannot be had.
    """
    if port is None:
        yield None
        return
    try:
        server = _Server((HOST, port), _Handler)
    except OSError as error:
        raise UsageError(
            f"--watch: found port {port} not to be had ({error.strerror}), expected a free one. Name another, or 0 for "
            "any that is free."
        ) from error
    server.view = LiveView(folder, render=render)
    display.watcher = server.view
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True, name="watch")
    thread.start()
    told = f"Live view: http://{HOST}:{server.server_address[1]}/"
    if port == 0:  # also where little is said: nobody else knows which port it is
        display.console.print(told, markup=False, soft_wrap=True)
    else:
        display.line(told)
    try:
        yield server.view
    finally:
        display.watcher = None
        server.shutdown()
        server.server_close()
