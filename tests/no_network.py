"""A pytest plugin for nbval: a lesson's kernel gets no socket to another machine, and a cell that asks for one fails.

python -m pytest -p tests.no_network --nbval --nbval-current-env notebooks
"""

import os
import tempfile
from pathlib import Path

import pytest

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


def pytest_collection_modifyitems(config):
    """Set what the kernels inherit. This hook is called where the cells run: with xdist, in its workers."""
    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    Path(folder.name, "sitecustomize.py").write_text(SITECUSTOMIZE)
    log = Path(folder.name, "refused.txt")
    log.touch()
    os.environ["REFUSED_SOCKETS"] = str(log)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder.name, *filter(None, [os.environ.get("PYTHONPATH")])])
    # The reader of a lesson has not set these.
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "MISTRAL_LAB_MODEL"):
        os.environ.pop(name, None)
    # On a slow machine a progress bar would be one output more than those that are compared.
    os.environ["TQDM_DELAY"] = str(10**6)  # seconds


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """Fail a cell that asked, even where it went on without. After the last cell the kernel has ended by now."""
    yield
    log = Path(os.environ["REFUSED_SOCKETS"])
    if asked := log.read_text():
        log.write_text("")
        pytest.fail(f"{item.name} asked for the network: {asked}")
