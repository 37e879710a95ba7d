"""The doctor's looks: at simulated boxes, at a torch that cannot be loaded, at what hangs, and as a command."""

from __future__ import annotations

import json
import os
import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from agent.cli import main
from agent.console import ask, looking
from agent.console import doctor as command
from agent.console.check import Check, State, ok
from agent.console.doctor import Question, answers
from agent.console.telling import show
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from agent.devices import nodes, swap
from agent.devices.look import Look
from agent.devices.nvml import Nvml
from agent.planning.methods import METHODS
from agent.settings import Settings
from tests.fakes.authority import Authority
from tests.fakes.boxes import BOXES, plant
from tests.fakes.nvml import FakeNvml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
GIB = 2**30
SWAPS = "Filename Type Size Used Priority\n/dev/zram0 partition 650132 10 5\n/dev/zram1 partition 650132 0 5\n"
SWAP_FILE = "/mnt/a swap file  file 8388604 4 -2\n"


@pytest.fixture(autouse=True)
def _no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out a service that is installed on this machine."""
    monkeypatch.setattr(looking, "SERVICE_USER", "nobody-of-that-name")


def look(root: Path, box: str) -> Look:
    tree = BOXES[box]()
    return Look(plant(root, tree.files, tree.links), Nvml(tree.nvml()))


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def device(root: Path, name: str) -> None:
    path = root / "dev" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize("box", [name for name in BOXES if name != "cpu_only"])
def test_a_box_with_a_gpu_and_its_device_file_has_nothing_failed(tmp_path: Path, box: str) -> None:
    seen = look(tmp_path, box)
    device(tmp_path, "nvidia0")
    found = by_name(looking.box(GIB // 2, None, root=tmp_path, look=seen))
    assert {check.state for check in found.values()} <= {State.OK, State.WARNING}
    source = "nvml" if box in ("desktop", "cloud") else "cgroup" if box == "nano" else "meminfo"
    assert f"according to {source}" in found["memory"].detail


def test_a_jetson_s_zram_and_the_limit_of_its_unit_are_told_with_numbers(tmp_path: Path) -> None:
    seen = look(tmp_path, "nano")
    plant(tmp_path, {"proc/swaps": SWAPS})
    found = by_name(looking.box(GIB // 2, None, root=tmp_path, look=seen))
    assert found["swap"].state is State.WARNING
    assert "10.0 KiB of 1.2 GiB zram" in found["swap"].detail
    assert "nvzramconfig" in str(found["swap"].next_step)
    assert "nibbled.service/memory.limit_in_bytes allows 2.0 GiB and leaves 1.5 GiB" in found["cgroup"].detail


def test_swap_on_disk_is_told_apart_whatever_its_name(tmp_path: Path) -> None:
    plant(tmp_path, {"proc/swaps": SWAPS + SWAP_FILE})
    disk, zram = swap.read(tmp_path)
    assert (disk.total_bytes, disk.used_bytes) == (8388604 * 1024, 4096)
    assert zram.total_bytes == 2 * 650132 * 1024


def test_a_jetson_in_a_container_without_its_device_files_fails(tmp_path: Path) -> None:
    found = by_name(looking.box(GIB // 2, None, root=tmp_path, look=look(tmp_path, "orin")))
    assert found["gpu nodes"].state is State.FAILED
    assert "--runtime nvidia" in str(found["gpu nodes"].next_step)


def test_device_files_that_this_user_may_not_open_are_found(tmp_path: Path) -> None:
    for name in ("nvmap", "dri/renderD128", "tty0"):
        device(tmp_path, name)
    found = nodes.read(tmp_path, lambda path, _mode: path.name == "nvmap")
    assert {(node.path, node.is_open) for node in found} == {("/dev/nvmap", True), ("/dev/dri/renderD128", False)}


def test_a_driver_that_hangs_costs_two_seconds_and_is_named(tmp_path: Path) -> None:
    library, released = FakeNvml(), threading.Event()
    library.blocked["nvmlInit"] = released
    seen = Look(plant(tmp_path, BOXES["desktop"]().files), Nvml(library, deadline_s=0.05))
    found = by_name(looking.box(GIB // 2, None, root=tmp_path, look=seen))
    released.set()
    assert found["nvml"].state is State.FAILED
    assert "hangs" in found["nvml"].detail


FAILURES = {
    "cuSPARSELt": ("libcusparseLt.so.0: cannot open shared object file", "cuSPARSELt is missing"),
    "NVML": ("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:1131", "memory ran out"),
    "NvMap": ("NvMapMemAllocInternalTagged: 1075072515 error 12", "no memory, or none in one piece"),
    "symbol": ("Error named symbol not found at line 233 in file /src/csrc/ops.cu", "built for another GPU"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_torch_that_breaks_while_it_is_loaded_is_recognised_through_the_real_child(
    tmp_path: Path, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, meaning = FAILURES[failure]
    plant(tmp_path / "site", {"torch/__init__.py": f"raise ImportError({words!r})\n"})
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    checks = looking.torch(root=tmp_path, look=look(tmp_path, "orin"))
    assert (checks[0].name, checks[0].state) == ("torch", State.FAILED)
    assert meaning in checks[0].detail
    assert len(checks) == 2 + len(METHODS)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_kernel_that_breaks_on_a_jetson_is_recognised_in_its_method(tmp_path: Path, failure: str) -> None:
    words, meaning = FAILURES[failure]
    broken = {"ok": False, "kernel": None, "detail": f"RuntimeError: {words}", "ms": 1.0}
    cuda = {"name": "Orin", "capability": [8, 7], "is_integrated": True}
    found = {"torch": "2.8", "bitsandbytes": "0.5", "cuda": cuda, "methods": dict.fromkeys(METHODS, broken)}
    checks = by_name(looking.torch(root=tmp_path, look=look(tmp_path, "orin"), probe=lambda: found))
    assert all(meaning in checks[f"method {name}"].detail for name in METHODS)


def test_a_probe_that_ends_for_an_unknown_reason_passes_the_builder_s_words_on(tmp_path: Path) -> None:
    def broken() -> dict[str, Any]:
        raise StepError(ErrorCode.BUILD_KILLED, "it was killed by SIGBUS", "most likely memory ran out")

    checks = looking.torch(root=tmp_path, look=look(tmp_path, "orin"), probe=broken)
    assert (checks[0].detail, checks[0].next_step) == ("it was killed by SIGBUS", "most likely memory ran out")


def test_what_hangs_or_breaks_costs_its_own_line_and_nobody_else_s() -> None:
    forever = threading.Event()

    def hang() -> list[Check]:
        forever.wait(30.0)
        return []

    def crash() -> list[Check]:
        raise ValueError("odd")

    asked = [Question("slow", hang, 0.05), Question("odd", crash), Question("fine", lambda: [ok("fine", "yes")])]
    slow, odd, fine = (checks[0] for checks in answers(asked))
    forever.set()
    assert (slow.state, slow.detail) == (State.FAILED, "no answer in 0.05 s: something below hangs")
    assert odd.state is State.FAILED
    assert "ValueError: odd" in odd.detail
    assert fine.state is State.OK


@pytest.mark.parametrize(
    ("script", "state", "words"),
    [
        ("printf 'LoadState=loaded\\nActiveState=failed\\nResult=oom-kill\\n'", State.FAILED, "oom-kill"),
        ("echo 'System has not been booted with systemd' >&2; exit 1", State.NOT_ASKED, "not been booted"),
    ],
)
def test_the_unit_is_asked_of_systemctl(tmp_path: Path, script: str, state: State, words: str) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    (check,) = looking.unit((str(program),))
    assert check.state is state
    assert words in check.detail


def test_without_systemctl_the_unit_is_not_asked(tmp_path: Path) -> None:
    (check,) = looking.unit((str(tmp_path / "none"),))
    assert check.state is State.NOT_ASKED


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def config(tmp_path: Path, taken: int) -> Path:
    """A configuration whose serving port and broker port somebody else holds, who says nothing."""
    path = tmp_path / "nibbled.toml"
    path.write_text(
        f'device_id = "box"\nstate_dir = "{tmp_path}/state"\n[mqtt]\nport = 1\n'
        f'[serving]\nhttp_port = {taken}\n[status]\nport = 0\n[trust]\nkeys_dir = "{tmp_path}/keys"\n'
    )
    return path


def examined(config: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["doctor", "--config", str(config), *more])
    return done.exit_code, done.stdout


def test_the_command_prints_every_check_as_json_and_fails_with_them(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "torch", lambda: [ok("torch", "2.8")])
    status, text = examined(config, "--json")
    told = json.loads(text)
    states = {check["name"]: check["state"] for check in told["checks"]}
    assert status == 1
    assert not told["ok"]
    assert states["port serving.http_port"] == "failed"
    assert states["broker"] == states["keys"] == "failed"
    assert (states["port status.port"], states["torch"], states["configuration"]) == ("ok", "ok", "ok")
    assert set(states) == {
        *(
            "configuration",
            "python",
            "clock",
            "memory",
            "cgroup",
            "swap",
            "gpu nodes",
            "nvml",
            "sensors",
            "unit",
            "disk",
        ),
        *(
            "keys",
            "certificate",
            "identity",
            "agent",
            "port serving.http_port",
            "port status.port",
            "broker",
            "broker rights",
        ),
        "torch",
    }


@pytest.mark.parametrize("name", ["box", "other"])
def test_the_names_at_the_broker_are_compared_with_the_device(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(looking, "torch", lambda: [ok("torch", "2.8")])
    monkeypatch.setenv("NIBBLED_DEVICE_ID", "box")
    monkeypatch.setenv("NIBBLED_MQTT__USERNAME", name)
    for variable, path in zip(("CERT_FILE", "KEY_FILE"), Authority(tmp_path).issue("box"), strict=True):
        monkeypatch.setenv(f"NIBBLED_MQTT__{variable}", str(path))
    checks = {check["name"]: check for check in json.loads(examined(config, "--json")[1])["checks"]}
    found = checks["identity"]
    if name == "box":
        assert found["state"] == "ok"
        assert found["detail"].startswith("box, as in mqtt.username and the common name in ")
    else:
        assert (found["state"], found["detail"]) == ("warning", "mqtt.username is 'other', device_id is 'box'")
        assert "devices.acl" in found["next_step"]


def test_every_line_for_people_that_is_not_well_has_a_next_step_below_it(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "torch", lambda: [ok("torch", "2.8")])
    _, text = examined(config)
    lines = text.splitlines()
    bad = [index for index, line in enumerate(lines) if line.startswith(("warning", "failed"))]
    assert bad
    assert all("→" in lines[index + 1] for index in bad)
    assert lines[-1].endswith("not asked") or " failed" in lines[-1]


def test_a_wrong_configuration_fails_and_the_box_is_looked_at_all_the_same(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "torch", lambda: [ok("torch", "2.8")])
    config.write_text("[mqtt]\nprot = 1\n")
    status, text = examined(config, "--json")
    checks = {check["name"]: check for check in json.loads(text)["checks"]}
    assert status == 1
    assert "did you mean port?" in checks["configuration"]["detail"]
    assert "memory" in checks
    assert "broker" not in checks


def test_a_box_on_which_nothing_failed_ends_with_zero(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "questions", lambda _loaded: [Question("torch", lambda: [ok("torch", "2.8")])])
    assert examined(config)[0] == 0


@pytest.mark.parametrize("exists", [True, False])
def test_a_control_socket_somebody_listens_on_means_an_agent(tmp_path: Path, *, exists: bool) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        if exists:
            listener.bind(str(path))
            listener.listen()
        assert ask.is_running(path) is exists
    assert ask.is_running(path) is False, "the socket of an agent that ended is no agent"


def test_the_server_s_certificate_and_grpc_port_are_looked_at_where_they_are_set(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "torch", lambda: [ok("torch", "2.8")])
    certificate, key = Authority(tmp_path).issue("box", life=timedelta(hours=2))
    more = f'grpc_port = 0\ncert_file = "{certificate}"\nkey_file = "{key}"\n'
    config.write_text(config.read_text().replace("[serving]\n", f"[serving]\n{more}"))
    states = {check["name"]: check["state"] for check in json.loads(examined(config, "--json")[1])["checks"]}
    assert states["server certificate"] == "ok"
    assert states["port serving.grpc_port"] == "ok"
    key.write_text("broken")
    states = {check["name"]: check["state"] for check in json.loads(examined(config, "--json")[1])["checks"]}
    assert states["server certificate"] == "failed"


def test_what_keeps_the_agent_from_starting_or_is_open_to_others_has_a_line(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("0123456789abcdef")
    tokens.chmod(0o644)
    loaded = Settings(status={"token_file": tokens}, mqtt={"port": 8883, "tls": False})
    (found,) = looking.tokens(loaded)
    assert (found.name, found.state) == ("tokens status", State.FAILED)
    assert "its mode is 0644" in found.detail
    tokens.chmod(0o640)
    assert [check.state for check in looking.tokens(loaded)] == [State.OK]
    warned = by_name(looking.certificate(loaded))["certificate"]
    assert (warned.state, "port 8883" in warned.detail) == (State.WARNING, True)
    (page,) = looking.tokens(Settings(status={"host": "0.0.0.0"}))
    assert (page.name, page.state) == ("status page", State.WARNING)
    assert looking.tokens(Settings()) == []


def test_folders_that_do_not_or_cannot_exist_are_called_that(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (Path("/proc/nibbled"), tmp_path / "file" / "state"):
        (disk,) = looking.disk(place, 0)
        assert disk.state is State.FAILED
        assert f"state_dir {place} cannot exist" in disk.detail
    (keys,) = looking.keys(Settings(trust={"keys_dir": tmp_path / "none"}))
    assert f"{tmp_path / 'none'} does not exist" in keys.detail


def test_the_columns_hold_the_longest_name(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("disk", "port serving.http_port", "server certificate", "tokens serving admin"):
        show(ok(name, "DETAIL"))
    assert len({line.index("DETAIL") for line in capsys.readouterr().out.splitlines()}) == 1
