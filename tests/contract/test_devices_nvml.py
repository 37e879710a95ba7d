"""NVML as a witness that knows, does not know, is lost, or never answers."""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pynvml
import pytest

from agent.devices import bounded as bounded_module
from agent.devices.bounded import Bounded
from agent.devices.nvml import Gpu, Nvml
from tests.fakes.nvml import FIGURES, GIB, NOT_SUPPORTED, UNKNOWN, FakeNvml, absent, memory

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENT_S, HASTY_S = 30.0, 0.02
EVERYTHING = Gpu("NVIDIA RTX A2000", (8, 6), 8 * GIB, 3 * GIB, 37, 51, 12.35, 6001, 192, "560.35", 5 * GIB)
MEMORY = "nvmlDeviceGetMemoryInfo"


def _has_nvml() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def nvml(library: FakeNvml | None, deadline_s: float = PATIENT_S) -> Nvml:
    return Nvml(library, deadline_s=deadline_s)


def release(library: FakeNvml, name: str, witness: Nvml) -> None:
    """Let a blocked function return, and wait until the witness has its answer."""
    library.blocked.pop(name).set()
    call = witness._bounded._call
    assert call is not None
    assert call.done.wait(PATIENT_S)


def test_the_simulated_library_has_only_what_the_real_one_has() -> None:
    names = {*FIGURES, "nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByIndex", "NVML_CLOCK_MEM"}
    assert all(hasattr(pynvml, name) for name in names)


def test_a_dedicated_gpu_tells_everything() -> None:
    assert nvml(FakeNvml()).read() == (EVERYTHING, "ok")


@pytest.mark.skipif(_has_nvml(), reason="NVML is installed here")
def test_where_the_library_is_absent_its_bindings_are_not_imported_and_the_word_is_theirs() -> None:
    with pytest.raises(pynvml.NVMLError) as caught:
        pynvml.nvmlInit()
    assert nvml(None).read() == (None, str(caught.value))
    assert nvml(None)._library is None


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "NVML Shared Library Not Found"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"),
        (pynvml.NVML_ERROR_NOT_SUPPORTED, "Not Supported"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "RM has detected an NVML/RM version mismatch."),
    ],
)
def test_a_library_that_does_not_start_tells_of_no_gpu_and_says_why(code: int, word: str) -> None:
    library = FakeNvml(errors={"nvmlInit": code})
    assert nvml(library).read() == (None, word)
    assert library.called == ["nvmlInit"]


def test_a_driver_that_comes_later_is_found() -> None:
    library = absent()
    witness = nvml(library)
    assert witness.read()[0] is None
    library.errors.clear()
    assert witness.read() == (EVERYTHING, "ok")


def test_a_library_without_a_device_is_closed_again() -> None:
    library = FakeNvml(errors={"nvmlDeviceGetHandleByIndex": pynvml.NVML_ERROR_NOT_FOUND})
    assert nvml(library).read() == (None, "Not Found")
    assert library.called[-1] == "nvmlShutdown"


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN, pynvml.NVML_ERROR_NO_PERMISSION])
def test_a_figure_that_is_refused_is_unknown_and_the_others_are_not(code: int) -> None:
    gpu, word = nvml(FakeNvml(errors={MEMORY: code, "nvmlDeviceGetPowerUsage": code})).read()
    assert (gpu and gpu.total_bytes, gpu and gpu.free_bytes, gpu and gpu.power_w) == (None, None, None)
    assert (gpu and gpu.utilisation_percent, word) == (37, "ok")


@pytest.mark.parametrize("figure", list(FIGURES))
def test_every_figure_may_be_unknown(figure: str) -> None:
    gpu, word = nvml(FakeNvml(errors={figure: UNKNOWN})).read()
    assert gpu is not None
    assert gpu != EVERYTHING
    assert word == "ok"


def test_a_driver_that_knows_nothing_still_tells_of_a_gpu() -> None:
    assert nvml(FakeNvml(only=())).read() == (Gpu(), "ok")


def test_a_total_of_zero_bytes_is_not_known() -> None:
    gpu, _ = nvml(FakeNvml({MEMORY: memory(0, 0)})).read()
    assert (gpu and gpu.total_bytes, gpu and gpu.free_bytes, gpu and gpu.used_bytes) == (None, None, None)


def test_a_wrapper_that_does_not_fit_its_library_knows_nothing() -> None:
    gpu, word = nvml(FakeNvml({"nvmlDeviceGetMaxClockInfo": 0, "nvmlDeviceGetMemoryBusWidth": 0})).read()
    assert (gpu and gpu.memory_clock_mhz, gpu and gpu.memory_bus_bits, word) == (None, None, "ok")

    class Torn(FakeNvml):
        def __getattr__(self, name: str) -> Any:
            if name == "nvmlDeviceGetPowerUsage":
                raise AttributeError(name)
            return super().__getattr__(name)

    gpu, word = nvml(Torn()).read()
    assert (gpu and gpu.power_w, word) == (None, "ok")


