"""Two parsers, one answer: what the fast one reads is what the strict one would have read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.serving import json_text
from agent.serving.errors import ServingError
from agent.serving.json_text import LEAST_FAST_BYTES, MOST_FAST_BYTES, parse
from agent.serving.oip import InferRequest, parse_request

if TYPE_CHECKING:
    from collections.abc import Callable

unhurried = settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
PADDING = b" " * LEAST_FAST_BYTES


def one_input(data: Any, shape: Any, datatype: str = "FP32", **extra: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "a", "shape": shape, "datatype": datatype, "data": data}], **extra}).encode()


def read(body: bytes) -> tuple[Any, ...]:
    """Return what a request says, or how it is refused."""
    try:
        request: InferRequest = parse_request(body, None)
    except ServingError as error:
        return type(error), error.status
    return (
        [(each.name, each.datatype, each.data.shape, each.data.tolist()) for each in request.inputs],
        request.outputs, request.is_binary, request.id, request.parameters,
    )  # fmt: skip


def strictly(body: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    with monkeypatch.context() as patched:
        patched.setattr(json_text, "_fast", lambda _text: None)
        return read(body)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each text was read by the fast parser."""
    found: list[bool] = []
    real: Callable[[bytes], Any] = json_text._fast

    def noted(text: bytes) -> Any:
        header = real(text)
        found.append(header is not None)
        return header

    monkeypatch.setattr(json_text, "_fast", noted)
    return found


NUMBERS = [0.1, -2.5, 3.0, 1e-40, 7]


