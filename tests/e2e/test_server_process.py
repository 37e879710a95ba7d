"""The server as the supervisor starts it: a real process, inherited sockets, real artifacts, hostile clients."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agent.adapters.control import ControlError, call
from tests.fakes.collector import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

BUILD = """
import json, sys, torch
from agent import architectures
torch.manual_seed(int(sys.argv[2]))
torch.save(architectures.build("cnn", 10).state_dict(), sys.argv[1])
"""
IMAGE = np.random.default_rng(0).random((1, 1, 64, 64), dtype=np.float32)
INFER = "/v2/models/kanji/infer"
DRAIN_S = 5.0


@dataclass
class Artifact:
    """A release: ``answer`` holds the logits that it gives for ``IMAGE``."""

    version: str
    path: str
    gate: str
    answer: bytes = b""

    @property
    def release(self) -> str:
        return f"release-{self.version}"


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """Two 4-bit artifacts of one model type whose answers differ."""
    return [build_artifact(tmp_path_factory.mktemp("store"), seed) for seed in (1, 2)]


def build_artifact(folder: Path, seed: int) -> Artifact:
    checkpoint = folder / "cnn.pt"
    subprocess.run([sys.executable, "-c", BUILD, str(checkpoint), str(seed)], check=True)
    job = {
        "job": "build", "checkpoint": str(checkpoint), "model_type": "cnn", "method": "nf4", "blocksize": 64,
        "output_dir": str(folder / "out"), "sidecar": None, "source_sha256": None,
        "gate": {"dataset": None, "rows": 8, "seed": 0},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "agent.quantization"], input=json.dumps(job).encode(), capture_output=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    return Artifact(str(seed), result["artifact"], result["gate_file"])


@dataclass
class Server:
    """A running server and the supervisor's end of its sockets."""

    process: subprocess.Popen[bytes]
    listener: socket.socket
    control_path: Path
    log: Path
    out: Path
    clients: list[http.client.HTTPConnection] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def client(self) -> http.client.HTTPConnection:
        """Return a keep-alive connection; it is closed with the server."""
        self.clients.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30))
        return self.clients[-1]

    def control(self, method: str, route: str, **parameters: Any) -> Any:
        return call(self.control_path, method, route, {"parameters": parameters} if parameters else None, timeout_s=60)

    def serve(self, artifact: Artifact, *, activate: bool = True) -> Any:
        parameters = {"artifact": artifact.path, "version": artifact.version, "release": artifact.release}
        return self.control("POST", "/v2/repository/models/kanji/load", activate=activate, **parameters)

    def unload(self, artifact: Artifact) -> None:
        self.control("POST", "/v2/repository/models/kanji/unload", release=artifact.release)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as it:
        yield it


@contextlib.contextmanager
def running(tmp_path: Path, *options: str) -> Iterator[Server]:
    """Run a server with more ``options``."""
    listener = socket.create_server(("127.0.0.1", 0))
    control = socket.socket(socket.AF_UNIX)
    control.bind(str(tmp_path / "control.sock"))
    control.listen(64)
    fds = (listener.fileno(), control.fileno())
    out, log = tmp_path / "out", tmp_path / "log"
    with out.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen([*command(*fds), *options], pass_fds=fds, stdout=stdout, stderr=stderr)
    it = Server(process, listener, tmp_path / "control.sock", log, out)
    try:
        yield it
    finally:
        for client in it.clients:
            client.close()
        process.kill()
        process.wait()
        listener.close()
        control.close()


def command(http_fd: int, control_fd: int) -> list[str]:
    fds = ["--http-fd", str(http_fd), "--control-fd", str(control_fd)]
    return [sys.executable, "-m", "agent.serving", *fds, "--device", "cpu", "--drain-s", str(DRAIN_S)]


