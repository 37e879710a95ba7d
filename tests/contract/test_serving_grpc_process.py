"""gRPC as the supervisor starts it: a process with inherited sockets, real clients, the server replaced under them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from agent import parts
from agent.adapters.server import ServerProcess
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.settings import Serving

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")

from agent.serving.grpc import inference_pb2 as pb  # noqa: E402 - only with the extra
from agent.serving.grpc.methods import INFER, INFERENCE  # noqa: E402
from tests.clients.rig import ROOT, Running, running, until  # noqa: E402
from tests.fakes.authority import Authority  # noqa: E402
from tests.fakes.grpc_client import raw_request  # noqa: E402
from tests.fakes.grpc_server import HELD  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROW = [1.0, 2.0, 3.0, 4.0]
TOKEN = "user-" + "u" * 32
PROTOS = ("agent/serving/grpc/inference.proto", "agent/serving/grpc/health.proto")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("tritonclient") is None, reason="the extra clients is not installed"
)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the child itself needs torch")
needs_tools = pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None, reason="the extra clients is not installed"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as it:
        it.serve("linear")
        yield it


def infer(channel: Any, rows: Any, **options: Any) -> Any:
    """Begin a call; ``result`` of it is the answer."""
    method = channel.unary_unary(INFER, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)
    return method.future(raw_request(rows, model="linear"), **options)


@needs_triton
def test_every_client_of_triton_s_passes_and_every_way_to_ask_gives_the_same_bits(server: Running) -> None:
    server.serve("image")
    for model in ("linear", "image"):
        done = subprocess.run(
            [sys.executable, "tests/clients/triton.py", server.http, server.grpc, model],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        answers = json.loads(done.stdout.splitlines()[-1])
        assert {"http json", "http binary", "grpc", "grpc stream", "http aio", "grpc aio"} <= set(answers)
        assert len(set(answers.values())) == 1


def test_each_of_many_new_connections_is_answered(server: Running) -> None:
    for _ in range(40):
        with grpc.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            assert channel.unary_unary(INFERENCE + "ServerLive")(b"", timeout=20)


def test_sigterm_lets_a_call_finish_and_the_next_server_answers_those_that_came_in_between(tmp_path: Path) -> None:
    with running(tmp_path, "--closed") as it, grpc.insecure_channel(it.grpc) as channel:
        it.serve("linear")
        early = infer(channel, [ROW], timeout=60)
        it.control("POST", "/v2/control/open", {})
        assert early.result().model_version == "1"
        held = infer(channel, [[HELD, 0, 0, 0]], timeout=60)
        until(lambda: it.control("GET", "/v2/control/status")["models"]["linear"]["in_flight"])
        assert it.process is not None
        it.process.terminate()
        until(lambda: "draining" in it.events())
        it.release()
        assert it.ended() == 0
        assert held.result().outputs
        assert not (tmp_path / "grpc.sock").exists()
        # Neither waits for a server on its own account: their connection does, in the supervisor's backlog.
        between = infer(channel, [ROW], timeout=60)
        with grpc.insecure_channel(it.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as other:
            stranger = infer(other, [ROW], timeout=60)
            it.start()
            it.serve("linear", version="2")
            assert not between.done()
            it.control("POST", "/v2/control/open", {})
            assert (between.result().model_version, stranger.result().model_version) == ("2", "2")
            assert it.stop() == 0
    assert it.events().count("stopped") == 2


@pytest.mark.parametrize("is_guarded", [False, True], ids=["plain", "tokens and TLS"])
def test_no_call_of_busy_clients_fails_while_the_server_is_replaced_as_planned(
    tmp_path: Path, *, is_guarded: bool
) -> None:
    done, counts = threading.Event(), [0, 0, 0]
    alone = [("grpc.use_local_subchannel_pool", 1)]
    guards: list[str] = []
    credentials, metadata = None, None
    if is_guarded:
        authority = Authority(tmp_path)
        certificate, key = authority.issue("localhost")
        credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
        tokens = tmp_path / "tokens"
        tokens.write_text(TOKEN)
        tokens.chmod(0o600)
        guards = ["--cert-file", str(certificate), "--key-file", str(key), "--token-file", str(tokens)]
        metadata = (("authorization", f"Bearer {TOKEN}"),)

    def connect(address: str) -> Any:
        return (
            grpc.secure_channel(address, credentials, alone) if credentials else grpc.insecure_channel(address, alone)
        )

    def hammer(address: str, caller: int) -> None:
        with connect(address) as channel:
            while not done.is_set():
                assert infer(channel, [ROW], timeout=60, metadata=metadata).result().outputs
                counts[caller] += 1

    def go_on() -> None:
        before = list(counts)
        until(lambda: all(now > then + 20 for now, then in zip(counts, before, strict=True)))

    with running(tmp_path, "--closed", *guards) as it, ThreadPoolExecutor(3) as pool:
        callers: list[Future[None]] = []
        try:
            for version in ("1", "2", "3"):
                it.serve("linear", version=version)
                it.control("POST", "/v2/control/open", {})
                callers = callers or [pool.submit(hammer, it.grpc, caller) for caller in range(3)]
                go_on()
                if version != "3":
                    assert it.stop() == 0
                    it.start()
        finally:
            done.set()
        for caller in callers:
            caller.result()
        with connect(it.grpc) as channel:
            refused = infer(channel, [ROW], timeout=60).exception()
            assert (refused is None) is not is_guarded


def test_connections_beyond_the_limit_are_closed_and_the_others_go_on(tmp_path: Path) -> None:
    with running(tmp_path) as it:
        it.serve("linear")
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.insecure_channel(it.grpc, options=options) for _ in range(64)]
        try:
            for channel in channels:
                infer(channel, [ROW], timeout=30).result()
            with grpc.insecure_channel(it.grpc, options=options) as channel:
                assert infer(channel, [ROW], timeout=20).exception().code() == grpc.StatusCode.UNAVAILABLE
            assert infer(channels[0], [ROW], timeout=30).result().outputs
        finally:
            for channel in channels:
                channel.close()
        assert "connection_refused" in it.events()


@pytest.mark.minutes
@pytest.mark.parametrize(("every_s", "is_borne"), [(11, True), (1, False)])
def test_a_client_may_ask_every_ten_seconds_whether_anybody_is_there_and_not_every_second(
    server: Running, every_s: int, *, is_borne: bool
) -> None:
    pinging = [
        ("grpc.keepalive_time_ms", every_s * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    states: list[Any] = []
    with grpc.insecure_channel(server.grpc, options=pinging) as channel:
        infer(channel, [ROW], timeout=30).result()
        channel.subscribe(states.append)
        threading.Event().wait(50)
        lost = [state for state in states if state is not grpc.ChannelConnectivity.READY]
        assert (not lost) is is_borne, states
        assert infer(channel, [ROW], timeout=30).result().outputs


@needs_torch
def test_the_supervisor_s_adapter_hands_the_socket_on(tmp_path: Path) -> None:
    http, listener = listen_tcp("127.0.0.1", 0), parts.listen_grpc(Serving(grpc_port=0))
    assert listener is not None
    path = tmp_path / "control.sock"
    with http, listener, listen_unix(path) as control:
        process = ServerProcess(http, control, path, grpc=listener, options=("--device", "cpu"))
        try:
            process.restore({})
            with grpc.insecure_channel(f"127.0.0.1:{listener.getsockname()[1]}") as channel:
                assert channel.unary_unary(INFERENCE + "ServerLive")(b"", timeout=60)
        finally:
            process.stop(drain_s=1.0)


@pytest.mark.parametrize("module", ["agent.supervisor", "agent.serving.__main__"])
def test_nobody_imports_grpc_whose_port_is_not_configured(module: str) -> None:
    code = f"import {module}, sys; print({{'grpc', 'google.protobuf'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_without_the_extra_the_agent_does_not_start_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert parts.listen_grpc(Serving()) is None
    with pytest.raises(parts.StartError, match=r"pip install 'nibbled\[grpc\]'"):
        parts.listen_grpc(Serving(grpc_port=0))


def test_beside_tokens_and_certificates_the_port_is_opened_too(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("box")
    guarded = Serving(grpc_port=0, token_file=tmp_path / "tokens", cert_file=certificate, key_file=key)
    listener = parts.listen_grpc(guarded)
    assert listener is not None
    listener.close()


def test_a_port_that_is_taken_is_told_by_its_key() -> None:
    listener = parts.listen_grpc(Serving(grpc_port=0))
    assert listener is not None
    with listener, pytest.raises(parts.StartError, match=r"serving\.grpc_port"):
        parts.listen_grpc(Serving(grpc_port=listener.getsockname()[1]))


def test_a_server_without_the_extra_ends_and_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['grpc'] = None; sys.argv[0] = 's'\nfrom agent.serving.__main__ import main\nmain()"
    with running(tmp_path) as it:
        it.stop()
        numbered = {"--http-fd": it.http_socket, "--grpc-fd": it.grpc_socket, "--control-fd": it.control_socket}
        words = [word for option, each in numbered.items() for word in (option, str(each.fileno()))]
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=ROOT,
            pass_fds=[each.fileno() for each in numbered.values()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "pip install 'nibbled[grpc]'" in done.stderr


@needs_tools
def test_generating_the_messages_again_gives_what_is_committed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([*command, *PROTOS], cwd=ROOT, check=True)
    for proto in PROTOS:
        for ending in ("_pb2.py", "_pb2.pyi"):
            name = proto.replace(".proto", ending)
            assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), f"{name}: run `make protos`"


FIELDS = """
import json
from tritonclient.grpc import model_config_pb2, service_pb2
files = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
def walk(message):
    yield message.full_name, {field.name: [field.number, field.type, field.is_repeated] for field in message.fields}
    for nested in message.nested_types:
        yield from walk(nested)