@pytest.mark.parametrize(
    ("body", "is_fast"),
    [
        pytest.param(one_input(NUMBERS, [1, 5]), True, id="floats"),
        pytest.param(one_input([1, 2, 3], [3]), True, id="whole numbers"),
        pytest.param(one_input([1, 2**53 + 1, 2**64 - 1, -(2**63)], [4], "FP64"), True, id="large whole numbers"),
        pytest.param(one_input(NUMBERS, [1, 5], id="7", parameters={"timeout": 5, "x": "y"}), True, id="an id"),
        pytest.param(one_input(NUMBERS, [5], outputs=[{"name": "b", "parameters": {}}]), True, id="outputs"),
        pytest.param(one_input([[1.5], [2.5]], [2, 1]), False, id="nested"),
        pytest.param(one_input([[1.5], [2.5]], [2]), False, id="nested otherwise than its shape"),
        pytest.param(one_input([1, 2], [2], id="[", parameters={"b": "]"}), False, id="a bracket in a text"),
        pytest.param(one_input([1, True], [2]), False, id="a boolean"),
        pytest.param(one_input([1, None], [2]), False, id="null"),
        pytest.param(one_input([1, "2"], [2]), False, id="a text"),
        pytest.param(one_input([], [0]), None, id="nothing"),
        pytest.param(one_input([1, 2**70], [2]), False, id="beyond 64 bits"),
        pytest.param(one_input([1, 2], [2], "INT32"), False, id="integers"),
        pytest.param(one_input([1.0, 2.5], [2], "INT32"), False, id="fractions for integers"),
        pytest.param(one_input(["a"], [1], "BYTES"), False, id="strings"),
        pytest.param(one_input([1e300], [1]), True, id="beyond the datatype"),
        pytest.param(one_input([1, 2], [3]), True, id="too few"),
        pytest.param(one_input([1], [1])[:-1] + b',"id":"a","id":"b"}', True, id="a key twice"),
        pytest.param(one_input([1], [1]).replace(b'"data": [1]', b'"data":[1],"data":[2]'), None, id="data twice"),
        pytest.param(one_input([1], [1]).replace(b'"data": [1]', b'"data":[1e999]'), False, id="infinity"),
        pytest.param(one_input([1], [1]).replace(b'"data": [1]', b'"data":[NaN]'), False, id="no number"),
        pytest.param(one_input([1], [1]).replace(b'"data": [1]', b'"data":[01]'), False, id="a leading zero"),
        pytest.param(one_input([1], [1]).replace(b'"data": [1]', b'"data":[-0]'), True, id="minus zero"),
        pytest.param(one_input([1], [1]).replace(b'"a"', b'"\\ud800"'), False, id="half a surrogate"),
        pytest.param(one_input([1], [1]).replace(b'"a"', b'"\xff"'), False, id="no UTF-8"),
        pytest.param(one_input([1], [1]).replace(b'"datatype": "FP32",', b""), False, id="no datatype"),
        pytest.param(one_input([1], [1]) + b" x", False, id="something behind it"),
        pytest.param(b'{"inputs":[1]}', False, id="no objects"),
        pytest.param(b'{"inputs":7}', False, id="no array"),
        pytest.param(b'{"id":"a"}', False, id="no inputs"),
        pytest.param(b'{"inputs":' + b"[" * 1500 + b"]" * 1500 + b"}", False, id="deep"),
    ],
)
def test_a_long_text_says_the_same_whoever_reads_it(
    body: bytes,
    is_fast: bool | None,  # noqa: FBT001 - a case
    fast: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = body[:1] + PADDING + body[1:]
    found = read(long)
    assert is_fast is None or fast == [is_fast]
    assert repr(found) == repr(strictly(long, monkeypatch))
    assert repr(found) == repr(read(body))


@pytest.mark.parametrize("body", [b"[1]", b"\xef\xbb\xbf{}", b" {}", b"1"])
def test_what_does_not_begin_as_an_object_is_for_the_strict_parser_alone(body: bytes, fast: list[bool]) -> None:
    read(body + PADDING)
    assert not fast


def test_short_texts_and_very_long_ones_are_left_to_the_strict_parser(fast: list[bool]) -> None:
    for size, is_tried in ((LEAST_FAST_BYTES, True), (MOST_FAST_BYTES, True)):
        fast.clear()
        parse(b"{" + b" " * (size - 2) + b"}")
        assert bool(fast) == is_tried
        fast.clear()
        parse(b"{" + b" " * (size - 3 if size == LEAST_FAST_BYTES else size - 1) + b"}")
        assert not fast


@unhurried
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20),
    st.integers(0, 400),
    st.sampled_from(
        [b"", b"[", b"]", b",", b'"', b"1", b"e9", b"-", b".", b":", b"{", b"true", b"\\", b"\x00", b"\xc3"]
    ),
    st.booleans(),
)
def test_a_text_that_was_changed_somewhere_says_the_same_whoever_reads_it(
    numbers: list[float],
    at: int,
    bit: bytes,
    is_cut: bool,  # noqa: FBT001 - hypothesis passes it
) -> None:
    body = json.dumps({"inputs": [{"name": "a", "shape": [1, len(numbers)], "datatype": "FP32", "data": numbers}]})
    text = body.encode()
    at %= len(text)
    changed = b"{" + PADDING + (text[:at] + bit + text[at + is_cut :])[1:]
    with pytest.MonkeyPatch.context() as patch:
        assert repr(read(changed)) == repr(strictly(changed, patch))


def test_every_bit_of_a_float_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    body = one_input(values.tolist(), [len(values)])
    assert len(body) > LEAST_FAST_BYTES
    array = parse_request(body, None).inputs[0].data
    assert array.tobytes() == values.tobytes()
    assert repr(read(body)) == repr(strictly(body, monkeypatch))


def test_what_was_read_stays_when_the_next_is_read() -> None:
    first = parse(one_input(list(range(500)), [500]))["inputs"][0]["data"]
    parse(one_input(list(range(500, 1000)), [500]))
    assert first.tolist() == list(range(500))


def test_without_the_extra_orjson_reads_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "_PARSER", None)
    numbers = [float(number) for number in range(1000)]
    text = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1000], "data": numbers}]}).encode()
    assert json_text.parse(text)["inputs"][0]["data"] == numbers
