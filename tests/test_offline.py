"""A lesson that asks for the network fails; that none of them does is seen where nbval runs them, in `make test`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import no_network
from nbformat.v4 import new_code_cell, new_notebook

import notebook_files

# Source of a cell, and what the log says that it asked for.
CELLS = [
    ("import socket\nsocket.create_connection(('192.0.2.1', 9))", "getaddrinfo 192.0.2.1"),
    ("import socket\nsocket.socket().connect(('192.0.2.1', 9))", "connect (('192.0.2.1', 9),)"),
    ("from huggingface_hub import model_info\nmodel_info('a/b')", "getaddrinfo huggingface.co"),
    ("try:\n    socket.gethostbyname('example.org')\nexcept OSError:\n    pass", "gethostbyname example.org"),
    ("x = socket.create_server(('127.0.0.1', 0))\ny = socket.create_connection(x.getsockname())", None),
]


def test_a_cell_that_asks_for_the_network_fails(tmp_path):
    path = tmp_path / "asks.ipynb"
    cells = [new_code_cell(source) for source, _ in CELLS]
    nbformat.write(new_notebook(cells=cells, metadata=notebook_files.METADATA), path)
    command = [sys.executable, "-m", "pytest", "-p", "no_network", "-p", "no:cacheprovider", "-rfEp"]
    done = subprocess.run(
        [*command, "--nbval-lax", "--nbval-current-env", "asks.ipynb"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(no_network.__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # The first three stop at the refusal; the fourth goes on without, and is noticed; the last speaks to this machine.
    verdicts = set(re.findall(r"^(FAILED|ERROR|PASSED) asks.ipynb::Cell (\d)", done.stdout, re.MULTILINE))
    failed, passed = {("FAILED", n) for n in "012"}, {("PASSED", n) for n in "34"}
    assert verdicts == failed | passed | {("ERROR", n) for n in "0123"}, done.stdout
    for number, (_, asked_for) in enumerate(CELLS[:4]):
        assert f"Cell {number} asked for the network: {asked_for}" in done.stdout
