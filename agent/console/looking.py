"""The doctor's looks at the world, one function each; what they saw is judged elsewhere.

Nothing here imports torch: the builder's probe is asked for it, in a child that is killed when it takes too long.
"""

from __future__ import annotations

import os
import platform
import pwd
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from agent import parts
from agent.adapters import identity, mqtt_trial
from agent.adapters.builder import BuilderProcess
from agent.adapters.clock import SystemClock
from agent.adapters.download import tokens as download_tokens
from agent.adapters.signatures import KeyDirectory
from agent.adapters.sockets import listen_tcp
from agent.adapters.tls import TlsFiles, check_server_files
from agent.console import ask, judging, judging_agent, judging_torch
from agent.console.check import failed, not_asked
from agent.contract.topics import Topics
from agent.deployment.ports import InterruptedStepError, StepError
from agent.deployment.runner import WorkWatch
from agent.devices import cgroup, nodes, swap, system
from agent.devices.look import Look
from agent.devices.memory import ROOT, MemoryUnknownError
from agent.devices.probe import DeviceProbe, SelfTest
from agent.planning.methods import METHODS
from agent.tokens import TokenFileError, read_tokens

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from agent.adapters.broker import Broker
    from agent.console.check import Check
    from agent.settings import Serving, Settings

TLS_PORT = 8883
"""IANA's ``secure-mqtt``."""
PROBE_S = 120.0
"""Loading torch from a slow card and setting up CUDA takes a minute."""
SYSTEMCTL_S = 5.0
SERVICE_USER = "nibbled"
"""Whom systemd/nibbled.service runs the agent as."""
_PROPERTIES = "LoadState,ActiveState,SubState,UnitFileState,NRestarts,Result"
_LOCAL = ("127.0.0.1", "::1", "localhost")


def interpreter() -> list[Check]:
    """Look at Python."""
    return [judging.python(sys.version_info[:3], platform.machine())]


def clock() -> list[Check]:
    """Look at the clock."""
    known = SystemClock()
    return [judging.clock(known.now(), is_synchronised=known.is_synchronised())]


def box(reserve_bytes: int, limit_bytes: int | None, *, root: Path = ROOT, look: Look | None = None) -> list[Check]:
    """Look at memory, swap, device files, NVML and sensors; each look waits two seconds for a driver at most."""
    look = look or Look(root)
    seen, found = look(), nodes.read(root)
    probe = DeviceProbe(
        reserve_bytes=reserve_bytes, limit_bytes=limit_bytes, self_test=_no_self_test, look=lambda: seen
    )
    try:
        budget = probe.budget()
    except MemoryUnknownError as error:
        memory = failed("memory", str(error), "mount /proc")
        is_integrated = seen.board.module is not None
    else:
        memory, is_integrated = judging.memory(budget), budget.is_integrated
    return [
        memory,
        judging.cgroup(cgroup.limits(root)),
        judging.swap(*swap.read(root), is_integrated=is_integrated),
        judging.gpu_nodes(found, seen),
        judging.nvml(seen),
        judging.files(seen.files_source),
    ]


def disk(state_dir: Path, reserve_bytes: int) -> list[Check]:
    """Look at the file system of the state directory, or where it will be made."""
    place = next(each for each in (state_dir, *state_dir.parents) if each.exists())
    usage = system.disk(place)
    if not place.is_dir() or usage["total_bytes"] == 0:
        return [judging.no_disk(state_dir, place)]
    is_writable, is_read_only = os.access(place, os.W_OK), bool(os.statvfs(place).f_flag & os.ST_RDONLY)
    sizes = usage["free_bytes"], usage["total_bytes"], reserve_bytes
    return [judging.disk(place, *sizes, is_writable=is_writable, is_read_only=is_read_only)]


def keys(settings: Settings) -> list[Check]:
    """Look at the keys that may sign."""
    directory = KeyDirectory(settings.trust.keys_dir)
    return [
        judging_agent.keys(
            directory.keys(),
            directory.problems(),
            str(settings.trust.keys_dir),
            SystemClock().now(),
            is_required=settings.trust.require_signature,
            is_there=settings.trust.keys_dir.is_dir(),
        )
    ]


