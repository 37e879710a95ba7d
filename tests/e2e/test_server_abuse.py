"""A real server process under clients that mean harm: slow, silent, too many, too large. The others are served on."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import select
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.harness.inference_server import BODY, INFER, ask, serving, wait_for
from tests.fakes.authority import Authority

pytestmark = pytest.mark.e2e

HEAD = b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
SLOW_S = 6
"""What the slow have; whoever waited for one of them would wait for most of it."""
TOKEN, ADMIN = "user-0123456789abcdef", "admin-0123456789abcdef"


def drip(sockets: list[socket.socket], until: threading.Event) -> None:
    """Send a byte on each of ``sockets`` five times a second."""
    while not until.wait(0.2):
        for each in sockets:
            with contextlib.suppress(OSError):
                each.send(b"a")


def has_ended(each: socket.socket) -> bool:
    """Whether the server has closed a connection, after whatever it said."""
    if not select.select([each], [], [], 0)[0]:
        return False
    try:
        return each.recv(65_536) == b""
    except OSError:
        return True


def test_two_hundred_slow_sockets_are_closed_at_their_deadlines_and_harm_nobody(tmp_path: Path) -> None:
    with serving(tmp_path, "--head-s", str(SLOW_S), "--body-s", str(SLOW_S)) as server, ExitStack() as stack:
        client = server.client()
        assert ask(client)[0] == 200
        files = server.files()
        slow = [stack.enter_context(server.connect()) for _ in range(200)]
        for number, each in enumerate(slow):
            each.sendall(HEAD if number % 2 else HEAD + b"\r\n")
        done = threading.Event()
        stack.callback(done.set)
        threading.Thread(target=drip, args=(slow, done), daemon=True).start()
        wait_for(lambda: server.files() >= files + 200)
        taken = []
        for _ in range(200):
            began = time.perf_counter()
            status, _, body = ask(client)
            taken.append(time.perf_counter() - began)
            assert (status, json.loads(body)["model_name"]) == (200, "m")
        assert max(taken) < SLOW_S / 2, sorted(taken)[-5:]
        wait_for(lambda: all(map(has_ended, slow)), 10 * SLOW_S)
        wait_for(lambda: server.files() == files)
        assert ask(client)[0] == 200


def test_few_file_descriptors_neither_end_the_server_nor_make_it_spin(tmp_path: Path) -> None:
    with serving(tmp_path, files=64) as server, ExitStack() as stack:
        client = server.client()
        assert ask(client)[0] == 200
        crowd = [stack.enter_context(server.connect()) for _ in range(200)]
        assert ask(client)[0] == 200
        before = server.cpu_s()
        threading.Event().wait(1.0)
        assert server.cpu_s() - before < 0.5
        assert server.status()["pid"] == server.process.pid
        assert ask(client)[0] == 200
        for each in crowd:
            each.close()

        def answers() -> bool:
            fresh = server.client()
            try:
                return ask(fresh)[0] == 200
            except OSError:
                return False
            finally:
                fresh.close()

        wait_for(answers)
        assert "few_file_descriptors" in server.log.read_text()


def test_a_disk_that_is_full_under_the_log_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    with serving(tmp_path, "--log-every", "1", log_file=Path("/dev/full")) as server:
        client = server.client()
        for _ in range(3):
            assert ask(client)[0] == 200
        assert ask(client, body=b"{bad")[0] == 400
        assert ask(server.client(), "GET", "/metrics")[0] == 200
        server.process.terminate()
        assert server.process.wait(60) == 0


@pytest.mark.parametrize("days", [400, -400], ids=["forwards", "backwards"])
def test_a_wall_clock_that_jumps_moves_no_deadline_and_no_connection(tmp_path: Path, days: int) -> None:
    steps, hold = tmp_path / "steps", tmp_path / "hold"
    steps.write_text("0")
    patient = json.dumps({**json.loads(BODY), "parameters": {"timeout": 20_000_000}}).encode()
    hasty = json.dumps({**json.loads(BODY), "parameters": {"timeout": 100_000}}).encode()
    with serving(tmp_path, "--head-s", "5", steps=steps, hold=hold) as server, ThreadPoolExecutor(3) as pool:
        clients = [server.client() for _ in range(3)]
        assert {ask(client)[0] for client in clients} == {200}
        hold.touch()
        first, waits = pool.submit(ask, clients[0]), pool.submit(ask, clients[1], body=patient)
        wait_for(lambda: server.status()["models"]["m"]["in_flight"] == 2)
        steps.write_text(str(days * 86_400))
        assert ask(clients[2], body=hasty)[0] == 503
        hold.unlink()
        assert {first.result()[0], waits.result()[0]} == {200}
        assert {ask(client)[0] for client in clients} == {200}, "the same connections"
        told = json.loads(ask(clients[0], "GET", "/v2/models/m/stats")[2])["model_stats"][0]
        assert abs(told["last_inference"] / 1e3 - time.time() - days * 86_400) < 3600, "it did see the jump"


def test_a_connection_too_many_is_told_when_to_come_back(tmp_path: Path) -> None:
    with serving(tmp_path, "--max-connections", "5") as server, ExitStack() as stack:
        client = server.client()
        assert ask(client)[0] == 200
        for _ in range(4):
            stack.enter_context(server.connect())
        with server.connect() as late:
            answer = b"".join(iter(lambda: late.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert ask(client)[0] == 200


def test_a_megabyte_that_unpacks_to_a_gigabyte_is_refused_within_the_limit(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(2**30), 1)
    with serving(tmp_path, "--max-body-bytes", str(8 * 2**20)) as server:
        client = server.client()
        assert ask(client)[0] == 200
        before = server.rss_bytes()
        status, _, body = ask(client, body=bomb, Content_Encoding="gzip")
        assert (status, json.loads(body)["error"][:21]) == (413, "the decompressed body")
        assert server.rss_bytes() - before < 40 * 2**20
        assert ask(server.client())[0] == 200


def test_a_guarded_port_speaks_tls_and_asks_for_tokens_and_renews_both(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("box", number=1)
    users, admins = tmp_path / "users", tmp_path / "admins"
    for path, token in ((users, TOKEN), (admins, ADMIN)):
        path.write_text(token)
        path.chmod(0o600)
    options = ["--cert-file", str(certificate), "--key-file", str(key), "--store", str(tmp_path)]
    options += ["--token-file", str(users), "--admin-token-file", str(admins)]
    trusting = ssl.create_default_context(cafile=str(authority.file))
    with serving(tmp_path, *options) as server, ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(50)]
        client = server.client(trusting)
        assert ask(client, "GET", "/v2/health/ready")[0] == 200
        assert ask(client)[0] == 401
        client = server.client(trusting)
        assert ask(client, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(client, path="/v2/repository/index", body=b"", Authorization=f"Bearer {ADMIN}")[0] == 200
        assert ask(client, path="/v2/repository/index", body=b"", Authorization=f"Bearer {TOKEN}")[0] == 403
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(server.client(ssl.create_default_context()), "GET", "/v2/health/live")
        with server.connect() as plain:
            plain.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not plain.recv(4096).startswith(b"HTTP")
        authority.issue("box", number=2)
        users.write_text(TOKEN[::-1])

        def renewed() -> bool:
            fresh = server.client(trusting)
            status = ask(fresh, Authorization=f"Bearer {TOKEN[::-1]}")[0]
            assert isinstance(fresh.sock, ssl.SSLSocket) or status == 401
            return status == 200

        wait_for(renewed)
        assert ask(server.client(trusting), Authorization=f"Bearer {TOKEN}")[0] == 401
        with (
            socket.create_connection(("127.0.0.1", server.port)) as raw,
            trusting.wrap_socket(raw, server_hostname="localhost") as wrapped,
        ):
            shown = wrapped.getpeercert() or {}
            assert (("serialNumber", "2"),) in shown["subject"]
        assert len(silent) == 50
        assert TOKEN not in server.log.read_text()


def test_while_bodies_are_refused_memory_does_not_grow(tmp_path: Path) -> None:
    with serving(tmp_path, "--max-body-bytes", "100000") as server:
        client = server.client()
        for _ in range(20):
            ask(client)
        before = server.rss_bytes()
        for _ in range(100):
            assert ask(client, path="/v2/models/nobody/infer", body=BODY + bytes(90_000))[0] == 404
        assert server.rss_bytes() - before < 5 * 2**20
        assert ask(client)[0] == 200


def test_ten_times_what_it_can_do_is_refused_with_a_time_to_come_back_and_the_rest_keeps_its_deadline(
    tmp_path: Path,
) -> None:
    deadline_s = 0.5
    timed = json.dumps({**json.loads(BODY), "parameters": {"timeout": int(deadline_s * 1e6)}}).encode()
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(timed))
    replies: list[tuple[int, float, bytes]] = []

    async def hammer(port: int, ends_at: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < ends_at:
            began = time.perf_counter()
            writer.write(head + timed)
            told = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in told.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.partition(b":")[2]))
            replies.append((int(told.split()[1]), time.perf_counter() - began, told))
        writer.close()

    async def crowd(port: int) -> None:
        ends_at = time.perf_counter() + 3.0
        await asyncio.gather(*(hammer(port, ends_at) for _ in range(320)))

    with serving(tmp_path, pass_s=0.01) as server:
        client = server.client()
        with ThreadPoolExecutor(1) as pool:
            crowded = pool.submit(lambda: asyncio.run(crowd(server.port)))
            waits = []
            while not crowded.done():
                began = time.perf_counter()
                assert ask(client, "GET", "/v2/health/ready")[0] == 200
                assert ask(client, "GET", "/metrics")[0] == 200
                waits.append(time.perf_counter() - began)
            crowded.result()
        refused = [(taken, told) for status, taken, told in replies if status == 503]
        answered = sum(status == 200 for status, _, _ in replies)
        assert len(refused) + answered == len(replies)
        assert len(refused) > 3 * answered > 0
        assert all(b"retry-after: 1" in told for _, told in refused)
        assert sorted(waits)[len(waits) // 2] < 0.2
        assert ask(client)[0] == 200
        status = server.status()["models"]["m"]
        assert (status["in_flight"], status["queue"], status["failures"]) == (0, 0, 0)
        # As the server saw it: what the clients saw includes their own wait for the processor.
        assert status["latency_ms"]["p99"] < (deadline_s + 0.5) * 1e3
