"""The wire form of inference requests and replies."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent.serving import byte_strings, json_text
from agent.serving.errors import BadRequestError, ModelFailedError, TooLargeError
from agent.serving.oip import InferResponse, format_response, parse_request
from agent.serving.tensors import BINARY_ONLY, DATATYPES, Tensor, TensorSpec

# The first draw builds strategies for every datatype: on a busy machine that outlasts hypothesis's wall-clock checks,
# and how long a machine takes is not what these tests are about.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    dtype = DATATYPES[datatype]
    elements = None if dtype.kind != "f" else hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    if datatype == "BF16":
        elements = st.integers(0, 0x7F7F)
    data = draw(hnp.arrays(dtype, draw(SHAPES), elements=elements))
    return Tensor(draw(st.text('ab:"\\é☃ ', min_size=1, max_size=8)), datatype, data)


def request_body(
    sent: list[tuple[Tensor, bool]], *, nested: bool = False, **extra: Any
) -> tuple[bytes, int | None, list[bytes]]:
    """Write a request the way a client does; pairs say which tensors go out as binary data."""
    inputs, raw = [], []
    for tensor, is_binary in sent:
        entry: dict[str, Any] = {"name": tensor.name, "shape": tensor.data.shape, "datatype": tensor.datatype}
        if is_binary:
            entry["parameters"] = {"binary_data_size": tensor.data.nbytes}
            raw.append(tensor.data.tobytes())
        else:
            entry["data"] = (tensor.data if nested else tensor.data.ravel()).tolist()
        inputs.append(entry)
    header = orjson.dumps({"inputs": inputs, **extra})
    return header + b"".join(raw), len(header) if raw else None, raw


@unhurried
@given(st.lists(st.tuples(tensors(), st.booleans()), max_size=4, unique_by=lambda pair: pair[0].name), st.booleans())
def test_a_request_reads_back_as_it_was_sent_whatever_mix_of_forms(
    sent: list[tuple[Tensor, bool]],
    nested: bool,  # noqa: FBT001 - hypothesis passes it
) -> None:
    sent = [(tensor, is_binary or tensor.datatype in BINARY_ONLY) for tensor, is_binary in sent]
    body, header_length, _ = request_body(sent, nested=nested and all(tensor.data.size for tensor, _ in sent))
    request = parse_request(body, header_length)
    assert [tensor.name for tensor in request.inputs] == [tensor.name for tensor, _ in sent]
    for got, (want, _) in zip(request.inputs, sent, strict=True):
        assert (got.datatype, got.data.dtype) == (want.datatype, want.data.dtype)
        np.testing.assert_array_equal(got.data, want.data, strict=True)


@given(
    st.lists(st.tuples(tensors(), st.booleans()), min_size=1, max_size=4),
    st.none() | st.text('ab:"\\é☃\n', max_size=20),
)
def test_a_reply_says_the_same_in_both_forms_and_echoes_the_id(
    outputs: list[tuple[Tensor, bool]], identifier: str | None
) -> None:
    outputs = [(tensor, is_binary or tensor.datatype in BINARY_ONLY) for tensor, is_binary in outputs]
    header_length, body = format_response(InferResponse("m", "7", tuple(outputs), identifier))
    header = orjson.loads(body[:header_length])
    assert (header["model_name"], header["model_version"], header.get("id")) == ("m", "7", identifier)
    offset = len(body) if header_length is None else header_length
    for (tensor, is_binary), entry in zip(outputs, header["outputs"], strict=True):
        assert entry["shape"] == list(tensor.data.shape)
        if is_binary:
            size = entry["parameters"]["binary_data_size"]
            assert body[offset : offset + size] == tensor.data.tobytes()
            offset += size
        else:
            got = np.array(entry["data"], tensor.data.dtype).reshape(tensor.data.shape)
            np.testing.assert_array_equal(got, tensor.data, strict=True)
    assert offset == len(body)
    assert (header_length is None) == (not any(is_binary for _, is_binary in outputs))


@unhurried
@given(st.binary(max_size=200), st.none() | st.integers(0, 250))
def test_random_bytes_are_refused_or_read_but_never_crash(body: bytes, header_length: int | None) -> None:
    spec = TensorSpec("input", "FP32", (-1, -1))
    with contextlib.suppress(BadRequestError):
        assert parse_request(body, header_length, [spec]).id is None


def one_input(**changes: Any) -> bytes:
    entry = {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0], **changes}
    return orjson.dumps({"inputs": [{key: value for key, value in entry.items() if value is not ...}]})


MALFORMED = {
    "cut": (b"{bad", "not valid JSON"),
    "empty": (b"", "not valid JSON"),
    "an array": (b"[]", "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "UTF-16": ('{"inputs":[]}'.encode("utf-16"), "not valid JSON"),
    "byte order mark": (b"\xef\xbb\xbf" + one_input(), "not valid JSON"),
    "trailing garbage": (one_input() + b"x", "not valid JSON"),
    "NaN literal": (one_input().replace(b"2.0", b"NaN"), "not valid JSON"),
    "Infinity literal": (one_input().replace(b"2.0", b"Infinity"), "not valid JSON"),
    "200,000 brackets": (b"[" * 200_000, "not valid JSON"),
    "deeply nested data": (
        one_input(data=...)[:-3] + b',"data":' + b"[" * 900 + b"]" * 900 + b"}]}",
        "nested too deeply",
    ),
    "a key twice": (one_input()[:-1] + b',"inputs":[]}', "names a key twice"),
    "a key twice beside a colon in a text": (one_input()[:-1] + b',"id":"a:b","id":"c"}', "names a key twice"),
    "no inputs": (b'{"id":"1"}', "has no 'inputs'"),
    "inputs as object": (b'{"inputs":{}}', "must be an array of objects"),
    "inputs of numbers": (b'{"inputs":[1]}', "must be an array of objects"),
    "id as number": (one_input()[:-1] + b',"id":5}', "'id' must be a string"),
    "parameters as list": (one_input()[:-1] + b',"parameters":[]}', "must be an object"),
    "parameter as object": (one_input()[:-1] + b',"parameters":{"a":{}}}', "must be a string, a number or a boolean"),
    "binary flag as number": (one_input()[:-1] + b',"parameters":{"binary_data_output":1}}', "must be true or false"),
    "shared memory": (one_input(parameters={"shared_memory_region": "r"}), "shared memory is not offered"),
    "classification": (
        one_input()[:-1] + b',"outputs":[{"name":"o","parameters":{"classification":3}}]}',
        "classification extension",
    ),
    "an output twice": (one_input()[:-1] + b',"outputs":[{"name":"o"},{"name":"o"}]}', "holds a name twice"),
    "an input twice": (one_input().replace(b"}]", b'},{"name":"input"}]'), "holds a name twice"),
    "input without name": (one_input(name=...), "needs a 'name'"),
    "unknown datatype": (one_input(datatype="FP31"), "datatype 'FP31'"),
    "numbers in BYTES": (one_input(datatype="BYTES"), "holds 1.0 at [0, 0]: that is no string"),
    "ragged BYTES": (
        one_input(datatype="BYTES", data=[["a"], ["b", "c"]]),
        "holds an array at [0]: that is no string, or the data is ragged",
    ),
    "BYTES as text": (one_input(datatype="BYTES", data="ab"), "must be an array"),
    "too few BYTES": (one_input(datatype="BYTES", data=["a"]), "has 1 elements as [1], shape [1, 2] needs 2"),
    "BYTES nested otherwise": (one_input(datatype="BYTES", data=[["a"], ["b"]]), "as [2, 1], shape [1, 2]"),
    "a lone surrogate in BYTES": (
        one_input(datatype="BYTES", data=["a", "b"]).replace(b'"b"', rb'"\ud800"'),
        "not valid JSON",
    ),
    "datatype as list": (one_input(datatype=["FP32"]), "datatype ['FP32']"),
    "FP16 in JSON": (one_input(datatype="FP16"), "has no JSON form"),
    "BF16 in JSON": (one_input(datatype="BF16"), "has no JSON form"),
    "shape absent": (one_input(shape=...), "array of integers"),
    "negative size": (one_input(shape=[-1, 2]), "array of integers"),
    "fraction in shape": (one_input(shape=[1, 2.0]), "array of integers"),
    "boolean in shape": (one_input(shape=[True, 2]), "array of integers"),
    "2^63 elements": (one_input(shape=[2**63, 1]), "no tensor has that many elements"),
    "overflowing product": (one_input(shape=[2**40, 2**40]), "no tensor has that many elements"),
    "17 dimensions": (one_input(shape=[1] * 16 + [2]), "at most 16 are read"),
    "neither data nor size": (one_input(data=...), "neither 'data' nor"),
    "both data and size": (one_input(parameters={"binary_data_size": 8}), "has both 'data' and"),
    "binary without header": (one_input(data=..., parameters={"binary_data_size": 8}), "Content-Length is missing"),
    "data as text": (one_input(data="1,2"), "must be an array"),
    "too few elements": (one_input(data=[1.0]), "has 1 elements, shape [1, 2] needs 2"),
    "too many elements": (one_input(data=[1, 2, 3]), "has 3 elements, shape [1, 2] needs 2"),
    "nested otherwise": (one_input(data=[[1.0], [2.0]]), "is nested as [2, 1]"),
    "ragged": (one_input(data=[[1.0], [2.0, 3.0]]), "ragged"),
    "text in FP32": (one_input(data=["1.0", "2.0"]), "holds '1.0' at [0, 0]: that is no FP32"),
    "long text in FP32": (one_input(data=[1.5, "x" * 99]), f"holds '{'x' * 32}'… of 99 characters at [0, 1]: that"),
    "null in FP32": (one_input(data=[[1.0, None]]), "holds null at [0, 1]: that is no FP32"),
    "object in FP32": (one_input(data=[{}, {}]), "holds an object at [0, 0]: that is no FP32"),
    "true in FP32": (one_input(data=[True, 1.5]), "holds a boolean, true at [0, 0]: FP32 has none"),
    "nested false in FP32": (one_input(data=[[1.5, False]]), "holds a boolean, false at [0, 1]: FP32 has none"),
    "1e39 in FP32": (one_input(data=[0.0, 1e39]), "holds 1e+39 at [0, 1]: outside the range of FP32"),
    "both signs of it": (one_input(data=[1e39, -1e39]), "holds 1e+39 at [0, 0]: outside the range of FP32"),
    "-1e39 in too much FP32": (one_input(data=[[0.0], [1.0], [-1e39]]), "holds -1e+39 at [2, 0]: outside"),
    "1e999": (one_input().replace(b"2.0", b"1e999"), "not valid JSON"),
    "3.7 in INT32": (one_input(datatype="INT32", data=[1, 3.7]), "holds 3.7 at [0, 1]: that is no INT32"),
    "300 in UINT8": (one_input(datatype="UINT8", data=[1, 300]), "holds 300 at [0, 1]: UINT8 reaches from 0 to 255"),
    "-1 in UINT64": (one_input(datatype="UINT64", data=[2**64 - 1, -1]), "holds -1 at [0, 1]: UINT64 reaches"),
    "2^63 in INT64": (one_input(datatype="INT64", data=[0, 2**63]), "holds 9223372036854775808 at [0, 1]: INT64"),
    "2 in BOOL": (one_input(datatype="BOOL", data=[1, 2]), "holds 2 at [0, 1]: that is no BOOL"),
    "half in BOOL": (one_input(datatype="BOOL", data=[0, 0.5]), "holds 0.5 at [0, 1]: that is no BOOL"),
    "text in INT8": (one_input(datatype="INT8", data=["a", "b"]), "holds 'a' at [0, 0]: that is no INT8"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_refused_with_what_is_wrong(case: str) -> None:
    body, complaint = MALFORMED[case]
    with pytest.raises(BadRequestError) as caught:
        parse_request(body, None)
    assert complaint in str(caught.value)


BINARY = Tensor("input", "FP32", np.array([[1, 2]], "<f4"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda body, _n: (body, len(body) + 1), "the body has"),
        (lambda body, n: (body, n - 1), "not valid JSON"),
        (lambda body, n: (body, n + 1), "not valid JSON"),
        (lambda body, n: (body[:-3], n), "expecting 3 additional bytes"),
        (lambda body, n: (body + b"xy", n), "unexpected additional input data: 2 bytes"),
        (lambda body, n: (body.replace(b'size":8', b'size":9'), n), "binary_data_size 9, shape [1, 2] of FP32 needs 8"),
        (lambda body, n: (body.replace(b'size":8', b'size":-'), n), "not valid JSON"),
        (lambda body, n: (body.replace(b'size":8', b'size":"'), n), "not valid JSON"),
    ],
)
def test_lengths_that_contradict_each_other_are_refused_with_the_numbers(change: Any, complaint: str) -> None:
    body, header_length, _ = request_body([(BINARY, True)])
    with pytest.raises(BadRequestError) as caught:
        parse_request(*change(body, header_length))
    assert complaint in str(caught.value)


def test_a_byte_other_than_0_and_1_is_no_boolean() -> None:
    body, header_length, _ = request_body([(Tensor("input", "BOOL", np.array([True, False])), True)])
    with pytest.raises(BadRequestError, match=r"holds the byte 2 at \[1\]: a BOOL is 0 or 1"):
        parse_request(body[:-1] + b"\x02", header_length)


def test_integers_on_both_sides_of_2_to_the_63_stay_exact() -> None:
    body = one_input(datatype="UINT64", data=[1, 2**64 - 1])
    assert parse_request(body, None).inputs[0].data.tolist() == [[1, 2**64 - 1]]


def test_a_colon_inside_a_text_is_no_second_key() -> None:
    request = parse_request(one_input()[:-1] + rb',"id":"a:\"b:","parameters":{"c:d":"e"}}', None)
    assert (request.id, request.parameters) == ('a:"b:', {"c:d": "e"})


def test_the_json_part_is_bounded_with_the_advice_to_send_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "MAX_BYTES", 50)
    with pytest.raises(TooLargeError, match="at most 50 are read: send tensors as binary data"):
        parse_request(one_input(), None)


def test_a_requested_output_overrides_the_form_of_the_request() -> None:
    outputs = b'[{"name":"a"},{"name":"b","parameters":{"binary_data":false}}]'
    extra = b',"parameters":{"binary_data_output":true},"outputs":' + outputs + b"}"
    request = parse_request(one_input()[:-1] + extra, None)
    assert [(output.name, output.is_binary) for output in request.outputs or ()] == [("a", True), ("b", False)]


class TestRawRequest:
    def test_the_whole_body_is_the_only_input_as_one_row(self) -> None:
        data = np.arange(6, dtype="<f4")
        request = parse_request(data.tobytes(), 0, [TensorSpec("input", "FP32", (-1, 2, 3))])
        assert request.is_binary
        np.testing.assert_array_equal(request.inputs[0].data, data.reshape(1, 2, 3), strict=True)

    def test_one_open_size_follows_from_the_number_of_bytes(self) -> None:
        request = parse_request(bytes(4 * 6), 0, [TensorSpec("input", "FP32", (-1, -1, 3))])
        assert request.inputs[0].data.shape == (1, 2, 3)

    @pytest.mark.parametrize(
        ("size", "specs", "complaint"),
        [
            (23, [TensorSpec("a", "FP32", (-1, 2, 3))], "has 23 bytes, shape [1, 2, 3] of FP32 needs 24"),
            (0, [TensorSpec("a", "FP32", (-1, -1, 3))], "has 0 bytes"),
            (24, [TensorSpec("a", "FP32", (-1, -1, -1))], "more than one size is open"),
            (24, [TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))], "this one has 2"),
        ],
    )
    def test_a_body_that_cannot_be_that_input_is_refused(
        self, size: int, specs: list[TensorSpec], complaint: str
    ) -> None:
        with pytest.raises(BadRequestError) as caught:
            parse_request(bytes(size), 0, specs)
        assert complaint in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_json_cannot_express_goes_out_as_binary_only(value: float) -> None:
    output = Tensor("logits", "FP32", np.array([[1, value]], "<f4"))
    with pytest.raises(ModelFailedError, match=rf"'logits' holds {value} at \[0, 1\], which JSON cannot express"):
        format_response(InferResponse("m", "1", ((output, False),)))
    given = Tensor("image", "BF16", np.array([[[0x3F80], [0x7F80]]], "<u2"))
    with pytest.raises(
        BadRequestError, match=r"; input 'image' holds inf at \[0, 1, 0\]: send numbers of at most 65504"
    ):
        format_response(InferResponse("m", "1", ((output, False),), provoker=given))
    header_length, body = format_response(InferResponse("m", "1", ((output, True),)))
    assert body[header_length:] == output.data.tobytes()


def test_a_half_precision_output_is_not_guessed_into_json() -> None:
    output = Tensor("logits", "FP16", np.array([1], "<f2"))
    with pytest.raises(BadRequestError, match="ask for binary"):
        format_response(InferResponse("m", "1", ((output, False),)))


class TestByteStrings:
    ELEMENTS = np.array([[b"", b"\x00\xff"], ["ü".encode(), b"a" * 300]], dtype=object)

    def request(self, raw: bytes, shape: list[int] | None = None, size: int | None = None) -> tuple[bytes, int]:
        entry: dict[str, Any] = {"name": "text", "datatype": "BYTES", "shape": shape or [2, 2]}
        entry["parameters"] = {"binary_data_size": len(raw) if size is None else size}
        header = orjson.dumps({"inputs": [entry]})
        return header + raw, len(header)

    def test_binary_elements_come_back_as_they_were(self) -> None:
        raw = byte_strings.pack(self.ELEMENTS)
        assert raw[:6] == b"\0\0\0\0\2\0"
        (tensor,) = parse_request(*self.request(raw)).inputs
        np.testing.assert_array_equal(tensor.data, self.ELEMENTS)
        header_length, body = format_response(InferResponse("m", "1", ((tensor, True),)))
        assert body[header_length:] == raw
        assert orjson.loads(body[:header_length])["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}

    def test_text_has_a_json_form_both_ways_and_other_bytes_have_none(self) -> None:
        (tensor,) = parse_request(one_input(datatype="BYTES", data=["ü", ""]), None).inputs
        assert tensor.data.tolist() == [["ü".encode(), b""]]
        assert orjson.loads(format_response(InferResponse("m", "1", ((tensor, False),)))[1])["outputs"] == [
            {"name": "input", "shape": [1, 2], "datatype": "BYTES", "data": ["ü", ""]}
        ]
        binary = Tensor("out", "BYTES", np.array([b"\xff"], dtype=object))
        with pytest.raises(BadRequestError, match="ask for binary"):
            format_response(InferResponse("m", "1", ((binary, False),)))

    @pytest.mark.parametrize(
        ("raw", "shape", "size", "complaint"),
        [
            (b"\5\0\0\0abcd", [1], None, "element 0 ends at byte 9, the tensor at byte 8"),
            (b"\1\0\0\0a\xff\xff\xff\xff", [2], None, "element 1 ends at byte 4294967304, the tensor at byte 9"),
            (b"\1\0\0\0ab", [1], None, "1 bytes after its last element"),
            (b"\4\0\0\0abcd", [2], None, "element 1 ends at byte 12, the tensor at byte 8"),
            (b"\1\0", [1], None, "1 BYTES need 4 at least"),
            (b"", [2**40], None, "need 4398046511104 at least"),
            (b"\0\0\0\0", [1], 5, "expecting 1 additional bytes"),
            (b"\0\0\0\0", [1], -1, "binary_data_size -1"),
        ],
    )
    def test_lengths_that_lie_are_refused_with_the_element(
        self, raw: bytes, shape: list[int], size: int | None, complaint: str
    ) -> None:
        with pytest.raises(BadRequestError) as caught:
            parse_request(*self.request(raw, shape, size))
        assert complaint in str(caught.value)

    def test_a_raw_request_cannot_be_bytes(self) -> None:
        with pytest.raises(BadRequestError, match="whose elements have no size"):
            parse_request(b"abcd", 0, [TensorSpec("text", "BYTES", (-1,))])