messages = dict(pair for file in files for each in file.message_types_by_name.values() for pair in walk(each))
service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
methods = {m.name: [m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming]
           for m in service.methods}
enums = {value.name: value.number for value in model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values}
print(json.dumps([messages, methods, enums]))
"""


@needs_triton
def test_names_numbers_and_types_are_those_of_triton_s_client() -> None:
    done = subprocess.run([sys.executable, "-c", FIELDS], capture_output=True, text=True, check=True)
    messages, methods, enums = json.loads(done.stdout)
    compared = 0
    for ours in _messages(pb.DESCRIPTOR.message_types_by_name.values()):
        theirs = messages.get(ours.full_name)
        if ours.full_name.startswith("inference.ModelMetadataResponse"):
            continue  # compared below: Triton lacks the specification's `properties`
        assert theirs is not None, ours.full_name
        for field in ours.fields:
            assert theirs[field.name] == [field.number, field.type, field.is_repeated], field.full_name
            compared += 1
    assert compared > 80
    metadata = pb.ModelMetadataResponse.DESCRIPTOR
    known = messages["inference.ModelMetadataResponse"]
    assert {field.name: field.number for field in metadata.fields} == {
        **{name: number for name, (number, _, _) in known.items()},
        "properties": 6,
    }
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        assert methods[method.name][:2] == [method.input_type.full_name, method.output_type.full_name]
        assert methods[method.name][2:] == [method.client_streaming, method.server_streaming]
    assert dict(pb.DataType.items()) == enums


def _messages(messages: Any) -> Iterator[Any]:
    for message in messages:
        yield message
        yield from _messages(message.nested_types)
