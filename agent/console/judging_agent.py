"""What the doctor thinks of the agent's surroundings: trust, certificates, broker, ports, unit. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from agent.adapters.identity import NEXT_STEP
from agent.adapters.mqtt_trial import Stage
from agent.console.check import Check, failed, not_asked, ok, warning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from agent.adapters.mqtt_trial import Trial
    from agent.adapters.trusted_keys import TrustedKey

_NEXT = {
    Stage.NAME: "is mqtt.host right, and does the box resolve names? resolvectl query HOST",
    Stage.CONNECTION: "is the broker up, mqtt.port right, and no firewall between?",
    Stage.TLS: "mqtt.ca_file must be the authority of the broker's certificate, and mqtt.host a name in it",
    Stage.LOGIN: "look at mqtt.username and password_file, or at the certificate: its common name is the device_id",
    Stage.WRITE: "let the device write its own topics: deploy/mosquitto/devices.acl",
    Stage.READ: "let the device read its own topics: deploy/mosquitto/devices.acl; a grant in SUBACK proves nothing",
}
_SOON = timedelta(days=30)
_JOURNAL = "journalctl -u nibbled -n 50"


def keys(
    trusted: Sequence[TrustedKey],
    problems: Sequence[str],
    where: str,
    now: datetime,
    *,
    is_required: bool,
    is_there: bool = True,
) -> Check:
    """Judge the keys that may sign a deploy."""
    expired = [key.id for key in trusted if key.not_after is not None and now >= key.not_after]
    usable = [key.id for key in trusted if key.id not in expired]
    detail = f"{len(usable)} usable in {where}" + (f": {', '.join(usable)}" if usable else "")
    wrong = [*problems, *(f"{name} has expired" for name in expired)]
    if not is_required:
        return warning(
            "keys",
            "trust.require_signature is off: anybody on the broker may deploy",
            "set trust.require_signature = true",
        )
    if not is_there:
        return failed(
            "keys",
            f"trust.keys_dir {where} does not exist: nobody may deploy",
            f"sudo mkdir -p {where}; nibblectl keygen NAME, then copy NAME.pub there",
        )
    if not usable:
        told = "; ".join([detail, *wrong])
        return failed("keys", f"{told}: nobody may deploy", f"nibblectl keygen NAME, then copy NAME.pub to {where}")
    if wrong:
        return warning("keys", "; ".join([detail, *wrong]), f"mend or remove these files in {where}")
    return ok("keys", detail)


def certificate(
    validity: tuple[datetime, datetime] | None, problem: str | None, now: datetime, *, uses_tls: bool, is_local: bool
) -> Check:
    """Judge the client certificate.

    Args:
        validity: its first and last moment, None without one.
        problem: what `TlsFiles.problem` says.
        now: wall time.
        uses_tls: whether the connection to the broker is encrypted.
        is_local: whether the broker is on this box.
    """
    if not uses_tls:
        if is_local:
            return ok("certificate", "none: the broker is on this box and not encrypted")
        return warning(
            "certificate",
            "the connection to the broker is not encrypted: passwords and commands can be read and changed on the way",
            "set mqtt.ca_file and port 8883; deploy/mosquitto/README.md shows how",
        )
    if validity is not None and problem is not None and validity[0] <= now < validity[1]:
        return warning("certificate", problem, "renew it; the agent reads the files again at its next connection")
    if problem is not None:
        return failed("certificate", problem, "renew it or mend its path; it is read again at the next connection")
    if validity is None:
        return ok("certificate", "none of this device's; the broker is checked, and a password logs in")
    return ok("certificate", f"valid until {validity[1]:%Y-%m-%d}, {(validity[1] - now).days} days")


def plain_at_tls_port(port: int) -> Check:
    """Return the check of a connection that is to be plain at the port where brokers speak TLS."""
    told = f"mqtt.tls = false at port {port}, where brokers expect TLS: nothing is encrypted, or nobody answers"
    return warning("certificate", told, "leave mqtt.tls out, or set mqtt.port = 1883")


def token_file(name: str, key: str, path: Path, error: str | None) -> Check:
    """Judge a file of bearer tokens; ``error`` says why it cannot be used, and what to do."""
    if error is None:
        return ok(name, f"{key} {path} can be used")
    return failed(name, f"{key} {error}: the agent does not start", f"mend the file, or change {key}")


def download_token(host: str, path: Path, problem: tuple[str, str | None] | None) -> Check:
    """Judge the file with the token or password of a host; ``problem`` says why it cannot be used, and what to do."""
    name, setting = f"tokens downloads {host}", f'downloads.token_files."{host}"'
    if problem is None:
        return ok(name, f"{setting} {path} can be used")
    told, hint = problem
    return failed(
        name, f"{setting} {told}: nothing can be fetched from {host}", hint or f"mend it, or change {setting}"
    )


def open_page(host: str) -> Check:
    """Return the check of a page that other machines reach, without tokens."""
    told = f"everyone who reaches {host} can look at the page: what is served, its operations and events"
    return warning("status page", told, 'set status.host = "127.0.0.1", or let a firewall say who reaches it')


def identity(device_id: str, known: Mapping[str, str], differences: Sequence[str]) -> Check:
    """Judge the names that the broker may know the device by, which have to be its id."""
    if differences:
        return warning("identity", "; ".join(differences), NEXT_STEP)
    if not known:
        return ok("identity", f"{device_id}; it logs in without a name")
    return ok("identity", f"{device_id}, as in {' and '.join(known)}")


def server_certificate(validity: tuple[datetime, datetime] | None, error: str, now: datetime) -> Check:
    """Judge the certificate that the inference port shows; ``error`` says why it cannot be used."""
    name, renew = "server certificate", "put a renewed one in its place; new connections get it"
    if validity is None:
        return failed(name, f"serving.cert_file and key_file cannot be used: {error}", "mend them")
    until = f"{validity[1]:%Y-%m-%d}"
    if not validity[0] <= now < validity[1]:
        return failed(name, f"valid from {validity[0]:%Y-%m-%d} until {until}", renew)
    days = (validity[1] - now).days
    if validity[1] - now < min(_SOON, (validity[1] - validity[0]) / 3):
        return warning(name, f"ends {until}, in {days} days", renew)
    return ok(name, f"valid until {until}, {days} days")


def running(status: Mapping[str, Any] | None, url: str | None, *, is_running: bool | None) -> Check:
    """Judge the agent by its own words.

    Args:
        status: the body of ``status.json``, None if nobody answers.
        url: where it was asked for; None when the port is off.
        is_running: whether somebody listens on its control socket; None if this user cannot tell.
    """
    if status is not None:
        health = status["health"]
        reasons = "; ".join(health.get("reasons", ()))
        told = f"runs as {status['device_id']}, {status['agent']}, {health['status']}" + (
            f": {reasons}" if reasons else ""
        )
        if health["status"] == "failing":
            return failed("agent", told, _JOURNAL)
        if health["status"] == "ok":
            return ok("agent", told)
        return warning("agent", told, "nibbled status shows more")
    if is_running:
        return warning("agent", f"runs, and {_where(url)}", "set status.enabled = true, or look with " + _JOURNAL)
    if is_running is None:
        return not_asked("agent", "this user cannot see whether one runs", "sudo -u nibbled nibbled doctor")
    return warning("agent", f"none runs: {_where(url)}", "sudo systemctl start nibbled, or: nibbled run")


def _where(url: str | None) -> str:
    return "its port is off (status.enabled)" if url is None else f"nobody answers at {url}"


def told_broker(connection: Mapping[str, Any], where: str, presence: str, reached: Trial | None) -> list[Check]:
    """Judge the broker by what the running agent says; ``reached`` is a try without MQTT, if it is not connected."""
    if connection.get("connected"):
        if connection.get("echo"):
            return [
                ok("broker", f"the running agent is connected to {where}"),
                ok("broker rights", f"its own {presence} came back to it: it may write and read its topics"),
            ]
        return [
            ok("broker", f"the running agent is connected to {where}"),
            failed("broker rights", f"what it published on {presence} has not come back", _NEXT[Stage.READ]),
        ]
    rights = not_asked("broker rights", "the running agent is not connected")
    if reached is not None and reached.stage is not Stage.DONE:
        return [_unreached(reached, where), rights]
    return [
        failed(
            "broker",
            f"{where} can be reached, and the running agent is not connected",
            "journalctl -u nibbled -o cat | grep -E 'connect_(refused|failed)' says why",
        ),
        rights,
    ]


def tried_broker(trial: Trial, where: str, presence: str, now: datetime) -> list[Check]:
    """Judge the broker by a try of the doctor's own."""
    if trial.stage in (Stage.WRITE, Stage.READ):
        told = "may not write" if trial.stage is Stage.WRITE else "does not get what is published on"
        rights = failed("broker rights", f"this device {told} {presence}: {trial.detail}", _NEXT[trial.stage])
        return [_reached(trial, where, now), rights]
    if trial.stage is not Stage.DONE:
        return [_unreached(trial, where), not_asked("broker rights", "without a connection")]
    came = f"a message on {presence} came back in {trial.round_trip_ms:.0f} ms"
    return [_reached(trial, where, now), ok("broker rights", came)]


