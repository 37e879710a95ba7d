"""Memory that runs out for real: a control group with a limit, a process in it that takes the rest, the OOM killer."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.numpy import save

from agent import architectures
from tests.e2e.harness.inference import load
from tests.e2e.harness.operator import MODEL
from tests.faults.box import Box, eventually
from tests.faults.groups import MIB, VARIABLE, Ballast, Group, group_or_skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.harness.files import HostedFile
    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

RESERVE = 700 * MIB
"""What a builder needs on a CPU, twice."""
LIMIT = 3000 * MIB
BACK_S = 60.0
MATRIX = [
    {"scenario": "roomy", "methods": ["fp16"], "rationale": "half precision where it fits"},
]


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    yield from group_or_skip("faults")


@pytest.fixture
def ballast(group: Group) -> Iterator[Ballast]:
    ballast = Ballast(group)
    yield ballast
    ballast.close()


@pytest.fixture(scope="module")
def box(world: World, group: Group, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    told = {VARIABLE: str(group.folder), "NIBBLED_MEMORY__RESERVE": str(RESERVE), "NIBBLED_WATCH__MODE": "off"}
    box = Box("memory", tmp_path_factory.mktemp("memory"), world, module="tests.faults.grouped_agent", **told)
    box.start()
    box.serve(method="auto")
    yield box
    box.agent.close()


@pytest.fixture(autouse=True)
def unlimited(group: Group) -> Iterator[None]:
    """Lift the limit after every test."""
    yield
    group.limit(None)


@pytest.fixture(scope="module")
def large(world: World) -> HostedFile:
    """A model of 14 million weights that was never trained: 28 MB as fp16, 8 MB in 4 bits, over four large patches."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"patch_size": 32, "embedding_dim": 768, "num_transformer_layers": 2, "mlp_dim": 3072}
    state = architectures.build("vit", 208, use_tokens_to_tokens=False, **sizes).state_dict()
    content = io.BytesIO()
    torch.save(
        {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, content
    )
    return world.files.host("large.pt", content.getvalue())


@pytest.fixture(scope="module")
def few(world: World) -> HostedFile:
    """Rows enough for a gate that demands nothing: the large model takes a tenth of a second for each."""
    return world.files.host("few.safetensors", save({"inputs": world.images.inputs[:8]}))


def needs(report: dict[str, Any], method: str) -> int:
    """Return what the plan of a report weighed a method at."""
    return int(next(row["estimated_bytes"] for row in report["decision"]["candidates"] if row["method"] == method))


def test_where_only_a_smaller_method_fits_the_decision_takes_it_and_says_why(
    box: Box, group: Group, ballast: Ballast, large: HostedFile, few: HostedFile
) -> None:
    gate = {"min_agreement": 0.0, "max_slowdown": 1000, "soak_s": 0.1, "dataset": few.reference()}
    box.operator.result(box.operator.send("set_config", config={"planning": {"matrix": {"schema": 1, "row": MATRIX}}}))
    try:
        assert box.serve(file=large, method="auto", gate=gate)["decision"]["planned"] == "fp16"
        roomy = box.operator.result(box.operator.send("replan", model=MODEL, gate=gate))
        group.limit(LIMIT)
        between = (needs(roomy, "fp16") + needs(roomy, "nf4")) // 2
        ballast.leave(LIMIT, RESERVE + between - roomy["decision"]["budget"]["reclaimable_bytes"])
        report = box.operator.result(box.operator.send("replan", model=MODEL, gate=gate))
    finally:
        box.operator.result(box.operator.send("set_config", config={"planning": {"matrix": None}}))
    decision = report["decision"]
    assert decision["planned"] == "nf4", decision["reason"]
    assert decision["budget"]["source"] == "cgroup"
    assert "asks for fp16, which needs" in decision["reason"]
    assert report["state"] == "succeeded", report["error"]
    group.limit(None)
    box.serve()


@pytest.mark.minutes
def test_where_less_is_free_the_matrix_takes_what_saves_memory(box: Box, group: Group, ballast: Ballast) -> None:
    group.limit(LIMIT)
    first = box.operator.result(box.deploy(method="auto"))
    assert first["decision"]["planned"] == "nf4"
    ballast.leave(LIMIT, RESERVE + 4 * needs(first, "nf4"))
    report = box.operator.result(box.deploy(method="auto"))
    assert report["state"] == "succeeded", report["error"]
    decision = report["decision"]
    assert (decision["scenario"], decision["planned"]) == ("edge-limited-memory", "nf4-dq")
    assert 0.1 <= decision["share"] < 0.5
    assert decision["budget"]["source"] == "cgroup"


def test_where_nothing_fits_the_operation_is_refused_with_the_numbers(box: Box, group: Group, ballast: Ballast) -> None:
    version = box.answers()
    group.limit(LIMIT)
    ballast.leave(LIMIT, RESERVE - 50 * MIB)
    report = box.operator.result(box.deploy(method="auto"))
    assert (report["state"], report["error"]["code"]) == ("failed", "insufficient_memory")
    assert "according to cgroup" in report["error"]["detail"]
    assert "reserve 700 MiB" in report["error"]["detail"]
    assert box.answers() == version
    box.keeps_nothing_half_made()


def test_a_builder_that_the_kernel_kills_for_memory_ends_its_operation_alone(box: Box, group: Group) -> None:
    version, served, supervisor, server = box.answers(), box.operator.served(), box.agent.pid, box.server()
    operation = box.switch("int8" if served["method"] != "int8" else "fp4")
    box.operator.reaches(operation, "building")
    box.builder().close()
    group.limit(group.all_bytes + 8 * MIB)
    report = box.operator.result(operation)
    group.limit(None)
    assert (report["state"], report["error"]["code"]) == ("failed", "insufficient_memory")
    detail = report["error"]["detail"]
    assert "killed by SIGKILL: the kernel ran out of memory" in detail
    assert "MiB at its peak" in detail
    assert re.search(r"iB of .*iB are available according to /sys/fs/cgroup/", detail), detail
    assert report["error"]["retryable"]
    assert (box.agent.is_running, box.agent.pid) == (True, supervisor)
    assert box.server().pid == server.pid, "the server outlived it"
    server.close()
    assert box.operator.served() == served
    assert box.answers() == version
    box.keeps_nothing_half_made()


def test_a_server_that_the_kernel_kills_for_memory_comes_back_with_what_it_served(
    box: Box, group: Group, ballast: Ballast, world: World
) -> None:
    version, mark, server = box.answers(), box.operator.mark(), box.server()
    Path(f"/proc/{server.pid}/oom_score_adj").write_text("1000", encoding="ascii")
    with load(box.agent.url, MODEL, world.images.inputs[:1]) as statuses:
        group.limit(group.all_bytes + 64 * MIB)
        while not server.has_ended(0.1):  # file pages go first
            ballast.hold(ballast.held_bytes + 16 * MIB)
            assert ballast.held_bytes < LIMIT
        group.limit(None)
        event = box.operator.event(lambda body: body["event"] == "server_lost", since=mark)
        eventually(lambda: box.answers() == version, "the model answers again", BACK_S)
    server.close()
    assert "killed by SIGKILL: the kernel ran out of memory" in event["detail"]
    assert statuses["200"] > 0
    assert box.status()["mode"] == "current"
