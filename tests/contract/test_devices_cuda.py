"""CUDA asked without torch: the driver's calls, and the child that makes them."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.devices import cuda
from agent.devices.cuda_child import Answer, Cuda, CudaChild

GIB = 2**30
SOURCE = Path(__file__).parents[1] / "fakes" / "libcuda.c"
DEDICATED = Cuda(
    name="NVIDIA RTX A2000",
    capability=(8, 6),
    is_integrated=False,
    total_bytes=12 * GIB,
    free_bytes=9 * GIB,
    memory_clock_khz=6_001_000,
    memory_bus_bits=192,
)
INTEGRATED = replace(DEDICATED, name="Orin", capability=(8, 7), is_integrated=True, free_bytes=None)
PATIENT_S = 60.0


@pytest.fixture(name="driver", scope="module")
def driver_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a simulated ``libcuda.so.1``."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs gcc to compile the simulated CUDA driver")
    folder = tmp_path_factory.mktemp("driver")
    target = str(folder / cuda.LIBRARY)
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", target, str(SOURCE)], check=True)
    return folder


@pytest.fixture(name="ask")
def ask_fixture(driver: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask the simulated driver, misbehaving as told, in a real child."""

    def ask(mode: str = "", deadline_s: float = PATIENT_S) -> Answer:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
        monkeypatch.setenv("NIBBLED_FAKE_CUDA", mode)
        return CudaChild(deadline_s=deadline_s).ask()

    return ask


def test_a_dedicated_gpu_tells_everything(ask: Any) -> None:
    assert ask() == Answer(DEDICATED, "ok")


def test_an_integrated_gpu_is_not_given_a_context_to_tell_its_free_memory(ask: Any) -> None:
    assert ask("integrated") == Answer(INTEGRATED, "ok")


def test_a_driver_without_a_device_says_so_for_good(ask: Any) -> None:
    assert ask("no-device") == Answer(None, "cuInit: CUDA_ERROR_NO_DEVICE (100)", is_absent=True)


def test_a_driver_that_does_not_start_may_start_later(ask: Any) -> None:
    assert ask("init-fails") == Answer(None, "cuInit: CUDA_ERROR_UNKNOWN (999)")


def test_a_driver_without_room_for_a_context_tells_all_but_the_free_memory(ask: Any) -> None:
    answer = ask("no-context")
    assert answer.word == "cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY (2)"
    assert (answer.cuda.total_bytes, answer.cuda.free_bytes) == (12 * GIB, None)


def test_a_driver_that_knows_no_attribute_tells_the_rest(ask: Any) -> None:
    assert ask("no-attributes") == Answer(Cuda("NVIDIA RTX A2000", None, None, 12 * GIB, 9 * GIB), "ok")


def test_a_driver_that_ends_its_process_ends_the_child_alone(ask: Any) -> None:
    assert ask("crash") == Answer(None, "the child ended with status -6 and no answer")


def test_a_driver_that_hangs_is_given_up(ask: Any) -> None:
    assert ask("hang", deadline_s=0.5) == Answer(None, "hung")


def test_a_box_without_the_driver_says_so_for_good() -> None:
    code = "from agent.devices import cuda; cuda.LIBRARY = 'no.so'; cuda.main()"
    answer = CudaChild((sys.executable, "-c", code)).ask()
    assert (answer.cuda, answer.is_absent) == (None, True)
    assert "no.so" in answer.word


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("", "the child ended with status 0 and no answer"),
        ("print('Traceback')", "the child ended with status 0 and no answer"),
        ("raise SystemExit(3)", "the child ended with status 3 and no answer"),
        ("print('[1]')", "the child's answer is not understood"),
        ("""print('{"ok": true, "capability": "new"}')""", "the child's answer is not understood"),
        ("""print('{"ok": true, "total_bytes": "12 GiB"}')""", "the child's answer is not understood"),
        ("""print('{"ok": false, "reason": "so"}')""", "so"),
    ],
)
def test_whatever_a_child_says_is_an_answer(said: str, word: str) -> None:
    assert CudaChild((sys.executable, "-c", said)).ask() == Answer(None, word)


def test_a_child_that_cannot_be_started_is_an_answer() -> None:
    assert CudaChild(("/no/such/python",)).ask() == Answer(None, "/no/such/python: No such file or directory")


def test_a_child_that_not_even_a_kill_ends_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Stuck:
        """A process in the driver, which the kernel cannot end."""

        status: int | None = None
        returncode = -9

        def __init__(self, *_: object, **__: object) -> None:
            self.stdout = io.BytesIO()
            started.append(self)

        def communicate(self, timeout: float) -> tuple[bytes, None]:
            if self.status is None:
                raise subprocess.TimeoutExpired("python", timeout)
            return b"", None

        def kill(self) -> None:
            pass

        def poll(self) -> int | None:
            return self.status

    monkeypatch.setattr(subprocess, "Popen", Stuck)
    child = CudaChild()
    assert [child.ask().word, child.ask().word] == ["hung", "hung"]
    assert len(started) == 1
    Stuck.status = -9
    assert child.ask().word == "the child ended with status -9 and no answer"
    assert [child.stdout.closed for child in started] == [True, False]


def test_the_child_needs_nothing_but_the_standard_library() -> None:
    code = "import agent.devices.cuda, sys; print(sorted({'pynvml', 'pydantic', 'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class OldDriver:
    """A library object for what a compiled one cannot be: functions that are missing, an error without a name."""

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the library's spelling
        return flags

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802 - the library's spelling
        del device
        return ordinal


def test_a_function_that_the_driver_does_not_have_is_a_figure_that_is_not_known() -> None:
    found = cuda.ask(OldDriver())
    assert found["ok"] is True
    assert found["reason"] == "cuDevicePrimaryCtxRetain: not in this driver"
    assert {name for name, value in found.items() if value is not None} == {"ok", "reason"}


def test_an_error_without_a_name_keeps_its_number() -> None:
    driver = SimpleNamespace(cuInit=lambda _: 4711)
    assert cuda.ask(driver) == {"ok": False, "reason": "cuInit: error 4711", "absent": False}


def test_a_context_is_given_back_when_the_memory_is_not_told() -> None:
    class Forgetful(OldDriver):
        released = 0

        def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
            del context, device
            return 0

        def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
            del context
            return 0

        def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:  # noqa: N802
            del device
            self.released += 1
            return 201

    driver = Forgetful()
    assert cuda.ask(driver)["reason"] == "cuMemGetInfo_v2: not in this driver"
    assert driver.released == 1
