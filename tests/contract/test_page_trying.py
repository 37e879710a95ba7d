"""Asking a model from the page: what is relayed, and that a comparison harms nothing and waits for nobody."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from agent.contract.errors import ErrorCode
from agent.deployment.models import Release, Served
from agent.deployment.ports import InterruptedStepError, StepError
from agent.deployment.runner import Runner
from agent.health.access import PageAccess
from agent.health.handler import MAX_INPUT_BYTES, Offer
from agent.health.refusals import RefusedError
from agent.health.trying import PLACES, Trying, World
from agent.tokens import TokenFile
from tests.fakes.device import MIB, FakeDevice
from tests.fakes.page import WAIT_S, ask, site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from http import HTTPStatus
    from pathlib import Path

    from agent.deployment.ports import Watch

JsonObject = dict[str, Any]
BODY = b'{"inputs": []}'
BASE = 300 * MIB
SPEC = {"name": "input", "datatype": "FP32", "shape": [-1, 1, 64, 64], "minimum": None, "maximum": None}
SIDECAR = {"model_type": "cnn", "inputs": [SPEC], "outputs": [], "labels": ["one"], "gate": {"answer": "classes"}}


class FakeServer:
    """A server that answers, or does not."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.error: StepError | None = None

    def infer(self, model: str, body: bytes) -> tuple[int, bytes]:
        self.asked.append((model, body))
        if self.error is not None:
            raise self.error
        return 400, b'{"error": "no such input"}'

    def status(self) -> JsonObject:
        return {"memory": {"base_rss_bytes": BASE, "rss_bytes": 2 * BASE}}


class FakeBuilder:
    """A builder that answers, or works until it is stopped."""

    def __init__(self) -> None:
        self.jobs: list[JsonObject] = []
        self.threads: list[str] = []
        self.holds = False
        self.begun = threading.Event()
        self.error: Exception | None = None

    def build(self, job: JsonObject, watch: Watch) -> JsonObject:
        self.jobs.append(job)
        self.threads.append(threading.current_thread().name)
        self.begun.set()
        while self.holds:
            watch.wait(0.01)
        if self.error is not None:
            raise self.error
        return {"event": "result", "answers": [{"method": each["method"], "outputs": []} for each in job["artifacts"]]}


class Bench:
    """A ``Trying`` on fakes and a real thread of steps.

    Attributes:
        is_busy: what the engine says.
    """

    def __init__(self, folder: Path) -> None:
        self.server, self.builder, self.device, self.runner = FakeServer(), FakeBuilder(), FakeDevice(), Runner()
        self.is_busy = False
        self.results: dict[str, JsonObject] = {}
        for name, size in (("nf4", 1), ("nf4-dq", 1), ("int8", 2)):
            artifact = folder / name / "cnn.safetensors"
            artifact.parent.mkdir()
            artifact.with_suffix(".json").write_text(json.dumps(SIDECAR))
            held = size * MIB
            self.results[name] = {"artifact": str(artifact), "resident_bytes": held, "working_bytes": held}
        release = Release(
            "r", "v1", "a" * 64, "cnn", "nf4", self.results["nf4"]["artifact"], "/g", 1, MIB, 1.0, 1.0, None, None
        )
        self.served = {"kanji": Served("kanji", release)}
        self.runner.start()

    def artifacts(self, sha256: str) -> Mapping[str, JsonObject]:
        assert sha256 == "a" * 64
        return self.results

    def trying(self, **options: Any) -> Trying:
        world = World(
            served=lambda: self.served,
            server=self.server,
            store=self,
            device=self.device,
            builder=self.builder,
            submit=self.runner.submit,
            is_busy=lambda: self.is_busy,
            target="cpu",
        )
        return Trying(world, **options)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.builder.holds = False
    assert bench.runner.stop(WAIT_S)