def tokens(settings: Settings) -> list[Check]:
    """Look at each file of tokens: those that the agent reads before it starts, and those that downloads read.

    A page that others reach without one has a line, too.
    """
    serving, status = settings.serving, settings.status
    files = (
        ("tokens serving", "serving.token_file", serving.token_file),
        ("tokens serving admin", "serving.admin_token_file", serving.admin_token_file),
        ("tokens status", "status.token_file", status.token_file),
    )
    found = [judging_agent.token_file(name, key, path, _unusable(path)) for name, key, path in files if path]
    if status.enabled and not status.is_local and status.token_file is None:
        found.append(judging_agent.open_page(status.host))
    for host, path in sorted(settings.downloads.token_files.items()):
        found.append(judging_agent.download_token(host, path, _unusable_for_downloads(path)))
    return found


def certificate(settings: Settings) -> list[Check]:
    """Look at the certificates for the broker, and at the names that it knows this device by."""
    mqtt, now = settings.mqtt, SystemClock().now()
    validity = problem = None
    if mqtt.uses_tls:
        files = parts.tls_files(mqtt)
        problem = files.problem(now)
        try:
            validity = files.validity()
        except (OSError, ValueError):
            validity = None  # the problem says so already
    is_local = mqtt.host in _LOCAL
    ours = judging_agent.certificate(validity, problem, now, uses_tls=mqtt.uses_tls, is_local=is_local)
    if mqtt.port == TLS_PORT and not mqtt.uses_tls:
        ours = judging_agent.plain_at_tls_port(mqtt.port)
    known = identity.names(mqtt.username, parts.tls_files(mqtt))
    named = judging_agent.identity(settings.device_id, known, identity.differences(settings.device_id, known))
    return [ours, named, *_server_certificate(settings.serving, now)]


def agent(settings: Settings, version: str) -> list[Check]:
    """Look at the running agent, its ports and its broker."""
    address = ask.url(settings.status.host, settings.status.port) if settings.status.enabled else None
    status = _status(address, settings.device_id)
    is_running = status is not None or ask.is_running(settings.state_dir / "run" / "control.sock")
    return [
        judging_agent.running(status, address, is_running=is_running),
        *_ports(settings, is_running=is_running),
        *_broker(settings, status, version, is_running=is_running),
    ]