def test_the_library_stays_initialised_between_looks() -> None:
    library = FakeNvml()
    witness = nvml(library)
    assert witness.read() == witness.read()
    assert (library.count("nvmlInit"), library.count("nvmlShutdown")) == (1, 0)


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (pynvml.NVML_ERROR_GPU_IS_LOST, "GPU is lost"),
        (pynvml.NVML_ERROR_RESET_REQUIRED, "GPU requires restart"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"),
        (pynvml.NVML_ERROR_UNINITIALIZED, "Uninitialized"),
    ],
)
def test_a_gpu_that_is_lost_is_none_until_a_new_session_finds_it_again(code: int, word: str) -> None:
    library = FakeNvml()
    witness = nvml(library)
    witness.read()
    library.errors["nvmlDeviceGetUtilizationRates"] = code
    assert witness.read() == (None, word)
    library.errors.clear()
    assert witness.read() == (EVERYTHING, "ok")
    assert library.count("nvmlInit") == 2


def test_a_driver_that_is_torn_down_does_not_raise_while_it_is_closed() -> None:
    lost = pynvml.NVML_ERROR_GPU_IS_LOST
    library = FakeNvml(errors={MEMORY: lost, "nvmlShutdown": lost})
    assert nvml(library).read() == (None, "GPU is lost")


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByIndex", MEMORY])
def test_a_call_that_hangs_is_given_up_and_not_asked_again_before_it_returns(function: str) -> None:
    library = FakeNvml()
    library.blocked[function] = threading.Event()
    witness = nvml(library, HASTY_S)
    assert witness.read() == (None, "hung")
    before = list(library.called)
    witness._bounded._deadline_s = 4 * PATIENT_S  # were it waited for again, its answer would come
    assert witness.read() == (None, "hung")
    assert library.called == before
    release(library, function, witness)
    assert witness.read() == (EVERYTHING, "ok")


def test_callers_that_come_together_share_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    waiting: list[int] = []

    class Counted(threading.Event):
        """Lets the question end when all three wait for it."""

        def wait(self, timeout: float | None = None) -> bool:
            waiting.append(1)
            if len(waiting) == 3:
                may_end.set()
            return super().wait(timeout)

    asked: list[int] = []

    def question() -> int:
        asked.append(1)
        may_end.wait(PATIENT_S)
        return 7

    bounded = Bounded(question, name="test", deadline_s=PATIENT_S)
    answers: list[tuple[int | None, str]] = []
    callers = [threading.Thread(target=lambda: answers.append(bounded.ask())) for _ in range(3)]
    monkeypatch.setattr(bounded_module, "Event", Counted)
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENT_S)
    assert answers == [(7, "ok")] * 3
    assert asked == [1]


def test_what_a_question_raises_is_the_reason() -> None:
    def question() -> int:
        raise OSError(5, "Input/output error")

    assert Bounded(question, name="test").ask() == (None, "OSError: [Errno 5] Input/output error")


def test_a_system_without_threads_to_give_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bounded = Bounded(lambda: 7, name="test")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert bounded.ask() == (None, "can't start new thread")
    assert bounded.ask() == (7, "ok")


def in_a_fork(question: Callable[[], str]) -> str:
    """Return what ``question`` answers in a forked child."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tested
        pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, question().encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


def test_a_forked_child_begins_anew_and_leaves_the_parent_s_session_alone() -> None:
    library = FakeNvml()
    witness = nvml(library)
    witness.read()

    def ask() -> str:
        return f"{witness.read() == (EVERYTHING, 'ok')} {library.called.count('nvmlShutdown')}"

    assert in_a_fork(ask) == "True 0"
    assert witness.read() == (EVERYTHING, "ok")
    assert library.count("nvmlInit") == 1


def test_a_forked_child_is_not_hung_because_its_parent_is() -> None:
    library = FakeNvml()
    library.blocked[MEMORY] = threading.Event()
    witness = nvml(library, HASTY_S)
    assert witness.read() == (None, "hung")

    def ask() -> str:
        library.blocked.clear()
        witness._bounded._deadline_s = PATIENT_S
        return witness.read()[1]

    assert in_a_fork(ask) == "ok"
    release(library, MEMORY, witness)


def test_this_very_box_has_a_gpu_or_says_why_not() -> None:
    gpu, word = Nvml().read()
    assert (gpu is None) == (word != "ok")