def refused(call: Callable[[], Any]) -> tuple[HTTPStatus, str]:
    with pytest.raises(RefusedError) as caught:
        call()
    return caught.value.status, str(caught.value)


def test_a_model_is_described_by_its_sidecar_and_what_is_cached_of_it(bench: Bench) -> None:
    told = bench.trying().describe("kanji")
    assert (told["model"], told["version"], told["method"]) == ("kanji", "v1", "nf4")
    assert (told["inputs"], told["labels"], told["answer"]) == ([SPEC], ["one"], "classes")
    assert told["others"] == ["nf4-dq", "int8"], "smallest first, without the one that serves"


def test_a_sidecar_of_before_labels_and_answers_were_told_describes_too(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "nf4" / "cnn.json").write_text(json.dumps({"inputs": [SPEC]}))
    told = bench.trying().describe("kanji")
    assert (told["labels"], told["answer"]) == (None, None)


def test_a_sidecar_that_cannot_be_read_is_told_as_that(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "nf4" / "cnn.json").write_text("{")
    assert refused(lambda: bench.trying().describe("kanji"))[0] == 500


@pytest.mark.parametrize("model", ["nobody", "../kanji", ""])
def test_only_what_is_served_is_asked(bench: Bench, model: str) -> None:
    trying = bench.trying()
    for call in (
        lambda: trying.describe(model),
        lambda: trying.infer(model, BODY),
        lambda: trying.compare(model, BODY),
    ):
        assert refused(call)[0] == 404
    assert bench.server.asked == []


def test_the_server_s_answer_is_relayed_with_its_status_over_http(bench: Bench) -> None:
    with site(Offer(PageAccess(is_open=True), trying=bench.trying())) as served:
        assert ask(served, "POST", "/models/kanji/infer", BODY)[:2] == (400, {"error": "no such input"})
        assert ask(served, "GET", "/models/kanji")[1]["method"] == "nf4"
        too_long = b" " * (MAX_INPUT_BYTES + 1)
        assert ask(served, "POST", "/models/kanji/infer", too_long)[0] == 413
    assert bench.server.asked == [("kanji", BODY)]


def test_a_server_that_gives_no_answer_is_told_as_that(bench: Bench) -> None:
    bench.server.error = StepError(ErrorCode.INTERNAL, "it is being replaced")
    assert refused(lambda: bench.trying().infer("kanji", BODY)) == (502, "it is being replaced")


def test_what_inference_guards_with_a_token_is_not_asked_without_one_here(bench: Bench, tmp_path: Path) -> None:
    token = tmp_path / "tokens"
    token.write_text("t" * 32)
    token.chmod(0o600)
    for access, status in ((PageAccess(), 403), (PageAccess(inference=TokenFile(token)), 401)):
        with site(Offer(access, trying=bench.trying())) as served:
            for verb in ("infer", "compare"):
                assert ask(served, "POST", f"/models/kanji/{verb}", BODY)[0] == status
            assert (bench.server.asked, bench.builder.jobs) == ([], [])
    with site(Offer(access, trying=bench.trying())) as served:
        assert ask(served, "POST", "/models/kanji/infer", BODY, Authorization=f"Bearer {'t' * 32}")[0] == 400
    assert len(bench.server.asked) == 1


def test_every_other_cached_method_answers_in_a_child_on_the_thread_of_the_steps(bench: Bench) -> None:
    told = bench.trying().compare("kanji", BODY)
    assert [answer["method"] for answer in told["answers"]] == ["nf4-dq", "int8"]
    (job,) = bench.builder.jobs
    assert (job["job"], job["device"], job["request"]) == ("answer", "cpu", BODY.decode())
    assert [each["artifact"] for each in job["artifacts"]] == [
        bench.results[name]["artifact"] for name in ("nf4-dq", "int8")
    ]
    assert bench.builder.threads == ["steps"], "so it never meets a build"
    assert bench.server.asked == [], "the one that serves has nothing to do with it"


