"""Operations that fail: each ends once, with its code and a sentence, and what served before goes on serving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent.contract.errors import ErrorCode
from agent.deployment.inbox import ServerLost
from agent.deployment.phases import RULES, OnFailure, Phase
from agent.deployment.ports import StepError
from agent.deployment.recovery import Mode
from tests.fakes.box import TOPICS, Box
from tests.fakes.device import checkpoint, sha256

if TYPE_CHECKING:
    from collections.abc import Callable

OTHER = checkpoint(50_000, seed=1)
OTHER_URL = "https://models.example/other.pt"


def wrong_checksum(box: Box) -> dict[str, Any]:
    box.sources.files[OTHER_URL] = OTHER[:-1] + b"!"
    return {}


def unreachable(_box: Box) -> dict[str, Any]:
    return {"url": "https://nowhere.example/x"}


def not_a_state_dict(box: Box) -> dict[str, Any]:
    box.builder.error = StepError(ErrorCode.BAD_CHECKPOINT, "a pickle of a list, expected a state dict")
    return {}


def not_a_container(box: Box) -> dict[str, Any]:
    return {"content": _offer(box, b"<html>404</html>")}


def compressed_container(box: Box) -> dict[str, Any]:
    return {"content": _offer(box, OTHER.replace(b"data.pkl", b"code.pkl"))}


def builder_killed(box: Box) -> dict[str, Any]:
    box.builder.error = StepError(ErrorCode.BUILD_KILLED, "the builder was killed by SIGKILL", retryable=True)
    return {}


def builder_raises(box: Box) -> dict[str, Any]:
    box.builder.error = RuntimeError("a bug")
    return {}


def gate_not_met(box: Box) -> dict[str, Any]:
    box.builder.gate["agreement"] = 0.5
    return {}


def gate_not_a_number(box: Box) -> dict[str, Any]:
    box.builder.gate["agreement"] = float("nan")
    return {}


def no_memory(box: Box) -> dict[str, Any]:
    box.device.available_bytes = 512 * 2**20 + 1000
    return {}


def no_method(box: Box) -> dict[str, Any]:
    box.device.methods["nf4"] = {"ok": False, "detail": "wrong answer"}
    return {"method": "nf4"}


def _offer(box: Box, content: bytes) -> bytes:
    box.sources.files[OTHER_URL] = content
    return content


BEFORE_LOADING: list[tuple[Callable[[Box], dict[str, Any]], str, str, bool, str]] = [
    (wrong_checksum, "checksum_mismatch", "verifying", True, sha256(OTHER)),
    (unreachable, "download_failed", "downloading", True, "nobody answers"),
    (not_a_state_dict, "bad_checkpoint", "building", False, "a list"),
    (not_a_container, "bad_checkpoint", "verifying", False, "neither a torch zip archive nor safetensors"),
    (compressed_container, "bad_checkpoint", "verifying", False, "without data.pkl"),
    (builder_killed, "build_killed", "building", True, "SIGKILL"),
    (builder_raises, "internal", "building", True, "RuntimeError: a bug"),
    (gate_not_met, "gate_failed", "building", False, "agreement 0.5000 with the source, 0.95 demanded"),
    (gate_not_a_number, "gate_failed", "building", False, "agreement nan"),
    (no_memory, "insufficient_memory", "planning", True, "reserve 512 MiB"),
    (no_method, "unsupported_method", "planning", False, "failed the self-test"),
]


@pytest.mark.parametrize(
    ("arrange", "code", "phase", "retryable", "words"),
    BEFORE_LOADING,
    ids=[case[0].__name__ for case in BEFORE_LOADING],
)
def test_a_bad_deploy_fails_with_its_code_and_leaves_the_server_alone(
    serving_box: Box, arrange: Callable[[Box], dict[str, Any]], code: str, phase: str, *, retryable: bool, words: str
) -> None:
    served = serving_box.serving()
    serving_box.sources.files[OTHER_URL] = OTHER
    starts = serving_box.server.starts
    serving_box.deploy("bad", **{"content": OTHER, "url": OTHER_URL, **arrange(serving_box)})
    serving_box.settle()

    report = serving_box.report("bad")
    error = report["error"]
    assert (report["state"], error["code"], error["phase"], error["retryable"]) == ("failed", code, phase, retryable)
    assert words in error["detail"]
    assert error["kept"] == f"kanji {served}"
    assert serving_box.serving() == served
    assert serving_box.server.starts == starts


def test_a_failed_first_deploy_names_nothing_that_is_kept(box: Box) -> None:
    box.deploy("bad", url="https://nowhere.example/x")
    box.settle()

    assert box.report("bad")["error"]["kept"] is None
    assert box.serving() is None


def test_a_failed_deploy_leaves_no_files_behind(box: Box) -> None:
    box.builder.gate["agreement"] = 0.5
    box.deploy("bad")
    box.settle()

    assert box.store.used_bytes() == 0


def test_a_failed_deploy_says_what_was_measured(box: Box) -> None:
    box.builder.gate["agreement"] = 0.5
    box.deploy("bad")
    box.settle()

    assert box.report("bad")["decision"]["measured"]["gate"]["agreement"] == 0.5


@pytest.mark.parametrize(
    ("verb", "code", "phase"),
    [
        ("load", "load_failed", "loading"),
        ("canary", "canary_failed", "canary"),
        ("activate", "activation_failed", "activating"),
        ("status", "trial_failed", "trial"),
    ],
)
@pytest.mark.parametrize("dies", [False, True], ids=["fails", "dies"])
def test_what_goes_wrong_in_the_server_is_rolled_back(
    serving_box: Box, verb: str, code: str, phase: str, *, dies: bool
) -> None:
    served = serving_box.serving()
    (serving_box.server.die_in if dies else serving_box.server.fail)(verb)
    serving_box.send("set_method", {"id": "bad", "model": "kanji", "method": "fp4-dq"})
    serving_box.settle()

    report = serving_box.report("bad")
    assert serving_box.states("bad")[-2:] == [("running", "rolling_back"), ("rolled_back", None)]
    assert (report["error"]["code"], report["error"]["phase"]) == (code, phase)
    assert report["error"]["kept"] == f"kanji {served}"
    assert serving_box.serving() == served
    assert serving_box.server.held("kanji") == {served}


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"agreement": 0.1}, "agreement 0.1000"),
        ({"non_finite": 3}, "3 of 16 answers are not finite"),
        ({"agreement": float("nan")}, "agreement nan"),
    ],
)
def test_a_canary_that_answers_badly_never_becomes_active(
    serving_box: Box, measured: dict[str, Any], words: str
) -> None:
    served = serving_box.serving()
    serving_box.server.canary_answer |= measured
    serving_box.send("set_method", {"id": "bad", "model": "kanji", "method": "fp4-dq"})
    serving_box.settle()

    assert ("running", "activating") not in serving_box.states("bad")
    assert serving_box.report("bad")["state"] == "rolled_back"
    assert words in serving_box.report("bad")["error"]["detail"]
    assert serving_box.serving() == served


@pytest.mark.parametrize("counter", ["failures", "non_finite"])
def test_a_request_that_fails_during_the_trial_ends_it(serving_box: Box, counter: str) -> None:
    served = serving_box.serving()
    serving_box.server.before("status", lambda: None)
    serving_box.server.before("status", lambda: serving_box.server.counters.update({counter: 2}))
    serving_box.send("set_method", {"id": "bad", "model": "kanji", "method": "fp4-dq"})
    serving_box.settle()

    assert serving_box.report("bad")["state"] == "rolled_back"
    assert serving_box.report("bad")["error"]["detail"].startswith("2 ")
    assert serving_box.serving() == served


def test_a_transient_failure_is_tried_three_times(serving_box: Box) -> None:
    serving_box.server.fail("load", times=2, is_transient=True)
    serving_box.send("set_method", {"id": "third-time-lucky", "model": "kanji", "method": "fp4-dq"})
    serving_box.settle()
    assert serving_box.report("third-time-lucky")["state"] == "succeeded"

    serving_box.server.fail("load", times=3, is_transient=True)
    serving_box.send("set_method", {"id": "never", "model": "kanji", "method": "nf4-dq"})
    serving_box.settle()
    assert serving_box.report("never")["state"] == "rolled_back"
    attempts = [body["attempt"] for body in serving_box.broker.bodies(TOPICS.operation("never"))]
    assert max(attempts) == 3


def test_a_rollback_that_cannot_be_done_ends_as_such_with_both_reasons(serving_box: Box) -> None:
    serving_box.server.fail("canary")
    serving_box.server.fail("restore", times=3)
    serving_box.send("set_method", {"id": "bad", "model": "kanji", "method": "fp4-dq"})
    serving_box.settle()

    report = serving_box.report("bad")
    assert report["state"] == "rollback_failed"
    assert report["error"]["code"] == "canary_failed"
    assert "then: restore was told to fail" in report["error"]["detail"]


def test_the_server_is_mended_after_a_rollback_that_could_not_be_done(serving_box: Box) -> None:
    served = serving_box.serving()
    serving_box.server.fail("canary")
    serving_box.server.fail("restore", times=3)
    serving_box.send("set_method", {"id": "bad", "model": "kanji", "method": "fp4-dq"})
    serving_box.settle()

    assert serving_box.serving() == served


def test_an_idle_server_that_dies_comes_back_with_what_is_served(serving_box: Box) -> None:
    served = serving_box.serving()
    serving_box.server.die()
    assert serving_box.server.answers() == {}
    serving_box.settle()

    assert serving_box.serving() == served
    assert [body["event"] for body in serving_box.broker.bodies(TOPICS.event)][-1] == "server_lost"


def test_a_server_that_keeps_dying_gets_the_release_before_and_then_none(serving_box: Box) -> None:
    seen: list[tuple[Mode, str | None, str | None]] = []
    for _ in range(6):
        serving_box.engine.post(ServerLost("was killed by SIGSEGV"))
        serving_box.settle()
        answer = serving_box.server.answers().get("kanji")
        told = serving_box.broker.bodies(TOPICS.reported)[-1]["models"].get("kanji", {}).get("method")
        seen.append((serving_box.keeper.mode, answer.rpartition("-")[2] if answer else None, told))

    assert seen == [
        *[(Mode.CURRENT, "nf4", "nf4")] * 2,
        *[(Mode.LAST_GOOD, "fp4", "fp4")] * 3,
        (Mode.SAFE, None, None),
    ]


@pytest.mark.parametrize("verb", ["load", "canary", "activate", "status"])
def test_deaths_for_which_a_release_on_trial_fails_are_not_held_against_the_one_before(
    serving_box: Box, verb: str
) -> None:
    served = serving_box.serving()
    for number in range(6):
        serving_box.server.die_in(verb)
        serving_box.send("set_method", {"id": f"bad-{number}", "model": "kanji", "method": "fp4-dq"})
        serving_box.settle()
        assert serving_box.report(f"bad-{number}")["state"] == "rolled_back"

    assert serving_box.keeper.mode is Mode.CURRENT
    assert serving_box.serving() == served


def test_a_rollback_on_a_device_that_fell_back_leads_to_what_it_fell_back_to(serving_box: Box) -> None:
    for _ in range(3):
        serving_box.engine.post(ServerLost("was killed by SIGSEGV"))
        serving_box.settle()
    serving_box.server.fail("canary")
    serving_box.send("set_method", {"id": "bad", "model": "kanji", "method": "fp4-dq"})
    serving_box.go_to("bad", Phase.ROLLING_BACK)
    serving_box.runner.pump()

    assert serving_box.server.answers()["kanji"].endswith("-fp4")


def test_a_device_in_safe_mode_still_takes_commands_and_leaves_it_by_a_success(serving_box: Box) -> None:
    for _ in range(6):
        serving_box.engine.post(ServerLost("was killed by SIGSEGV"))
        serving_box.settle()
    serving_box.send("set_method", {"id": "cure", "model": "kanji", "method": "fp4-dq"})
    serving_box.settle()

    assert serving_box.report("cure")["state"] == "succeeded"
    assert serving_box.keeper.mode is Mode.CURRENT
    assert (serving_box.serving() or "").endswith("-fp4-dq")


@pytest.mark.parametrize("phase", [phase for phase, rule in RULES.items() if rule.deadline_s is not None])
def test_every_phase_has_its_time(serving_box: Box, phase: Phase) -> None:
    served = serving_box.serving()
    serving_box.sources.files[OTHER_URL] = OTHER
    if phase is Phase.ROLLING_BACK:
        serving_box.server.fail("canary")
    serving_box.deploy("slow", content=OTHER, url=OTHER_URL)
    serving_box.go_to("slow", phase)
    serving_box.clock.advance((RULES[phase].deadline_s or 0) + 1)
    serving_box.engine.turn(wait_s=0)
    serving_box.settle()

    report = serving_box.report("slow")
    expected = "rollback_failed" if phase is Phase.ROLLING_BACK else "timed_out"
    assert report["state"] == expected
    if phase is not Phase.ROLLING_BACK:
        assert report["error"]["code"] == "timed_out"
    assert f"{phase} took" in report["error"]["detail"]
    rolled = ("running", "rolling_back") in serving_box.states("slow")
    assert rolled == (RULES[phase].on_failure is OnFailure.ROLL_BACK or phase is Phase.ROLLING_BACK)
    assert serving_box.serving() == served


def test_a_phase_within_its_time_is_left_alone(serving_box: Box) -> None:
    serving_box.send("set_method", {"id": "fine", "model": "kanji", "method": "fp4-dq"})
    serving_box.go_to("fine", Phase.BUILDING)
    serving_box.clock.advance((RULES[Phase.BUILDING].deadline_s or 0) - 1)
    serving_box.engine.turn(wait_s=0)
    serving_box.settle()

    assert serving_box.report("fine")["state"] == "succeeded"


def test_a_command_whose_commit_was_followed_by_an_error_is_carried_out_all_the_same(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = box.journal.save
    errors = [OSError("no space left on device")]

    def save_and_fail(*arguments: Any, **changes: Any) -> None:
        save(*arguments, **changes)
        if errors:
            raise errors.pop()

    monkeypatch.setattr(box.journal, "save", save_and_fail)
    box.deploy("d-1")
    box.settle()

    assert errors == []
    assert box.report("d-1")["state"] == "succeeded"
    assert box.serving() is not None


def test_where_the_configured_budget_binds_the_hint_names_it(box: Box) -> None:
    box.send("set_config", {"id": "small", "config": {"memory": {"budget": "1KiB"}}})
    box.deploy("d-1")
    box.settle()
    error = box.report("d-1")["error"]
    assert error["code"] == "insufficient_memory"
    assert error["hint"] == "raise memory.budget, or undeploy another model"


@pytest.mark.parametrize("is_here", [False, True])
def test_an_address_that_is_not_allowed_is_refused_whether_or_not_its_file_is_here(box: Box, *, is_here: bool) -> None:
    if is_here:
        box.deploy("d-1")
        box.settle()
    box.deploy("d-2", url="ftp://models.example/kanji.pt", version="2")
    box.settle()
    report = box.report("d-2")
    assert (report["state"], report["error"]["code"]) == ("failed", "forbidden_source")


def test_pieces_that_do_not_make_the_file_are_fetched_once_more_in_one(serving_box: Box) -> None:
    sources = serving_box.sources
    sources.files[OTHER_URL] = OTHER
    sources.pieced = OTHER[:-1] + b"!"
    serving_box.deploy("d-2", content=OTHER, url=OTHER_URL)
    serving_box.settle()
    assert serving_box.report("d-2")["state"] == "succeeded"
    assert sources.fetched.count(OTHER_URL) == 2


def test_a_file_that_is_wrong_in_one_piece_too_is_not_fetched_for_ever(serving_box: Box) -> None:
    sources = serving_box.sources
    sources.files[OTHER_URL] = sources.pieced = OTHER[:-1] + b"!"
    serving_box.deploy("d-2", content=OTHER, url=OTHER_URL)
    serving_box.settle()
    report = serving_box.report("d-2")
    assert (report["state"], report["error"]["code"]) == ("failed", "checksum_mismatch")
    assert sources.fetched.count(OTHER_URL) == 2
