"""The builder as its caller sees it: a process with a job on stdin and events on stdout."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import agent
from agent import architectures
from agent.quantization.process import YIELDING

pytestmark = pytest.mark.e2e
COMMAND = [sys.executable, "-m", "agent.quantization"]
ROOT = Path(agent.__file__).parents[1]


def run(job: Any) -> tuple[int, list[dict[str, Any]], str]:
    text = job if isinstance(job, str) else json.dumps(job)
    done = subprocess.run(COMMAND, input=text, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "blob"
    torch.save({"epoch": 1, "model_state_dict": architectures.build("cnn", 100).state_dict(), "metrics": {}}, path)
    return path


def test_a_build_reports_progress_then_one_result_and_exits_with_0(checkpoint: Path, tmp_path: Path) -> None:
    job = {
        "job": "build", "checkpoint": str(checkpoint), "model_type": "auto", "method": "nf4", "blocksize": 64,
        "output_dir": str(tmp_path / "out"), "sidecar": None, "source_sha256": "ab" * 32,
        "gate": {"dataset": None, "rows": 4, "seed": 0}, "threads": 1,
    }  # fmt: skip
    status, events, _ = run(job)
    assert status == 0
    assert [event["event"] for event in events] == ["progress"] * (len(events) - 1) + ["result"]
    assert events[-2]["done"] == events[-2]["total"] == len(events) - 1
    result = events[-1]
    assert Path(result["artifact"]).stat().st_size == result["artifact_bytes"]
    assert json.loads(Path(result["sidecar"]).read_text())["source_sha256"] == "ab" * 32
    assert result["gate"]["rows"] == 4
    assert result["peak_rss_bytes"] > 100 << 20


def test_a_refusal_is_one_error_event_with_status_1_and_its_log_is_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"no checkpoint at all")
    status, events, log = run(
        {"job": "build", "checkpoint": str(tmp_path / "blob"), "method": "nf4", "output_dir": str(tmp_path)}
    )
    assert status == 1
    assert [(event["event"], event["code"], event["retryable"]) for event in events] == [
        ("error", "bad_checkpoint", False)
    ]
    assert "20 bytes" in events[0]["detail"]
    assert events[0]["hint"]
    assert "Traceback" in log


@pytest.mark.parametrize("job", ["", "{", "[]", {"job": "dance"}, {"job": "build", "method": "nf4"}])
def test_a_job_that_is_none_is_an_internal_error_and_no_crash(job: Any) -> None:
    status, events, _ = run(job)
    assert (status, len(events), events[0]["code"]) == (1, 1, "internal")


def test_inspect_and_probe_answer_with_one_result(checkpoint: Path) -> None:
    status, events, _ = run({"job": "inspect", "checkpoint": str(checkpoint)})
    assert (status, events[0]["event"], events[0]["num_classes"]) == (0, "result", 100)
    status, events, _ = run({"job": "probe", "methods": ["nf4", "int8"]})
    assert (status, set(events[0]["methods"])) == (0, {"nf4", "int8"})


def test_what_libraries_print_never_reaches_the_events() -> None:
    script = """
        import os, subprocess
        from agent.quantization import process
        events = process.claim_stdout()
        print("python prints")
        os.write(1, b"C prints")
        subprocess.run(["echo", "a child prints"])
        process.send(events, {"event": "result"})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == '{"event": "result"}\n'
    assert all(who in done.stderr for who in ("python prints", "C prints", "a child prints"))


def test_the_builder_dies_with_its_parent_and_first_under_memory_pressure() -> None:
    script = f"""
        import subprocess
        child = subprocess.Popen({COMMAND!r}, stdout=subprocess.PIPE)  # its stdin stays open when we are gone
        while True:
            score = open(f"/proc/{{child.pid}}/oom_score_adj").read().strip()
            if score == "1000":
                break
        print(child.pid, score, flush=True)
        child.wait()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    with parent:
        assert parent.stdout is not None
        pid, score = parent.stdout.readline().split()
        assert score == "1000"
        handle = os.pidfd_open(int(pid))
        parent.send_signal(signal.SIGKILL)
        ended, _, _ = select.select([handle], [], [], 20)
        os.close(handle)
    assert ended, "the builder outlived its parent by 20 s"


def test_a_question_to_artifacts_lets_everything_else_go_first(tmp_path: Path) -> None:
    artifact, sidecar = tmp_path / "cnn.safetensors", tmp_path / "cnn.json"
    os.mkfifo(sidecar)
    job = {"job": "answer", "artifacts": [{"method": "nf4", "artifact": str(artifact)}], "request": "{}"}
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdin is not None
        child.stdin.write(json.dumps(job).encode())
        child.stdin.close()
        with sidecar.open("wb"):  # opens once the child is about to read it
            assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(19, before + YIELDING)
        assert child.stdout is not None
        told = json.loads(child.stdout.read())
    assert [answer["method"] for answer in told["answers"]] == ["nf4"]
    assert "is not JSON" in told["answers"][0]["error"]


def test_importing_the_package_does_not_import_torch_but_load_is_there() -> None:
    script = "import sys, agent; assert 'torch' not in sys.modules; agent.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        agent.lod  # noqa: B018 - the lookup is the test