def test_what_does_not_fit_beside_everything_is_not_loaded(bench: Bench) -> None:
    # Weights and work of int8 take 4 MiB over the process, those of nf4-dq 2; 512 MiB stay in reserve.
    bench.device.available_bytes = 512 * MIB + BASE + 3 * MIB
    told = bench.trying().compare("kanji", BODY)["answers"]
    assert {answer["method"]: "error" in answer for answer in told} == {"int8": True, "nf4-dq": False}
    assert next(answer["error"] for answer in told if "error" in answer).startswith("no room: it needs 304 MiB")
    bench.device.available_bytes = 512 * MIB + BASE
    assert all("error" in answer for answer in bench.trying().compare("kanji", BODY)["answers"])
    assert len(bench.builder.jobs) == 1, "no child without something to do"


def test_a_gpu_s_context_counts_as_well(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.device.available_bytes = 512 * MIB + BASE + 300 * MIB
    budget = bench.device.budget
    monkeypatch.setattr(bench.device, "budget", lambda: replace(budget(), has_gpu=True))
    assert all("error" in answer for answer in bench.trying().compare("kanji", BODY)["answers"])


def test_nothing_is_compared_while_an_operation_is_at_work(bench: Bench) -> None:
    bench.is_busy = True
    assert refused(lambda: bench.trying().compare("kanji", BODY))[0] == 409
    assert bench.builder.jobs == []


def test_an_operation_that_begins_ends_the_comparison(bench: Bench) -> None:
    bench.builder.holds = True
    trying = bench.trying()
    with ThreadPoolExecutor(1) as pool:
        comparing = pool.submit(lambda: refused(lambda: trying.compare("kanji", BODY)))
        assert bench.builder.begun.wait(WAIT_S)
        bench.is_busy = True
        assert comparing.result(WAIT_S) == (503, "the comparison was ended: an operation began")


def test_a_comparison_that_takes_too_long_is_ended(bench: Bench) -> None:
    bench.builder.holds = True
    status, text = refused(lambda: bench.trying(compare_s=0.1).compare("kanji", BODY))
    assert (status, text) == (503, "the comparison was ended: it took more than 0.1 s")


def test_there_is_one_comparison_at_a_time(bench: Bench) -> None:
    bench.builder.holds = True
    trying = bench.trying()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: trying.compare("kanji", BODY))
        assert bench.builder.begun.wait(WAIT_S)
        assert refused(lambda: trying.compare("kanji", BODY)) == (503, "another comparison is under way")
        bench.builder.holds = False
        assert len(first.result(WAIT_S)["answers"]) == 2
    assert len(trying.compare("kanji", BODY)["answers"]) == 2


def test_few_questions_are_held_at_a_time(bench: Bench) -> None:
    trying = bench.trying()
    held = [trying.place() for _ in range(PLACES)]
    for place in held:
        place.__enter__()
    assert refused(lambda: trying.place().__enter__())[0] == 503
    held[0].__exit__(None, None, None)
    with trying.place():
        pass


def test_nothing_to_compare_with_is_told_as_that(bench: Bench) -> None:
    bench.results = {"nf4": bench.results["nf4"]}
    status, text = refused(lambda: bench.trying().compare("kanji", BODY))
    assert (status, text) == (409, "of v1 no method but nf4 is cached here")


@pytest.mark.parametrize(
    ("error", "status"),
    [(StepError(ErrorCode.BUILD_KILLED, "the child was killed"), 502), (InterruptedStepError(), 503)],
)
def test_a_child_that_dies_is_told_as_that(bench: Bench, error: Exception, status: int) -> None:
    bench.builder.error = error
    assert refused(lambda: bench.trying().compare("kanji", BODY))[0] == status


def test_an_input_that_is_no_text_is_refused_before_a_child_starts(bench: Bench) -> None:
    assert refused(lambda: bench.trying().compare("kanji", b"\xff"))[0] == 400
    assert bench.builder.jobs == []
