"""The server as the supervisor starts it: a real process, inherited sockets, real artifacts, hostile clients."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from agent.adapters.control import ControlError, call
from tests.e2e.harness.torch_server import (
    DRAIN_S,
    IMAGE,
    INFER,
    Artifact,
    Server,
    ask,
    build_artifact,
    infer,
    rss_bytes,
    running,
    wait_for,
)

if TYPE_CHECKING:
    import http.client
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """Two 4-bit artifacts of one model type whose answers differ."""
    return [build_artifact(tmp_path_factory.mktemp("store"), seed) for seed in (1, 2)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as it:
        yield it


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
    tmp_path: Path, artifacts: list[Artifact]
) -> None:
    with running(tmp_path, drain_s=1.0) as server:
        server.serve(artifacts[0])
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert ask(server.client(), "GET", "/v2/health/live")[0] == 200
            server.process.terminate()
            assert server.process.wait(8) == 0, "its own pace would end it after 10 s"


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
        assert time.monotonic() - signalled < DRAIN_S / 2
