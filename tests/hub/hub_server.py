"""A hub on this machine: what huggingface_hub asks for, answered as huggingface.co does, with faults to switch on.

The files of a repository are those of a folder. Weight files lie behind a redirect to another origin, as on the hub,
which must never see the token.
"""

import hashlib
import json
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PATH = re.compile(
    r"(?P<api>/api/models)?/(?!api/)(?P<repo>[^/]+/[^/]+)"
    r"(/(?P<what>revision|tree|resolve|cdn)/(?P<revision>[^/]+))?(/(?P<file>[^?]+))?"
)


class Request(NamedTuple):
    """One line of the server's log."""

    method: str
    path: str
    status: int
    sent: int  # bytes of the body
    range: str | None
    token: str | None


@dataclass
class Fault:
    """What goes wrong with the next `times` requests; None is all of them."""

    status: int | None = None  # answered instead of the file
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of the body, then the connection is closed
    stall_after: int | None = None  # bytes of the body, then nothing comes until the client goes
    pause_s: float = 0  # between pieces of 64 KiB
    body: bytes | None = None  # sent in place of the file
    times: int | None = None


class Hub:
    """Serves folders as repositories until `close`.

    Attributes:
        repos: "owner/name" to the folder with its files.
        faults: what is asked for ("owner/name", or "owner/name/file" for the bytes of one file) to what goes wrong,
            one after the other.
        log: every request so far.
    """

    def __init__(self):
        self.repos: dict[str, Path] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.log: list[Request] = []
        self.gone = threading.Event()  # ends what stalls
        self.arrived: defaultdict[str, threading.Event] = defaultdict(threading.Event)  # when a file's fault came true
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) for _ in ("hub", "cdn")]
        ports = [server.server_port for server in self.servers]
        # Two names for this machine: to the client another port alone may not be another origin.
        self.address, self.cdn = f"http://127.0.0.1:{ports[0]}", f"http://localhost:{ports[1]}"
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def faulty(self, name: str, *faults: Fault) -> None:
        """Let the next requests for a repository, or for the bytes of a file of it, go wrong."""
        self.faults[name] = list(faults)

    def close(self) -> None:
        self.gone.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def downloads(self, repo: str, file: str) -> list[Request]:
        """The requests for the bytes of a weight file."""
        return [line for line in self.log if line.method == "GET" and line.path == f"/{repo}/cdn/{COMMIT}/{file}"]

    def fault(self, name: str) -> Fault | None:
        """The fault that is up now, once less."""
        fault = next((fault for fault in self.faults.get(name, []) if fault.times != 0), None)
        if fault and fault.times:
            fault.times -= 1
        return fault


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            asked = PATH.fullmatch(self.path.split("?")[0].replace("/api/resolve-cache/models", "/api/models"))
            if not asked:  # the client's own affairs
                return self.answer(404, {})
            repo, file = asked["repo"], asked["file"]
            right = next((name for name in hub.repos if name.lower() == repo.lower()), None)
            at_cdn = asked["what"] == "cdn"
            fault = hub.fault(f"{repo}/{file}") if at_cdn else hub.fault(repo)
            if fault and fault.status:
                return self.answer(fault.status, fault.headers)
            if right is None:
                return self.answer(401, {"X-Error-Code": "RepoNotFound"})
            if right != repo:
                return self.answer(307, {"Location": self.path.replace(repo, right)})
            if asked["revision"] not in (None, "main", COMMIT):
                return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            folder = hub.repos[repo]
            if at_cdn:
                return self.send_file(f"{repo}/{file}", fault, (folder / file).read_bytes())
            if asked["what"] in (None, "revision", "tree") and asked["api"] and not self.path.count("resolve-cache"):
                files = [_listed(path) for path in sorted(folder.iterdir()) if path.is_file()]
                info = {"id": repo, "sha": COMMIT, "siblings": [row | {"rfilename": row["path"]} for row in files]}
                body = files if asked["what"] == "tree" else info
                return self.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
            if "resolve-cache" in self.path:
                file = file.removeprefix(f"{COMMIT}/")
            if not (folder / file).is_file():
                return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            listed = _listed(folder / file)
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{listed["oid"]}"'}
            if "lfs" in listed:
                linked = {"X-Linked-ETag": f'"{listed["lfs"]["oid"]}"', "X-Linked-Size": str(listed["size"])}
                linked |= {"Location": f"{hub.cdn}/{repo}/cdn/{COMMIT}/{file}", "Accept-Ranges": "bytes"}
                return self.answer(302, headers | linked)
            if "resolve-cache" not in self.path:
                return self.answer(307, headers | {"Location": f"/api/resolve-cache/models/{repo}/{COMMIT}/{file}"})
            return self.answer(200, headers, (folder / file).read_bytes())

        do_HEAD = do_GET

        def send_file(self, name: str, fault: Fault | None, body: bytes) -> None:
            fault = fault or Fault()
            body = body if fault.body is None else fault.body
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            if start >= len(body):
                return self.answer(416, {"Content-Range": f"bytes */{len(body)}"})
            headers = {"Content-Length": str(len(body) - start), "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            end = fault.cut_after if fault.stall_after is None else fault.stall_after
            part = body[start:end] if end is not None else body[start:]
            self.begin(206 if start else 200, headers, len(part))
            for place in range(0, len(part), 2**16):
                self.wfile.write(part[place : place + 2**16])
                self.wfile.flush()
                time.sleep(fault.pause_s)
                if place >= len(body) // 2:
                    hub.arrived[name].set()
            if end is not None:
                hub.arrived[name].set()
                self.close_connection = True
            if fault.stall_after is not None:
                hub.gone.wait(20)

        def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
            self.begin(status, {**headers, "Content-Length": str(len(body))}, len(body))
            if self.command == "GET":
                self.wfile.write(body)

        def begin(self, status: int, headers: dict[str, str], sent: int) -> None:
            path, asked = self.path.split("?")[0], self.headers
            if PATH.fullmatch(path.replace("/api/resolve-cache/models", "/api/models")):
                line = Request(self.command, path, status, sent, asked.get("Range"), asked.get("Authorization"))
                hub.log.append(line)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler


def _listed(path: Path) -> dict:
    """A file's row in the hub's listing; weight files are stored apart, under their checksum."""
    body = path.read_bytes()
    row = {"type": "file", "path": path.name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
    row["blobId"] = row["oid"]
    if path.suffix in (".safetensors", ".bin"):
        sha256 = hashlib.sha256(body).hexdigest()
        row["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(body), "pointerSize": 134}
    return row