def unit(command: tuple[str, ...] = ("systemctl", "show", "nibbled.service")) -> list[Check]:
    """Look at the systemd unit."""
    try:
        done = subprocess.run(
            [*command, "-p", _PROPERTIES], capture_output=True, text=True, timeout=SYSTEMCTL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [judging_agent.unit(None, f"systemctl: {getattr(error, 'strerror', None) or 'no answer in 5 s'}")]
    if done.returncode != 0:
        return [judging_agent.unit(None, done.stderr.strip().splitlines()[0] if done.stderr.strip() else "no systemd")]
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return [judging_agent.unit({name: value for name, _, value in pairs}, "")]


def torch(
    *, root: Path = ROOT, look: Look | None = None, probe: Callable[[], dict[str, Any]] | None = None
) -> list[Check]:
    """Look at torch, CUDA and every method, in the builder's child.

    Args:
        root: of the file system that tells whether there is a GPU.
        look: the same for NVML.
        probe: returns what the builder's probe found.
    """
    has_gpu = judging.has_gpu((look or Look(root))(), nodes.read(root))
    try:
        return judging_torch.judge((probe or _probe)(), has_gpu=has_gpu)
    except InterruptedStepError:
        return judging_torch.judge_failure(f"no result after {PROBE_S:g} s", "sudo dmesg | tail; then reboot")
    except StepError as error:
        return judging_torch.judge_failure(error.detail, error.hint)


def _probe() -> dict[str, Any]:
    watch = WorkWatch(lambda _done, _total, _unit: None)
    timer = threading.Timer(PROBE_S, watch.interrupt)
    timer.daemon = True
    timer.start()
    try:
        return BuilderProcess().build({"job": "probe", "methods": list(METHODS)}, watch)
    finally:
        timer.cancel()


def _status(address: str | None, device_id: str) -> dict[str, Any] | None:
    if address is None:
        return None
    try:
        found = ask.status(address)
    except ask.NoAgentError:
        return None
    return found if found["device_id"] == device_id else None


def _unusable(path: Path) -> str | None:
    try:
        read_tokens(path)
    except TokenFileError as error:
        return str(error)
    closed = _closed_to_service(path)
    return closed and "; ".join(closed)


def _unusable_for_downloads(path: Path) -> tuple[str, str | None] | None:
    try:
        download_tokens.credentials(str(path))
    except StepError as error:
        return error.detail, error.hint
    return _closed_to_service(path)


def _closed_to_service(path: Path) -> tuple[str, str] | None:
    """Return that the service's user may not read a file, and what to do, where root asks, who may read all."""
    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None  # not installed as a service: whoever asks is who reads
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    # The kernel's answer, with what access control lists and the folders above say.
    asked = subprocess.run(
        ["/usr/bin/test", "-r", path],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=groups,
        timeout=SYSTEMCTL_S,
        check=False,
    )
    if asked.returncode == 0:
        return None
    keep = f"chown root:{SERVICE_USER} {path} && chmod 0640 {path}"
    return f"{path}: {SERVICE_USER}, the user of the service, may not read it", keep


def _server_certificate(serving: Serving, now: datetime) -> list[Check]:
    if serving.cert_file is None or serving.key_file is None:
        return []
    try:
        check_server_files(serving.cert_file, serving.key_file)
        validity = TlsFiles(cert_file=str(serving.cert_file)).validity()
    except (OSError, ValueError) as error:
        return [judging_agent.server_certificate(None, str(error), now)]
    return [judging_agent.server_certificate(validity, "", now)]


def _ports(settings: Settings, *, is_running: bool | None) -> list[Check]:
    serving = settings.serving
    wanted = [("serving.http_port", serving.host, serving.http_port)]
    if serving.grpc_port is not None:
        wanted.append(("serving.grpc_port", serving.host, serving.grpc_port))
    if settings.status.enabled:
        wanted.append(("status.port", settings.status.host, settings.status.port))
    if is_running is None:
        why = "this user cannot see whether an agent has it"
        return [not_asked(f"port {name}", why, "sudo -u nibbled nibbled doctor") for name, _, _ in wanted]
    return [
        judging_agent.port(name, host, number, None if is_running else _taken(host, number), is_ours=is_running)
        for name, host, number in wanted
    ]


def _taken(host: str, number: int) -> str | None:
    try:
        listen_tcp(host, number).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _broker(settings: Settings, status: dict[str, Any] | None, version: str, *, is_running: bool | None) -> list[Check]:
    topics = Topics(settings.mqtt.topic_prefix, settings.device_id)
    where, presence = f"{settings.mqtt.host}:{settings.mqtt.port}", topics.presence
    try:
        broker: Broker = parts.broker(settings)
    except parts.StartError as error:
        return [failed("broker", str(error), "sudo -u nibbled nibbled doctor, or make the file readable to nibbled")]
    if status is not None:
        connection = status.get("connection") or {}
        reached = None if connection.get("connected") else mqtt_trial.reach(broker)
        return judging_agent.told_broker(connection, where, presence, reached)
    if is_running is not False:
        why = "an agent may run here, and a second connection of this device would throw it out"
        return [not_asked(name, why, "set status.enabled = true") for name in ("broker", "broker rights")]
    trial = mqtt_trial.go(broker, topics, system.boot_id(), version)
    return judging_agent.tried_broker(trial, where, presence, SystemClock().now())


def _no_self_test() -> SelfTest:
    raise AssertionError("the budget needs no self-test")
