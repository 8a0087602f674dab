"""The live view: what it serves, to whom, and when it makes the report anew."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import socket
import threading

import pytest

from schedsearch.errors import StudyError, UsageError
from schedsearch.optimize import Display
from schedsearch.optimize._display import Status
from schedsearch.optimize._watch import HEADERS, HOST, LiveView, watching


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def display():
    from rich.console import Console

    return Display(Console(file=io.StringIO()))


@pytest.fixture
def served(tmp_path, capsys):
    """A live view of pages that say how often they were made; gives its port, the display, and the pages made."""
    made = []

    def render(folder):
        made.append(folder)
        return f"<!doctype html><html><body><h1>page {len(made)}</h1></body></html>"

    shown = Display()
    with watching(tmp_path, 0, shown, render=render):
        port = int(capsys.readouterr().out.split(":")[-1].strip().strip("/"))
        yield port, shown, made


def ask(port, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"{HOST}:{port}", **headers}.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body.decode()


def test_the_report_is_served_as_it_is_in_a_page_that_follows_the_run(served):
    port, _, made = served
    answer, body = ask(port)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<iframe" in body
    assert made == [], "made when it is asked for"
    assert all(answer.headers[name] == value for name, value in HEADERS.items())
    script = body.partition("<script>")[2].partition("</script>")[0]
    told = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{told}';" in answer.headers["Content-Security-Policy"]
    answer, body = ask(port, "/report?7")
    assert body == "<!doctype html><html><body><h1>page 1</h1></body></html>"
    assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'self'"
    assert all(answer.headers[name] == value for name, value in HEADERS.items())


def test_the_status_is_what_the_display_was_told(served):
    port, shown, _ = served
    with shown.stage("searching (auto)") as advance:
        advance(3, 12, "best so far", 60.0)
        told = json.loads(ask(port, "/status.json")[1])
        assert (told["stage"], told["done"], told["total"], told["note"]) == ("searching (auto)", 3, 12, "best so far")
        assert told["is_timing"] is False
    assert json.loads(ask(port, "/status.json")[1])["stage"] == ""


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil.example", "", None],
)
def test_a_request_under_another_name_is_refused(served, host):
    port, _, made = served
    for path in ("/", "/report", "/status.json"):
        answer, body = ask(port, path, Host=None if host is None else host.format(port=port))
        assert (answer.status, body) == (421, "Not the name of this machine.\n")
    assert made == []


def test_localhost_is_a_name_of_this_machine(served):
    port, _, _ = served
    assert ask(port, Host=f"localhost:{port}")[0].status == 200


@pytest.mark.parametrize("path", ["/study.db", "/../etc/passwd", "/%2e%2e/etc/passwd", "//etc/passwd", "/frontier/"])
def test_no_files_are_served(served, path):
    port, _, _ = served
    answer, body = ask(port, path)
    assert (answer.status, body) == (404, "There is only /, /report and /status.json.\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_changed(served, method):
    port, _, _ = served
    assert ask(port, "/", method)[0].status == 501


def test_head_has_no_body(served):
    port, _, _ = served
    answer, body = ask(port, "/", "HEAD")
    assert (answer.status, body) == (200, "")
    assert int(answer.headers["Content-Length"]) > 100


def test_it_listens_on_the_loopback_address_alone(served):
    port, _, _ = served
    with socket.socket() as other:
        other.bind(("127.0.0.2", port))  # would be taken if it listened on all addresses


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path, display):
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(UsageError, match=rf"--watch: found port {port} not to be had \(.+\), expected a free one"),
            watching(tmp_path, port, display),
        ):
            pytest.fail("it began")


def test_optimize_with_a_port_in_use_writes_nothing(run_cli, tmp_path):
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_cli(
            "optimize", "--model", "flux-mini", "--budget", "4x", "--out", str(tmp_path / "o"), "--watch", port
        )
    assert done.code == 2
    assert done.err.startswith(f"error: --watch: found port {port} not to be had")
    assert not (tmp_path / "o").exists()


def test_the_port_is_given_back_and_no_thread_stays(tmp_path, display):
    for _ in range(2):
        with watching(tmp_path, 0, display, render=lambda _: ""):
            assert "watch" in [thread.name for thread in threading.enumerate()]
            assert display.watcher is not None
        assert display.watcher is None
        assert "watch" not in [thread.name for thread in threading.enumerate()]


class TestWhenThePageIsMade:
    def view(self, tmp_path, clock, *, seconds=0.0):
        made = []

        def render(_):
            made.append(clock.now)
            clock.now += seconds
            return f"page {len(made)}"

        return LiveView(tmp_path, render=render, clock=clock), made

    def test_not_again_without_news(self, tmp_path):
        clock = Clock()
        view, made = self.view(tmp_path, clock)
        view(Status(stage="searching"))
        first = view.page()
        clock.now += 1000.0
        assert view.page() == first
        assert len(made) == 1

    def test_not_more_often_than_it_may_take_of_the_search(self, tmp_path):
        clock = Clock()
        view, made = self.view(tmp_path, clock, seconds=3.0)
        for _ in range(200):
            view(Status(stage="searching"))
            view.page()
            clock.now += 1.0
        assert 3.0 * len(made) < 0.25 * (clock.now - 1000.0)
        assert len(made) > 5

    def test_not_while_wall_times_are_measured(self, tmp_path):
        clock = Clock()
        view, made = self.view(tmp_path, clock)
        view(Status(stage="measuring", is_timing=True))
        assert "Nothing to report yet: measuring" in view.page()
        view(Status(stage="searching"))
        assert view.page().startswith("page 1")
        clock.now += 1000.0
        view(Status(stage="measuring", is_timing=True))
        assert view.page().startswith("page 1")
        assert view.status()["page"] == 2, "readers are not told to ask again"
        assert len(made) == 1

    def test_what_cannot_be_reported_yet_leaves_the_page_as_it_is(self, tmp_path):
        def render(_):
            raise StudyError("no such study")

        view = LiveView(tmp_path, render=render, clock=Clock())
        view(Status(stage="loading <flux>"))
        assert "Nothing to report yet: loading &lt;flux&gt;." in view.page()

    def test_what_is_left_is_counted_down(self, tmp_path):
        clock = Clock()
        view, _ = self.view(tmp_path, clock)
        view(Status(stage="searching", eta_seconds=100.0, all_seconds=None))
        clock.now += 30.0
        assert view.status()["eta_seconds"] == 70.0
        assert view.status()["all_seconds"] is None