def _reached(trial: Trial, where: str, now: datetime) -> Check:
    ends = trial.certificate_ends
    if ends is not None and ends - now < _SOON:
        return warning("broker", f"{where}, whose certificate ends {ends:%Y-%m-%d}", "renew the broker's certificate")
    return ok("broker", f"{where} took the login" + (f"; its certificate ends {ends:%Y-%m-%d}" if ends else ""))


def _unreached(trial: Trial, where: str) -> Check:
    return failed("broker", f"{where}: {trial.stage.value}: {trial.detail}", _NEXT[trial.stage])


def port(setting: str, host: str, number: int, error: str | None, *, is_ours: bool) -> Check:
    """Judge a port that the agent listens on.

    Args:
        setting: the key that names it.
        host: where.
        number: where.
        error: why it cannot be had, None if it is free.
        is_ours: whether the running agent has it.
    """
    name, where = f"port {setting}", f"{host}:{number}"
    if number == 0:
        return ok(name, f"{host}, any that is free")
    if is_ours:
        return ok(name, f"{where}, held by the running agent")
    if error is None:
        return ok(name, f"{where} is free")
    return failed(name, f"{where}: {error}", f"sudo ss -ltnp 'sport = :{number}' names who has it; or change {setting}")


def unit(told: Mapping[str, str] | None, why: str) -> Check:
    """Judge the systemd unit from its properties; ``why`` says why there are none."""
    if told is None:
        return not_asked("unit", why)
    if told.get("LoadState") != "loaded":
        return warning(
            "unit",
            f"nibbled.service is {told.get('LoadState', 'unknown')}",
            "sudo deploy/install.sh (docs/install.md) installs it, then: sudo systemctl enable --now nibbled",
        )
    return _installed(told)


def _installed(told: Mapping[str, str]) -> Check:
    state, restarts = told.get("ActiveState", "unknown"), told.get("NRestarts") or "0"
    detail = f"{state} ({told.get('SubState', '')}), {told.get('UnitFileState', '')}, {restarts} restarts"
    if state == "failed":
        return failed("unit", f"{detail}, result {told.get('Result', 'unknown')}", _JOURNAL)
    if state != "active":
        return warning("unit", detail, "sudo systemctl start nibbled")
    if restarts != "0":
        return warning("unit", detail, _JOURNAL)
    if told.get("UnitFileState") == "disabled":
        return warning("unit", f"{detail}: not started at boot", "sudo systemctl enable nibbled")
    return ok("unit", detail)
