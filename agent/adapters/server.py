"""The server: the child that stays, and the control socket over which it is spoken to; see ``processes`` for the rules.

The supervisor uses the Open Inference Protocol's repository extension, with releases; see ``agent.serving.control``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import structlog

from agent.adapters.control import Calls, ControlError, call, exchange
from agent.adapters.deaths import Coroner
from agent.adapters.processes import child_environment, end, ending
from agent.adapters.pulse import Pulse
from agent.contract.errors import ErrorCode
from agent.deployment.ports import RestoreError, StepError
from agent.failpoints import around
from agent.signals import END

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent.deployment.models import Release, Served

log = structlog.get_logger("server")
POLL_S = 0.2
ASK_S = 1.0
INFER_S = 30.0
MAX_ANSWER_BYTES = 4 * 2**20
"""Of an inference that the page asks for."""

_CODES = {"insufficient_memory": ErrorCode.INSUFFICIENT_MEMORY, "bad_artifact": ErrorCode.LOAD_FAILED}
_VERB_CODES = {
    "load": ErrorCode.LOAD_FAILED,
    "unload": ErrorCode.LOAD_FAILED,
    "canary": ErrorCode.CANARY_FAILED,
    "activate": ErrorCode.ACTIVATION_FAILED,
}


class ServerProcess:
    """Keeps ``python -m agent.serving`` and speaks to it over its control socket.

    Args:
        http: listening TCP socket; it stays open here, so that clients wait while the server is replaced, until
            ``stop`` closes it.
        control: listening Unix socket.
        control_path: where ``control`` is bound.
        listen: opens the control socket anew where its name was deleted.
        grpc: a listening TCP socket like ``http``, None without gRPC.
        options: further arguments of the server.
        on_exit: called from a watching thread when the server ends without being asked to.
        start_timeout_s: how long it may take to answer.
        silence_s: how long it may then leave questions unanswered before it is replaced.
        terms: asked at every load of a release of a model: what it may take beside its weights, see
            ``agent.serving.terms``.
    """

    def __init__(
        self,
        http: socket.socket,
        control: socket.socket,
        control_path: Path,
        *,
        listen: Callable[[Path], socket.socket] | None = None,
        grpc: socket.socket | None = None,
        options: tuple[str, ...] = (),
        on_exit: Callable[[str], None] = lambda _detail: None,
        start_timeout_s: float = 120.0,
        silence_s: float = 30.0,
        terms: Callable[[str, Release], Mapping[str, Any]] = lambda _model, _release: {},
    ) -> None:
        self._sockets = {"--http-fd": http, "--control-fd": control, **({"--grpc-fd": grpc} if grpc else {})}
        self._listen = listen
        self._renewed: socket.socket | None = None
        self._clients = [each for each in (http, grpc) if each is not None]
        self._path = control_path
        self._options = options
        self._on_exit = on_exit
        self._start_timeout_s = start_timeout_s
        self._silence_s = silence_s
        self._pulse: Pulse | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopping = False
        self._starting = threading.Lock()
        self._calls = Calls(lambda: self.pid is not None)
        self._terms = terms
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Process id of the running server, or None."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    @property
    def is_well(self) -> bool:
        """Whether nothing is the matter that only an end of the whole service can mend.

        That is a server that runs, gives no answer, and outlives its being killed for it, as one that a driver holds.
        A server that is absent, starting or silent for a while is taken care of here.
        """
        pulse = self._pulse
        return pulse is None or self.pid is None or not pulse.is_overdue

    def restore(self, served: Mapping[str, Served]) -> None:
        """Make the server hold and answer with exactly what ``served`` says.

        One model that cannot be loaded does not keep the others from being served.

        Raises:
            RestoreError: some could not be restored.
            StepError: the server cannot be started, or does not answer.
        """
        self._ensure_running()
        try:
            self._restore_models(served)
        finally:
            self._open()

    def _restore_models(self, served: Mapping[str, Served]) -> None:
        held = self._held()
        failures: dict[str, StepError] = {}
        for name in sorted({*served, *held}):
            try:
                self._restore_model(name, served[name].current if name in served else None, held.get(name, {}))
            except StepError as error:  # noqa: PERF203 - one try per model is the point
                if not self._is_stopping:
                    log.error("model_not_restored", model=name, detail=error.detail)  # noqa: TRY400 - a sentence is enough
                failures[name] = error
        if failures:
            raise RestoreError(failures)

    def _restore_model(self, name: str, wanted: Release | None, held: Mapping[str, bool]) -> None:
        if wanted is None:
            self._repository(name, "unload", {})
            return
        others = [release for release in held if release != wanted.id]
        if wanted.id not in held:
            # The others shall go anyway, and may have been loaded because there is no room for both.
            self.load(name, wanted, unload_first=True)
            others = []
        if not held.get(wanted.id, False):
            self._repository(name, "activate", {"release": wanted.id})
        for release in others:
            self._repository(name, "unload", {"release": release})

    def load(self, model: str, release: Release, *, unload_first: bool = False) -> dict[str, Any]:
        """Load a release beside what is active, or in its place."""
        self._ensure_running()
        parameters = {
            "artifact": release.artifact,
            "version": release.version,
            "release": release.id,
            "activate": False,
            "unload_first": unload_first,
            "terms": dict(self._terms(model, release)),
        }
        answer: dict[str, Any] = self._repository(model, "load", parameters)
        return answer

    def canary(self, model: str, release: Release) -> dict[str, Any]:
        """Run the gate's inputs through a loaded release."""
        answer: dict[str, Any] = self._repository(model, "canary", {"release": release.id, "gate": release.gate_file})
        return answer

    def activate(self, model: str, release: Release) -> dict[str, Any]:
        """Let a loaded release answer from now on."""
        answer: dict[str, Any] = self._repository(model, "activate", {"release": release.id})
        self._open()
        return answer

    def undeploy(self, model: str) -> None:
        """Stop answering for ``model`` and free its memory; after crashes it may not be loaded, which is as good."""
        self._ensure_running()
        if model in self._held():
            self._repository(model, "unload", {})

    def infer(self, model: str, body: bytes) -> tuple[int, bytes]:
        """Return the status and the body of what the server answers to an inference request, as JSON.

        Raises:
            StepError: it does not answer, or with more than ``MAX_ANSWER_BYTES``.
        """
        route = f"/v2/models/{model}/infer"
        try:
            return exchange(
                self._path, "POST", route, body, timeout_s=INFER_S, calls=self._calls, most_bytes=MAX_ANSWER_BYTES
            )
        except ControlError as error:
            raise StepError(ErrorCode.INTERNAL, f"the server gave no answer: {error}", retryable=True) from None

    def status(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """Return counters and memory."""
        try:
            answer: dict[str, Any] = call(
                self._path, "GET", "/v2/control/status", timeout_s=timeout_s, calls=self._calls
            )
        except ControlError as error:
            raise StepError(ErrorCode.TRIAL_FAILED, f"the server does not answer: {error}", retryable=True) from None
        return {**answer, "pid": self.pid}

    def stop(self, drain_s: float = 10.0) -> None:
        """Let the server finish its requests, then end it; new clients are refused from then on.

        The sockets for clients are closed here first: the server answers what waits and closes the last copies.
        """
        with self._starting:
            self._is_stopping = True
            for listener in (*self._clients, self._renewed):
                if listener is not None:
                    listener.close()
        if self._pulse is not None:
            self._pulse.stop()  # one that drains takes no more questions
        child = self._child
        if child is None or child.poll() is not None:
            return
        child.send_signal(END)
        try:
            child.wait(drain_s + 5.0)
        except subprocess.TimeoutExpired:
            log.error("server_killed", pid=child.pid, waited_s=drain_s + 5.0)  # noqa: TRY400 - no traceback to show
            child.kill()
            child.wait()

    def _ensure_running(self) -> None:
        with self._starting:  # sockets that are closed cannot be inherited
            if self.pid is not None or self._is_stopping:
                return
            coroner, self._pulse = Coroner(), None
            child = self._child = self._spawn()
            self.starts += 1
        log.info("server_started", pid=child.pid, start=self.starts)
        self._await(child)
        pulse = self._pulse = Pulse(lambda within_s: self._ask(within_s) is None, child.kill, self._silence_s)
        pulse.start()
        arguments = (child, pulse, coroner)
        threading.Thread(target=self._wait, args=arguments, name=f"server-{child.pid}", daemon=True).start()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._mend_control()
        fds = {option: listener.fileno() for option, listener in self._sockets.items()}
        numbered = [word for option, fd in fds.items() for word in (option, str(fd))]
        own = ("--closed", "--parent", str(os.getpid()))
        child = None
        try:
            with around("server.start"):
                child = subprocess.Popen(
                    [sys.executable, "-m", "agent.serving", *numbered, *own, *self._options],
                    pass_fds=tuple(fds.values()),
                    stdin=subprocess.DEVNULL,
                    env=child_environment(),
                    start_new_session=True,
                )
        except OSError as error:
            end(child)
            raise StepError(ErrorCode.LOAD_FAILED, f"the server cannot be started: {error}", retryable=True) from None
        return child

    def _mend_control(self) -> None:
        """Bind the control socket anew where its name was deleted: no server could be spoken to ever again."""
        if self._listen is None or self._path.exists():
            return
        try:
            renewed = self._listen(self._path)
        except OSError as error:
            raise StepError(ErrorCode.LOAD_FAILED, f"control socket {self._path}: {error}", retryable=True) from None
        self._sockets["--control-fd"].close()
        self._sockets["--control-fd"] = self._renewed = renewed
        log.warning("control_socket_renewed", path=str(self._path))

    def _await(self, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        # The socket listens before the server does, so a connection proves nothing: short questions, and a look at
        # the child between them, or one that died at once would be waited for until the deadline.
        while (refusal := self._ask(min(ASK_S, max(0.1, deadline - time.monotonic())))) is not None:
            status = child.poll()
            if status is None and time.monotonic() < deadline:
                time.sleep(POLL_S)
                continue
            if status is None:
                child.kill()
                child.wait()
                detail = f"gave no answer in {self._start_timeout_s:g} s: {refusal}"
            else:
                detail = f"{ending(status)} while starting"
            self._on_exit(detail)
            raise StepError(ErrorCode.LOAD_FAILED, f"the server {detail}", retryable=True)

    def _ask(self, timeout_s: float) -> ControlError | None:
        """Return None when the server answers, else what is in the way."""
        try:
            call(self._path, "GET", "/v2/health/live", timeout_s=timeout_s)
        except ControlError as error:
            return error
        return None

    def _wait(self, child: subprocess.Popen[bytes], pulse: Pulse, coroner: Coroner) -> None:
        status = child.wait()
        pulse.stop()
        if child is self._child:
            self._calls.hang_up()
        if not self._is_stopping and child is self._child:
            self._on_exit(pulse.verdict or coroner.words(status))

    def _open(self) -> None:
        """Let the server answer on its TCP socket, where connections have waited until its models were back."""
        try:
            call(self._path, "POST", "/v2/control/open", {}, calls=self._calls)
        except ControlError as error:
            if not self._is_stopping:
                log.error("open_failed", error=str(error))  # noqa: TRY400 - its end, if it ended, is told elsewhere

    def _held(self) -> dict[str, dict[str, bool]]:
        """Return, for every model, the releases in the server and whether each is the active one.

        A model of which nothing is loaded is known to the server too: its load has failed.
        """
        try:
            rows = call(self._path, "POST", "/v2/repository/index", {}, calls=self._calls)
        except ControlError as error:
            raise StepError(ErrorCode.LOAD_FAILED, f"the server does not answer: {error}", retryable=True) from None
        held: dict[str, dict[str, bool]] = {}
        for row in rows:
            releases, parameters = held.setdefault(row["name"], {}), row["parameters"]
            if row["state"] == "READY":
                releases[parameters["release"]] = parameters["active"]
        return held

    def _repository(self, model: str, verb: str, parameters: dict[str, Any]) -> Any:
        route = f"/v2/repository/models/{model}/{verb}"
        try:
            with around(f"server.{verb}"):
                return call(self._path, "POST", route, {"parameters": parameters}, timeout_s=300.0, calls=self._calls)
        except ControlError as error:
            code = _CODES.get(error.code or "", _VERB_CODES[verb])
            # An unload that fails says nothing of any artifact: nothing has to be built again for it.
            is_passing = error.status is None or verb == "unload"
            raise StepError(code, f"{verb} of {model}: {error}", retryable=is_passing) from None
        except OSError as error:
            raise StepError(_VERB_CODES[verb], f"{verb} of {model}: {error}", retryable=True) from None