def ask(client: http.client.HTTPConnection, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
    """Return status, headers and body of one request on a connection that stays open."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    client.request(method, path, body or None, named)
    reply = client.getresponse()
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()


def infer(client: http.client.HTTPConnection) -> tuple[int, str, bytes]:
    """Ask for ``IMAGE`` in binary; return status, version and logits."""
    tensor: dict[str, Any] = {"name": "input", "shape": IMAGE.shape, "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": IMAGE.nbytes}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = header + IMAGE.tobytes()
    status, headers, answer = ask(client, "POST", INFER, body, Inference_Header_Content_Length=str(len(header)))
    if status != 200:
        return status, "", answer
    length = int(headers["inference-header-content-length"])
    return status, json.loads(answer[:length])["model_version"], answer[length:]


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_for(condition: Any, timeout_s: float = 20.0) -> None:
    """Ask again until ``condition`` holds: another process offers nothing to wait on."""
    ends_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at
        threading.Event().wait(0.01)


def test_a_real_artifact_is_loaded_proved_activated_and_answers_alike_in_both_forms(
    server: Server, artifacts: list[Artifact]
) -> None:
    client = server.client()
    assert ask(client, "GET", "/v2/health/live")[0] == 200
    assert ask(client, "GET", "/v2/health/ready")[0] == 503
    loaded = server.serve(artifacts[0], activate=False)
    assert 0 < loaded["resident_bytes"] < 2_000_000
    measured = server.control(
        "POST", "/v2/repository/models/kanji/canary", release=artifacts[0].release, gate=artifacts[0].gate
    )
    assert (measured["rows"], measured["non_finite"]) == (8, 0)
    assert measured["agreement"] >= 0.5
    assert infer(client)[0] == 503
    server.control("POST", "/v2/repository/models/kanji/activate", release=artifacts[0].release)
    assert ask(client, "GET", "/v2/health/ready")[0] == 200
    status, version, logits = infer(client)
    assert (status, version) == (200, "1")
    tensor = {"name": "input", "shape": IMAGE.shape, "datatype": "FP32", "data": IMAGE.ravel().tolist()}
    status, _, plain = ask(client, "POST", INFER, json.dumps({"inputs": [tensor]}).encode())
    assert status == 200
    assert np.array(json.loads(plain)["outputs"][0]["data"], "<f4").tobytes() == logits
    assert server.out.read_bytes() == b""
    assert {"listening", "loaded", "activated"} <= {event["event"] for event in server.events()}


def test_fifty_swaps_under_sixteen_clients_lose_nothing_and_every_answer_is_its_versions(
    server: Server, artifacts: list[Artifact]
) -> None:
    known: dict[str, bytes] = {}
    for artifact in artifacts:
        server.serve(artifact)
        _, version, known[artifact.version] = infer(server.client())
        assert version == artifact.version
    assert known["1"] != known["2"]
    server.unload(artifacts[0])
    done = threading.Event()
    wrong: list[Any] = []

    def hammer(client: http.client.HTTPConnection) -> int:
        answered = 0
        while not done.is_set():
            status, version, logits = infer(client)
            close = np.allclose(np.frombuffer(logits, "<f4"), np.frombuffer(known.get(version, b""), "<f4"), atol=1e-5)
            if status != 200 or not close:
                wrong.append((status, version, logits[:80]))
            answered += 1
        return answered

    with ThreadPoolExecutor(16) as pool:
        counts = [pool.submit(hammer, server.client()) for _ in range(16)]
        try:
            for swap in range(50):
                server.serve(artifacts[swap % 2])
                server.unload(artifacts[(swap + 1) % 2])
        finally:
            done.set()
        answered = [count.result() for count in counts]
    assert wrong == []
    assert min(answered) > 0
    status = server.control("GET", "/v2/control/status")
    assert list(status["models"]) == ["kanji"]
    assert status["models"]["kanji"]["failures"] == 0


def test_the_spans_of_the_last_seconds_reach_the_collector_before_the_end(
    tmp_path: Path, artifacts: list[Artifact]
) -> None:
    collector = Collector()
    with running(tmp_path, "--otlp-endpoint", collector.url) as server:
        server.serve(artifacts[0])
        assert infer(server.client())[0] == 200
        server.process.terminate()
        assert server.process.wait(DRAIN_S + 10) == 0
        assert {"infer", "compute"} <= set(collector.spans)
    collector.close()


def test_sigterm_turns_readiness_off_answers_what_came_and_leaves_the_sockets_to_the_next_server(
    server: Server, artifacts: list[Artifact]
) -> None:
    server.serve(artifacts[0])
    idle, outcomes = server.client(), []
    assert ask(idle, "GET", "/v2/health/ready")[0] == 200
    began, closed = threading.Barrier(5), threading.Event()

    def talk(client: http.client.HTTPConnection) -> None:
        client.connect()
        began.wait()
        while True:
            client.request("POST", INFER, body=b"{}")
            reply = client.getresponse()
            outcomes.append((reply.status, reply.read()))
            if reply.getheader("connection") == "close":
                closed.set()
                return

    with ThreadPoolExecutor(4) as pool:
        talking = [pool.submit(talk, server.client()) for _ in range(4)]
        began.wait()
        signalled = time.monotonic()
        server.process.terminate()
        assert closed.wait(DRAIN_S)
        status, headers, body = ask(idle, "GET", "/v2/health/ready")
        assert (status, headers["connection"], json.loads(body)["ready"]) == (503, "close", False)
        for each in talking:
            each.result()
    assert {status for status, _ in outcomes} == {400}
    assert server.process.wait(DRAIN_S) == 0
    assert time.monotonic() - signalled < DRAIN_S
    # The supervisor still listens: a client that comes now waits for the next server.
    socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    assert server.events()[-1]["event"] == "stopped"


def test_a_connection_that_never_finishes_its_request_does_not_outlast_the_drain(
    server: Server, artifacts: list[Artifact]
) -> None:
    server.serve(artifacts[0])
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert ask(server.client(), "GET", "/v2/health/live")[0] == 200
        server.process.terminate()
        assert server.process.wait(DRAIN_S + 1) == 0


def test_the_server_dies_with_its_supervisor(tmp_path: Path) -> None:
    supervisor = tmp_path / "supervisor.py"
    supervisor.write_text(
        "import socket, subprocess, sys\n"
        "a, b = socket.create_server(('127.0.0.1', 0)), socket.socket(socket.AF_UNIX)\n"
        f"b.bind({str(tmp_path / 'control.sock')!r}); b.listen()\n"
        "command = [sys.executable, '-m', 'agent.serving', '--device', 'cpu',"
        " '--http-fd', str(a.fileno()), '--control-fd', str(b.fileno())]\n"
        "child = subprocess.Popen(command, pass_fds=(a.fileno(), b.fileno()), stderr=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, str(supervisor)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert call(tmp_path / "control.sock", "GET", "/v2/health/live") == {"live": True}
        parent.kill()
    wait_for(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_body_of_70_mb_is_refused_without_being_kept(server: Server, artifacts: list[Artifact]) -> None:
    server.serve(artifacts[0])
    before = rss_bytes(server.process.pid)
    client = server.client()
    chunk = b"a" * 1_000_000
    client.putrequest("POST", INFER)
    client.putheader("Content-Length", "70000000")
    client.putheader("Content-Type", "application/x-www-form-urlencoded")
    client.endheaders()
    for _ in range(70):
        client.send(chunk)
    reply = client.getresponse()
    assert (reply.status, reply.getheader("connection")) == (413, "close")
    assert "67108864" in json.loads(reply.read())["error"]
    assert rss_bytes(server.process.pid) - before < 10_000_000
    assert infer(server.client())[0] == 200


def test_what_is_no_http_gets_the_protocols_error_and_the_server_lives(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as rude:
        rude.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        answer = b"".join(iter(lambda: rude.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert re.search(rb"content-type: application/json\r\n", head)
    assert json.loads(body)["error"]
    assert ask(server.client(), "GET", "/v2/health/live")[0] == 200


def test_a_damaged_artifact_is_refused_and_the_old_one_answers_on(
    server: Server, artifacts: list[Artifact], tmp_path: Path
) -> None:
    server.serve(artifacts[0])
    damaged = tmp_path / "cnn.safetensors"
    damaged.write_bytes(Path(artifacts[1].path).read_bytes()[:-100])
    damaged.with_suffix(".json").write_bytes(Path(artifacts[1].path).with_suffix(".json").read_bytes())
    with pytest.raises(ControlError) as caught:
        server.serve(Artifact("3", str(damaged), ""))
    assert (caught.value.status, caught.value.code) == (400, "bad_artifact")
    assert infer(server.client())[:2] == (200, "1")


def test_a_second_signal_ends_the_drain_at_once(server: Server, artifacts: list[Artifact]) -> None:
    server.serve(artifacts[0])
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        client = server.client()
        assert ask(client, "GET", "/v2/health/ready")[0] == 200
        server.process.terminate()
        wait_for(lambda: any(event["event"] == "draining" for event in server.events()))
        signalled = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(DRAIN_S) == 0
        assert time.monotonic() - signalled < DRAIN_S - 2
