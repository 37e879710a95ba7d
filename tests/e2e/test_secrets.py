"""Secrets put where secrets go, a run in which much fails, and everything that the device then says or keeps."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from agent.fleet import keys
from tests.e2e.harness.device import ROOT, SERVER, Agent
from tests.e2e.harness.operator import MODEL, Operator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICE = "secretive"
PASSWORD, QUERY, USER_INFO, FRAGMENT, TOKEN, BEARER = (
    f"canary-{name}" for name in ("password", "query", "userinfo", "fragment", "token", "bearer")
)


@pytest.fixture
def keys_dir(tmp_path: Path, world: World) -> Path:
    """Trusted keys, among them a private one that somebody copied to where its public half belongs."""
    directory = tmp_path / "trust.d"
    shutil.copytree(world.keys_dir, directory)
    private, _ = keys.generate(tmp_path, "stolen")
    shutil.copy(private, directory / "stolen.pub")
    return directory


@pytest.fixture
def agent(tmp_path: Path, world: World, keys_dir: Path) -> Iterator[Agent]:
    bearer = tmp_path / "files.token"
    bearer.write_text(BEARER)
    bearer.chmod(0o600)
    environment = {
        "NIBBLED_DOWNLOADS__TOKEN_FILES": json.dumps({urlsplit(world.checkpoint.url).netloc: str(bearer)}),
        "NIBBLED_MQTT__USERNAME": DEVICE,
        "NIBBLED_MQTT__PASSWORD": PASSWORD,
        "NIBBLED_STATUS__ENABLED": "true",
        "NIBBLED_STATUS__PORT": "0",
        "NIBBLED_LOGGING__LEVEL": "debug",
    }
    agent = Agent(DEVICE, tmp_path, world.broker.port, keys_dir, environment=environment)
    agent.start()
    yield agent
    agent.close()


def presigned(url: str, *, user: str = "") -> str:
    return url.replace("http://", f"http://{user}") + f"?X-Amz-Signature={QUERY}&sig={TOKEN}#{FRAGMENT}"


def play(operator: Operator, world: World) -> None:
    """Deploy with presigned addresses: once well, and in every way that a download, a check or a command fails."""
    good = {"name": "checkpoint_best.pt", **world.checkpoint.reference()}
    url = world.checkpoint.url

    def deploy(state: str, *, gate_url: str | None = None, **changes: object) -> None:
        entry = {**good, "url": presigned(url), **changes}
        dataset = {**world.dataset.reference(), "url": gate_url or presigned(world.dataset.url)}
        operation = operator.deploy(operator.manifest(world.checkpoint, files=[entry]), gate={"dataset": dataset})
        assert operator.result(operation)["state"] == state

    missing = url.replace("checkpoint_best", "missing")
    deploy("failed", url=presigned(missing, user=f"me:{USER_INFO}@"), sha256="1" * 64)
    deploy("failed", url=presigned(missing), sha256="1" * 64)
    deploy("failed", sha256="2" * 64)
    deploy("failed", sha256="3" * 64, size=7)
    deploy("failed", url=f"https://elsewhere.example/x?sig={TOKEN}", sha256="4" * 64)
    deploy("failed", url=f"file:///etc/x?sig={QUERY}", sha256="5" * 64)
    deploy("failed", gate_url=presigned(world.dataset.url + "x"))
    deploy("succeeded")
    envelope = world.signer.seal(operator.manifest(world.checkpoint, files=[{**good, "url": presigned(url)}]))
    envelope["payload"] = base64.b64encode(base64.b64decode(envelope["payload"]) + b" ").decode()
    assert operator.result(operator.send("deploy", model=MODEL, manifest=envelope))["state"] == "rejected"
    wrong = operator.send("deploy", model=MODEL, artifact={"url": presigned(url), "sha256": "x", "size": 1})
    assert operator.result(wrong)["state"] == "rejected"
    mark = operator.mark()
    operator.send_text("deploy", f'{{"schema": 1, "artifact": {{"url": "{presigned(url)}"}}')
    operator.event(lambda body: body["event"] == "command_rejected", since=mark)


def spoken(world: World, agent: Agent, operator: Operator) -> dict[str, str]:
    """Return everything that came out of the device, by where."""
    page = agent.logged("page")["url"]
    pages = {
        name: urllib.request.urlopen(page + name, timeout=10).read().decode()  # noqa: S310 - loopback
        for name in ("", "status.json", "metrics")
    }
    login = ["--port", str(world.broker.port), "--device", DEVICE, "--json", "status"]
    shell = [sys.executable, "-c", "from agent.fleet.cli import main; main()", *login]
    status = subprocess.run(shell, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    told = [message for message in operator.subscriber.all() if message.topic.startswith(f"edge/v1/{DEVICE}/")]
    return {
        "log": json.dumps(agent.log()),
        "messages": "\n".join(message.text for message in told if "/cmd/" not in message.topic),
        "nibblectl status": status.stdout + status.stderr,
        **pages,
    }


def kept(agent: Agent) -> dict[str, bytes]:
    """Return the files of the journal, and what is noted beside downloads, byte by byte."""
    state = agent.directory / "state"
    return {path.name: path.read_bytes() for path in (*state.glob("journal.db*"), *state.glob("downloads/*.meta"))}


def test_no_secret_comes_out_of_a_device_whatever_fails(agent: Agent, world: World, keys_dir: Path) -> None:
    operator = Operator(DEVICE, world.broker.port, world.subscriber, world.signer, world.dataset)
    operator.await_online()
    play(operator, world)
    (server,) = agent.children(SERVER)
    inherited = Path(f"/proc/{server.pid}/environ").read_bytes().decode()
    server.close()
    mark = operator.mark()
    operator.result(operator.send("status"))
    health = operator.subscriber.wait(operator.topic("health"), since=mark)

    outputs: dict[str, str] = {**spoken(world, agent, operator), "the server's environment": inherited}
    outputs |= {name: content.decode("latin-1") for name, content in kept(agent).items()}
    agent.terminate()
    outputs["log of the end"] = json.dumps(agent.log())

    private_key = (keys_dir / "stolen.pub").read_text().splitlines()[1]
    assert any("stolen.pub: a private key" in reason for reason in health["reasons"])
    assert MODEL in outputs["status.json"]
    assert "operation_ended" in outputs["messages"]
    assert b"kanji" in b"".join(kept(agent).values())
    for secret in (PASSWORD, QUERY, USER_INFO, FRAGMENT, TOKEN, BEARER, private_key):
        assert [name for name, text in outputs.items() if secret in text] == [], secret
