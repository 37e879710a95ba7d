"""The agent's own port: one self-contained, read-only page, the same facts as JSON, ``/metrics`` and ``/healthz``.

Served by the standard library on threads of its own: a page that people look at now and then is not worth a web
framework's memory in a process that has to stay small. Loopback by default; no request changes anything.
"""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from agent.health.reporter import flat_numbers

if TYPE_CHECKING:
    from collections.abc import Callable

_PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/index.html": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_CSP = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
_IDLE_S = 15.0
_HELP = {
    "supervisor_rss_bytes": "Resident memory of the agent's supervisor",
    "server_rss_bytes": "Resident memory of the inference server",
    "memory_available_bytes": "Memory that a model could have, as the device's provider says",
    "memory_total_bytes": "Memory of the device",
    "disk_free_bytes": "Free bytes of the file system of the state directory",
    "models_served": "Models that answer",
    "requests": "Inference requests since the releases that answer were loaded",
    "failures": "Those that were not answered with 200",
    "open_operations": "Operations without an end",
    "relaxations": "Security settings that were relaxed on purpose",
    "ok": "Whether the state of health is ok",
}


class StatusSite:
    """Serves the page and ``status.json``.

    Args:
        host, port: where to listen; port 0 takes a free one.
        status: returns the body of ``status.json``.

    Raises:
        OSError: when the port is taken.
    """

    def __init__(self, host: str, port: int, status: Callable[[], dict[str, Any]]) -> None:
        class Handler(_Handler):
            pass

        Handler.status = staticmethod(status)
        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.5,), name="page", daemon=True)

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/"

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()


def exposition(health: dict[str, Any]) -> str:
    """Return the numbers of a health report in Prometheus' text format.

    Gauges only: the counters of inference are the server's own, on its port.
    """
    numbers = {**flat_numbers(health), "ok": int(health["status"] == "ok")}
    lines = []
    for name, value in numbers.items():
        text = _HELP.get(name, name.replace("_", " ").capitalize())
        lines += [f"# HELP nibbled_{name} {text}.", f"# TYPE nibbled_{name} gauge", f"nibbled_{name} {value}"]
    return "\n".join(lines) + "\n"


class _Handler(BaseHTTPRequestHandler):
    status: Callable[[], dict[str, Any]]
    timeout = _IDLE_S
    protocol_version = "HTTP/1.1"
    server_version = "nibbled"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/status.json":
            self._send(HTTPStatus.OK, json.dumps(self.status()).encode(), "application/json")
        elif path == "/metrics":
            self._send(HTTPStatus.OK, exposition(self.status()["health"]).encode(), "text/plain; version=0.0.4")
        elif path == "/healthz":
            state = self.status()["health"]["status"]
            failing = state in ("failing", "starting")
            code = HTTPStatus.SERVICE_UNAVAILABLE if failing else HTTPStatus.OK
            self._send(code, json.dumps({"status": state}).encode(), "application/json")
        elif path in _PAGES:
            name, kind = _PAGES[path]
            self._send(HTTPStatus.OK, (files("agent.health") / "page" / name).read_bytes(), kind)
        else:
            self._send(HTTPStatus.NOT_FOUND, b'{"error":"no such page"}', "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _CSP)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Say nothing: page views are not events."""
