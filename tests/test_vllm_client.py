"""The client cell of lesson 9, run as it stands against a small stand-in of the HTTP interface that vLLM serves."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import nbformat
import pytest

LESSON = Path(__file__).parent.parent / "notebooks" / "09_more_than_one_machine.ipynb"
ANSWERS = {
    "/v1/models": {"object": "list", "data": [{"id": "a-model", "object": "model"}]},
    "/v1/completions": {"object": "text_completion", "choices": [{"index": 0, "text": " mustard."}]},
}


class StandIn(HTTPServer):
    """Answers with `answers`, path to JSON or bytes, and keeps what it was asked."""

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked = answers, []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(None)

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, question):
        self.server.asked.append((self.command, self.path, question, self.headers))
        answer = self.server.answers.get(self.path)
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(200 if self.path in self.server.answers else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def run_cell(monkeypatch, capsys, url):
    """What the cell prints; it has only the imports of the lesson's first code cell, and the address."""
    cells = {cell.id: cell.source for cell in nbformat.read(LESSON, as_version=4).cells}
    used = ("import http.client", "import json", "import os", "import urllib.request")
    imports = "\n".join(line for line in cells["choose"].splitlines() if line in used)
    monkeypatch.setenv("VLLM_URL", url)
    monkeypatch.setenv("VLLM_API_KEY", "a-key")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    exec(compile(f"{imports}\n{cells['client']}", "client", "exec"), {})
    return capsys.readouterr().out


@pytest.fixture
def serve():
    """Start a stand-in on a free port -> the server."""
    started = []

    def start(answers):
        server = StandIn(answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_port}/v1"


def test_the_cell_asks_what_the_interface_expects_and_prints_the_answer(serve, monkeypatch, capsys):
    server = serve(ANSWERS)
    assert run_cell(monkeypatch, capsys, address(server)) == "a-model: My favourite condiment is mustard.\n"
    (get, models, nothing, _), (post, completions, question, headers) = server.asked
    assert (get, models, nothing) == ("GET", "/v1/models", None)
    assert (post, completions) == ("POST", "/v1/completions")
    assert question == {
        "model": "a-model", "prompt": "My favourite condiment is", "max_tokens": 20, "temperature": 0,
    }  # fmt: skip
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Bearer a-key"


def test_where_no_server_answers_the_cell_says_so_and_goes_on(monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    printed = run_cell(monkeypatch, capsys, url)
    assert printed.startswith(f"skipped, no such server answers at {url}: ")
    assert "refused" in printed


@pytest.mark.parametrize(
    "answers",
    [{}, {"/v1/models": b"<html>"}, {"/v1/models": {"data": []}}, {"/v1/models": []}, {"/v1/models": {"data": None}}],
    ids=["404", "no JSON", "no model", "a list", "null"],
)
def test_another_server_on_the_port_is_skipped_with_a_reason(serve, monkeypatch, capsys, answers):
    printed = run_cell(monkeypatch, capsys, address(serve(answers)))
    assert printed.startswith("skipped, no such server answers at ")
    assert len(printed.splitlines()) == 1


def test_a_server_that_never_answers_is_given_up(monkeypatch, capsys):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "timed out" in run_cell(monkeypatch, capsys, f"http://127.0.0.1:{silent.getsockname()[1]}/v1")


@pytest.mark.parametrize(
    "reply",
    [
        b"-ERR unknown command\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{",
        b"",
    ],
    ids=["no HTTP", "breaks off", "breaks off in a chunk", "nothing"],
)
def test_what_speaks_no_whole_http_is_skipped_with_a_reason(monkeypatch, capsys, reply):
    def answer(listening):
        connection, _ = listening.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(reply)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        threading.Thread(target=answer, args=(listening,), daemon=True).start()
        printed = run_cell(monkeypatch, capsys, f"http://127.0.0.1:{listening.getsockname()[1]}/v1")
    assert printed.startswith("skipped, no such server answers at ")
    assert len(printed.strip().splitlines()) == 1
