"""Every lesson runs where each socket that Python opens to another machine is refused, and none asks for one."""

import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import notebook_files
from execute import execute

# Python imports a module of this name at its start, so nothing in the kernel comes before it. Jupyter's own channels
# are not Python sockets; local sockets (AF_UNIX) stay, and so does what goes from this machine to itself: lesson 9's
# processes talk to each other.
SITECUSTOMIZE = """\
import os
import socket

ITSELF = ("127.0.0.1", "localhost", "::1")


def refuse(name):
    original = getattr(socket.socket, name, None) or getattr(socket, name)

    def refused(first, *rest, **named):
        if isinstance(first, socket.socket) and first.family not in (socket.AF_INET, socket.AF_INET6):
            return original(first, *rest)
        target = rest if isinstance(first, socket.socket) else first
        host = rest[-1][0] if isinstance(first, socket.socket) else first
        if host in ITSELF:
            return original(first, *rest, **named)
        with open(os.environ["REFUSED_SOCKETS"], "a") as log:
            log.write(f"{name} {target}\\n")
        raise OSError(f"the test refuses the network: {name} {target}")

    return refused


for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse(name))
socket.getaddrinfo = refuse("getaddrinfo")
socket.gethostbyname = refuse("gethostbyname")
"""


@pytest.fixture
def refusing(tmp_path) -> tuple[dict[str, str], Path]:
    """A kernel's environment in which sockets are refused, and the log of those that were asked for.

    HF_HUB_OFFLINE is not set: the reader of a lesson has not set it either.
    """
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    log = tmp_path / "refused.txt"
    log.touch()
    unset = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "MISTRAL_LAB_MODEL")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return environment | {"PYTHONPATH": str(tmp_path), "REFUSED_SOCKETS": str(log)}, log


@pytest.mark.parametrize("path", notebook_files.lessons(), ids=lambda path: path.stem)
def test_a_lesson_runs_without_network(path, refusing):
    environment, log = refusing
    run = execute(path, environment=environment)
    assert run.error is None
    assert log.read_text() == ""


@pytest.mark.parametrize(
    ("source", "asked_for"),
    [
        ("import socket\nsocket.create_connection(('192.0.2.1', 9))", "getaddrinfo 192.0.2.1"),
        ("import socket\nsocket.socket().connect(('192.0.2.1', 9))", "connect (('192.0.2.1', 9),)"),
        ("from huggingface_hub import model_info\nmodel_info('a/b')", "getaddrinfo huggingface.co"),
    ],
)
def test_a_lesson_that_asks_for_the_network_fails(source, asked_for, tmp_path, refusing):
    environment, log = refusing
    path = tmp_path / "asks.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source)], metadata=notebook_files.METADATA), path)
    run = execute(path, environment=environment)
    assert run.error is not None
    assert run.error.startswith("asks, cell 1 of 1: ")
    assert asked_for in log.read_text()
