"""Values for property tests: records, events and messages, valid or not, as hypothesis strategies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from agent.contract.errors import ErrorCode, ErrorInfo
from agent.deployment.machine import (
    DEFERRED,
    Begin,
    CancelRequested,
    Done,
    Event,
    Expired,
    Failed,
    Judged,
    Operation,
    Restarted,
    Superseded,
    TimePassed,
)
from agent.deployment.models import Release, Served
from agent.deployment.phases import LINES, MAX_ATTEMPTS, MAX_WRITES, RESERVED_WRITES, Phase, State

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

ids = st.text("AZaz09_-", min_size=1, max_size=8) | st.just("x" * 64)
digests = st.integers(0, 2**256 - 1).map("{:064x}".format)
texts = st.text(max_size=8)
json_values: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
json_objects = st.dictionaries(texts, json_values, max_size=3)
small_objects: SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"reason": "fits"}, {"gate": {"soak_s": 5.0}}, {"gate": {}}]
)
phases = st.sampled_from(Phase)
few_errors = st.sampled_from(
    [ErrorInfo(code=code, detail=f"it was {code}", retryable=code == "internal") for code in ErrorCode]
)
errors = st.builds(
    ErrorInfo,
    code=st.sampled_from(ErrorCode),
    detail=texts,
    hint=st.none() | texts,
    kept=st.none() | texts,
    phase=st.none() | phases.map(str),
    retryable=st.booleans(),
)
facts: SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"already_applied": True}, {"already_applied": False, "sha256": "0" * 64}]
)
events: SearchStrategy[Event] = st.one_of(
    st.just(Begin()),
    st.builds(Done, phases, facts, st.none() | small_objects),
    st.builds(Failed, phases, few_errors, st.booleans(), st.none() | small_objects),
    st.just(CancelRequested()),
    st.just(Superseded("generation gen8")),
    st.just(Expired("2026-11-25T11:00:00Z")),
    st.builds(Judged, st.none() | few_errors),
    st.just(Restarted()),
    st.builds(TimePassed, st.floats(0, 1e6)),
)


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    """Any record that a journal could hold: the phase belongs to the command, whatever the state is."""
    command = draw(st.sampled_from(sorted(LINES)))
    state = draw(st.just(State.RUNNING) | st.sampled_from(State))
    phase = Phase.QUEUED
    if state is not State.ACCEPTED:
        phase = draw(st.sampled_from([*LINES[command], Phase.ROLLING_BACK]))
    return Operation(
        id="op",
        command=command,
        model="kanji",
        fingerprint="f" * 64,
        request=draw(small_objects),
        state=state,
        phase=phase,
        attempt=draw(st.integers(1, MAX_ATTEMPTS)),
        writes=draw(st.integers(1, MAX_WRITES - (1 if phase is Phase.ROLLING_BACK else RESERVED_WRITES))),
        phase_since=draw(st.floats(0, 1e6)),
        facts=draw(facts | st.just({DEFERRED: "no clock"})) if state is State.ACCEPTED else draw(facts),
        decision=draw(st.none() | small_objects),
        error=draw(st.none() | few_errors),
        outcome=draw(st.sampled_from([State.ROLLED_BACK, State.CANCELED, State.TIMED_OUT])),
    )


@st.composite
def written_operations(draw: st.DrawFn) -> Operation:
    """A record with anything in the fields that the machine only carries."""
    return replace(
        draw(operations()),
        id=draw(ids),
        model=draw(st.none() | ids),
        fingerprint=draw(digests),
        request=draw(json_objects),
        facts=draw(json_objects),
        decision=draw(st.none() | json_objects),
        error=draw(st.none() | errors),
    )


def fresh(command: str) -> Operation:
    """Return the record of a command that was just accepted."""
    return Operation("op", command, "kanji", "f" * 64, {})


shares = st.none() | st.floats(0, 1)
releases = st.builds(
    Release,
    id=ids,
    version=ids,
    sha256=digests,
    model_type=texts,
    method=texts,
    artifact=texts,
    gate_file=texts,
    artifact_bytes=st.integers(0, 2**53),
    resident_bytes=st.integers(0, 2**53),
    coverage=st.floats(0, 1),
    agreement=shares,
    accuracy=shares,
    accuracy_source=shares,
    since=texts,
    sequence=st.none() | st.integers(0, 2**53 - 1),
    chosen_by=st.sampled_from(["auto", "operator"]),
    gate=st.sampled_from([{}, {"min_agreement": 0.9, "soak_s": 1.0}]),
)
served_items = st.builds(Served, name=ids, current=releases, previous=st.none() | releases, dataset=st.none() | digests)
