"""What the doctor thinks of what was seen: every state with the numbers, and a next step where there is one."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from agent.adapters.mqtt_trial import Stage, Trial
from agent.console import judging, judging_agent, judging_torch
from agent.console.check import Check, State, counts, failed, is_well, not_asked, ok, to_json, warning
from agent.console.failures import KNOWN, recognise
from agent.devices.cgroup import Limit
from agent.devices.chain import Snapshot
from agent.devices.memory import Memory
from agent.devices.nodes import Node
from agent.devices.nvml import Gpu
from agent.devices.sensors import Readings
from agent.devices.swap import Swap
from agent.planning.budget import Budget
from agent.planning.methods import METHODS

GIB = 2**30
NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)
RAM = Memory(8 * GIB, 4 * GIB, "meminfo")
PLAIN, JETSON = Snapshot(RAM), Snapshot(RAM, readings=Readings(gpu_node="ga10b"))
OK, WARNING, FAILED, NOT_ASKED = State.OK, State.WARNING, State.FAILED, State.NOT_ASKED
SIGNS = {
    "named symbol not found": "Error named symbol not found at line 233 in file /src/csrc/ops.cu",
    "NVML_SUCCESS == r": 'RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131',
    "NvMap": "NvMapMemAllocInternalTagged: 1075072515 error 12",
    "cuSPARSELt": "ImportError: libcusparseLt.so.0: cannot open shared object file: No such file or directory",
    "no kernel": "CUDA error: no kernel image is available for execution on the device",
    "driver": "CUDA driver version is insufficient for CUDA runtime version",
    "cpu build": "Torch not compiled with CUDA enabled",
    "no torch": "ModuleNotFoundError: No module named 'torch'",
    "no bitsandbytes": "ModuleNotFoundError: No module named 'bitsandbytes'",
    "mismatch": "Driver/library version mismatch",
    "memory": "CUDA out of memory. Tried to allocate 2.00 GiB",
}


@pytest.mark.parametrize("sign", SIGNS)
def test_a_known_failure_is_recognised_by_its_words_alone(sign: str) -> None:
    known = recognise(SIGNS[sign])
    assert known is KNOWN[list(SIGNS).index(sign)]
    assert known.meaning
    assert known.next_step


@pytest.mark.parametrize("text", [None, "", "something else entirely"])
def test_what_is_not_known_is_not_made_up(text: str | None) -> None:
    assert recognise(text) is None


def test_warnings_are_well_and_one_failure_is_not() -> None:
    checks = [ok("a", "1"), warning("b", "2", "do"), not_asked("c", "3")]
    assert is_well(checks)
    told = to_json([*checks, failed("d", "4", "do")])
    assert not told["ok"]
    assert told["counts"] == {"ok": 1, "warning": 1, "failed": 1, "not asked": 1} == counts(checks) | {"failed": 1}
    assert told["checks"][3] == {"name": "d", "state": "failed", "detail": "4", "next_step": "do"}


def budget(available: int, *, reserve: int = GIB // 2) -> Budget:
    return Budget(available, reserve, "meminfo", 8 * GIB)


def node(*, is_open: bool) -> Node:
    return Node("/dev/nvmap", "video", is_open)


def seen(**changes: Any) -> Snapshot:
    return Snapshot(RAM, **changes)


BOX = {
    "python of JetPack 6": (judging.python((3, 10, 12), "aarch64"), OK, "3.10.12"),
    "an old python": (judging.python((3, 8, 10), "aarch64"), FAILED, "3.10 to 3.13"),
    "a python to come": (judging.python((3, 14, 0), "x86_64"), FAILED, "3.10 to 3.13"),
    "memory": (judging.memory(budget(4 * GIB)), OK, "3.5 GiB for models"),
    "little memory": (judging.memory(budget(GIB // 2 + 1024)), WARNING, "512 MiB of 8.0 GiB"),
    "no memory": (judging.memory(budget(GIB // 4)), FAILED, "256 MiB of 8.0 GiB"),
    "no limit": (judging.cgroup([]), OK, "no limit"),
    "a limit": (judging.cgroup([Limit(GIB, GIB, "/a"), Limit(4 * GIB, GIB // 8, "/b")]), WARNING, "/b allows 4.0 GiB"),
    "no swap": (judging.swap(Swap(), Swap(), is_integrated=True), OK, "none"),
    "zram of a Jetson": (judging.swap(Swap(), Swap(GIB, 0), is_integrated=True), WARNING, "0 B of 1.0 GiB zram"),
    "zram elsewhere": (judging.swap(Swap(), Swap(GIB, 0), is_integrated=False), OK, "zram"),
    "swap in use": (judging.swap(Swap(GIB, GIB - 1), Swap(), is_integrated=False), WARNING, "short of memory"),
    "disk": (judging.disk(Path("/s"), 9 * GIB, 10 * GIB, GIB, is_writable=True), OK, "9.0 GiB of 10.0 GiB"),
    "little disk": (judging.disk(Path("/s"), 2 * GIB, 9 * GIB, GIB, is_writable=True), WARNING, "2.0 GiB of"),
    "no disk": (judging.disk(Path("/s"), GIB, 9 * GIB, GIB, is_writable=True), FAILED, "nothing can be fetched"),
    "somebody else's": (judging.disk(Path("/s"), 9 * GIB, 9 * GIB, 0, is_writable=False), WARNING, "cannot be written"),
    "a disk that only reads": (
        judging.disk(Path("/s"), GIB, GIB, 0, is_writable=False, is_read_only=True),
        FAILED,
        "mounted read-only",
    ),
    "clock": (judging.clock(NOW, is_synchronised=True), OK, "2026-06-01"),
    "a free clock": (judging.clock(NOW, is_synchronised=False), WARNING, "not synchronised"),
    "no nodes": (judging.gpu_nodes([], PLAIN), OK, "none"),
    "nodes": (judging.gpu_nodes([node(is_open=True)], JETSON), OK, "/dev/nvmap"),
    "closed nodes": (judging.gpu_nodes([node(is_open=False)], JETSON), FAILED, "/dev/nvmap (group video)"),
    "missing nodes": (judging.gpu_nodes([], JETSON), FAILED, "none of its files"),
    "nvml hangs": (judging.nvml(seen(gpu_source="hung")), FAILED, "two seconds"),
    "no nvml on a Jetson": (judging.nvml(JETSON), OK, "sysfs"),
    "no nvml": (judging.nvml(seen(gpu_source="NVML Shared Library Not Found")), OK, "Not Found"),
    "a driver half upgraded": (judging.nvml(seen(gpu_source="Driver/library version mismatch")), WARNING, "upgraded"),
    "nvml without memory": (judging.nvml(seen(gpu=Gpu(name="Orin (nvgpu)"), gpu_source="ok")), OK, "knows no memory"),
    "sensors": (judging.files("ok"), OK, "answer"),
    "a sensor hangs": (judging.files("hung"), WARNING, "hung"),
}


@pytest.mark.parametrize("case", BOX)
def test_the_box_is_judged_with_its_numbers(case: str) -> None:
    check, state, words = BOX[case]
    judge(check, state, words)


def judge(check: Check, state: State, words: str) -> None:
    assert check.state is state, check
    assert words in check.detail
    if state in (WARNING, FAILED):
        assert check.next_step


def certificate(begin: int, end: int, problem: str | None) -> Check:
    validity = NOW + begin * DAY, NOW + end * DAY
    return judging_agent.certificate(validity, problem, NOW, uses_tls=True, is_local=False)


def plain(*, is_local: bool) -> Check:
    return judging_agent.certificate(None, None, NOW, uses_tls=False, is_local=is_local)


def status(state: str, **health: Any) -> dict[str, Any]:
    return {"device_id": "box", "agent": "1", "health": {"status": state, "reasons": ["r"] * (state != "ok"), **health}}


def told(**connection: Any) -> list[Check]:
    return judging_agent.told_broker(connection, "b:1", "p", None)


def tried(stage: Stage, ends: datetime | None = None) -> list[Check]:
    return judging_agent.tried_broker(Trial(stage, "why", 12.0, ends), "b:1", "p", NOW)


UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "NRestarts": "0",
}
AGENT = {
    "certificate": (certificate(-10, 90, None), OK, "90 days"),
    "one that ends soon": (certificate(-10, 3, "expires in 72 hours"), WARNING, "72 hours"),
    "one that has ended": (certificate(-10, -1, "expired at"), FAILED, "expired"),
    "one to come": (certificate(1, 10, "is valid from"), FAILED, "valid from"),
    "a local broker": (plain(is_local=True), OK, "not encrypted"),
    "an open line": (plain(is_local=False), WARNING, "not encrypted"),
    "a server's certificate": (judging_agent.server_certificate((NOW - DAY, NOW + 89 * DAY), "", NOW), OK, "89 days"),
    "one near its end": (judging_agent.server_certificate((NOW - 89 * DAY, NOW + DAY), "", NOW), WARNING, "in 1 days"),
    "one past it": (judging_agent.server_certificate((NOW - 2 * DAY, NOW - DAY), "", NOW), FAILED, "until 2026-05-31"),
    "one without a key": (judging_agent.server_certificate(None, "no such file", NOW), FAILED, "no such file"),
    "an agent": (judging_agent.running(status("ok"), "u", is_running=True), OK, "runs as box"),
    "one that is degraded": (judging_agent.running(status("degraded"), "u", is_running=True), WARNING, "degraded: r"),
    "one that fails": (judging_agent.running(status("failing"), "u", is_running=True), FAILED, "failing: r"),
    "a silent one": (judging_agent.running(None, None, is_running=True), WARNING, "status.enabled"),
    "none": (judging_agent.running(None, "http://x/", is_running=False), WARNING, "http://x/"),
    "unknown": (judging_agent.running(None, "http://x/", is_running=None), NOT_ASKED, "cannot see"),
    "connected": (told(connected=True, echo=True)[1], OK, "p came back"),
    "without rights": (told(connected=True, echo=False)[1], FAILED, "has not come back"),
    "not connected": (told(connected=False)[0], FAILED, "is not connected"),
    "a try": (tried(Stage.DONE)[1], OK, "12 ms"),
    "a try without rights": (tried(Stage.READ)[1], FAILED, "does not get"),
    "one that may not write": (tried(Stage.WRITE)[1], FAILED, "may not write p: why"),
    "one that is refused": (tried(Stage.LOGIN)[0], FAILED, "b:1: login: why"),
    "and has no rights then": (tried(Stage.LOGIN)[1], NOT_ASKED, "without a connection"),
    "the broker's end": (tried(Stage.DONE, NOW + 3 * DAY)[0], WARNING, "2026-06-04"),
    "a free port": (judging_agent.port("a", "h", 1, None, is_ours=False), OK, "free"),
    "our port": (judging_agent.port("a", "h", 1, None, is_ours=True), OK, "running agent"),
    "a taken port": (judging_agent.port("a", "h", 1, "Address in use", is_ours=False), FAILED, "h:1: Address in use"),
    "any port": (judging_agent.port("a", "h", 0, None, is_ours=False), OK, "any that is free"),
    "unit": (judging_agent.unit(UNIT, ""), OK, "active (running)"),
    "no systemd": (judging_agent.unit(None, "no systemd"), NOT_ASKED, "no systemd"),
    "no unit": (judging_agent.unit({"LoadState": "not-found"}, ""), WARNING, "not-found"),
    "a failed unit": (
        judging_agent.unit({**UNIT, "ActiveState": "failed", "Result": "watchdog"}, ""),
        FAILED,
        "watchdog",
    ),
    "a stopped unit": (judging_agent.unit({**UNIT, "ActiveState": "inactive"}, ""), WARNING, "inactive"),
    "a unit that dies": (judging_agent.unit({**UNIT, "NRestarts": "7"}, ""), WARNING, "7 restarts"),
    "not at boot": (judging_agent.unit({**UNIT, "UnitFileState": "disabled"}, ""), WARNING, "not started at boot"),
}


@pytest.mark.parametrize("case", AGENT)
def test_the_agent_and_its_surroundings_are_judged(case: str) -> None:
    check, state, words = AGENT[case]
    judge(check, state, words)


def test_keys_that_expired_or_are_broken_are_named() -> None:
    def keys(*problems: str, is_required: bool = True) -> Check:
        return judging_agent.keys([], problems, "/k", NOW, is_required=is_required)

    judge(keys(), FAILED, "nobody may deploy")
    judge(keys("x.pub: a private key"), FAILED, "x.pub")
    judge(keys(is_required=False), WARNING, "require_signature is off")


def probed(**changes: Any) -> dict[str, Any]:
    result = {"ok": True, "kernel": "bitsandbytes-cuda", "detail": None, "ms": 1.0}
    methods = {name: dict(result) for name in METHODS}
    cuda = {"name": "Orin", "capability": [8, 7], "is_integrated": True}
    return {"torch": "2.8", "torch_cuda": "12.6", "bitsandbytes": "0.5", "cuda": cuda, "methods": methods, **changes}


def test_a_method_whose_kernel_runs_is_ok_and_the_gpu_is_named() -> None:
    checks = judging_torch.judge(probed(), has_gpu=True)
    assert {check.state for check in checks} == {OK}
    assert [check.name for check in checks] == ["torch", "cuda", *(f"method {name}" for name in METHODS)]
    assert "Orin, capability 8.7, shares" in checks[1].detail


def test_a_kernel_for_another_board_is_recognised_in_the_method_that_met_it() -> None:
    found = probed()
    found["methods"]["nf4"] |= {"kernel": "torch", "detail": SIGNS["named symbol not found"]}
    (check,) = [each for each in judging_torch.judge(found, has_gpu=True) if each.name == "method nf4"]
    judge(check, WARNING, "built for another GPU")
    assert "-DCOMPUTE_CAPABILITY=87" in str(check.next_step)


def test_a_method_that_does_not_work_fails() -> None:
    found = probed()
    found["methods"]["fp4"] |= {"ok": False, "detail": SIGNS["NVML_SUCCESS == r"]}
    (check,) = [each for each in judging_torch.judge(found, has_gpu=True) if each.name == "method fp4"]
    judge(check, FAILED, "memory ran out")


@pytest.mark.parametrize(("has_gpu", "state"), [(True, FAILED), (False, OK)])
def test_a_torch_without_cuda_fails_only_on_a_box_with_a_gpu(*, has_gpu: bool, state: State) -> None:
    found = probed(cuda=None, cuda_error=SIGNS["cpu build"])
    check = judging_torch.judge(found, has_gpu=has_gpu)[1]
    assert check.state is state
    assert has_gpu == ("JetPack" in str(check.next_step))


def test_a_torch_that_cannot_be_loaded_fails_once_and_the_rest_is_not_asked() -> None:
    checks = judging_torch.judge_failure(f"the builder had no result: {SIGNS['cuSPARSELt']}", None)
    judge(checks[0], FAILED, "cuSPARSELt is missing")
    assert "ldconfig" in str(checks[0].next_step)
    assert {check.state for check in checks[1:]} == {NOT_ASKED}
