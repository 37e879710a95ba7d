"""Validation, statistics and exposition: the small pure parts of the server."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import numpy as np
import pytest

from agent.exhaustion import is_out_of_memory
from agent.serving.body import MOST_MEMBERS, PIECE_BYTES, accepted_encoding, decompress
from agent.serving.errors import BadRequestError, TooLargeError
from agent.serving.exposition import Family, expose
from agent.serving.loader import explain
from agent.serving.oip import InferRequest, RequestedOutput
from agent.serving.stats import Histogram, Stats, Timing, percentiles_ms
from agent.serving.tensors import Dimension, Tensor, TensorSpec, is_finite
from agent.serving.validation import check_inputs, check_outputs, timeout_s

IMAGE = TensorSpec("input", "FP32", (-1, 1, 2, 2))
STROKES = (TensorSpec("input", "INT64", (-1, -1), 0, 9), TensorSpec("lengths", "INT64", (-1,), minimum=1))

STEPS = (Dimension(1, "sequence", 4),)
TEXT = (TensorSpec("ids", "INT64", (-1, -1), dimensions=STEPS), TensorSpec("mask", "INT64", (-1, -1), dimensions=STEPS))


def image(*shape: int, name: str = "input", datatype: str = "FP32") -> Tensor:
    return Tensor(name, datatype, np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ([], "the model takes the inputs 'input', the request has none"),
        ([image(1, 1, 2, 2, name="x")], "the request has 'x'"),
        ([image(1, 1, 2, 2), image(1, name="x")], "the request has 'input', 'x'"),
        ([image(1, 1, 2, 2, datatype="FP64")], "'input' is FP64, the model takes FP32"),
        ([image(1, 4)], "has shape [1, 4], the model takes [-1, 1, 2, 2]"),
        ([image(1, 1, 2, 3)], "has shape [1, 1, 2, 3], the model takes [-1, 1, 2, 2]"),
        ([image(0, 1, 2, 2)], "there is nothing to compute"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_both_sides(inputs: list[Tensor], complaint: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        check_inputs(inputs, [IMAGE])
    assert complaint in str(caught.value)


def test_inputs_are_put_into_the_models_order_and_their_rows_counted() -> None:
    lengths, values = np.array([3, 2, 1]), np.ones((3, 3), np.int64)
    question = check_inputs([Tensor("lengths", "INT64", lengths), Tensor("input", "INT64", values)], STROKES)
    assert question.rows == 3
    assert question.arrays[0] is values
    assert question.arrays[1] is lengths


@pytest.mark.parametrize(
    ("values", "lengths", "complaint"),
    [
        ([[1, 2]], [2, 2], "differ in rows: 'input' has 1, 'lengths' has 2"),
        ([[1, 10]], [2], "holds 10 at [0, 1]: the model takes 0 to 9"),
        ([[-1, 1]], [2], "holds -1 at [0, 0]: the model takes 0 to 9"),
        ([[1, 2]], [0], "holds 0 at [0]: the model takes 1 to any"),
    ],
)
def test_values_that_would_end_the_process_on_a_gpu_never_reach_it(
    values: list[Any], lengths: list[int], complaint: str
) -> None:
    given = [Tensor("input", "INT64", np.array(values)), Tensor("lengths", "INT64", np.array(lengths))]
    with pytest.raises(BadRequestError) as caught:
        check_inputs(given, STROKES)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "mask", "complaint"),
    [
        ((1, 3), (1, 5), "input 'mask' has sequence 5, the model takes at most 4"),
        ((1, 3), (1, 2), "the inputs differ in sequence: 'ids' has 3, 'mask' has 2"),
        ((2, 3), (2, 1), "the inputs differ in sequence: 'ids' has 3, 'mask' has 1"),
        ((1, 5), (1, 5), "input 'ids' has sequence 5, the model takes at most 4"),
        ((2, 3), (1, 3), "the inputs differ in rows: 'ids' has 2, 'mask' has 1"),
    ],
)
def test_dimensions_of_one_name_have_one_size_and_stay_below_their_maximum(
    ids: tuple[int, int], mask: tuple[int, int], complaint: str
) -> None:
    given = [Tensor("mask", "INT64", np.ones(mask, np.int64)), Tensor("ids", "INT64", np.ones(ids, np.int64))]
    with pytest.raises(BadRequestError) as caught:
        check_inputs(given, TEXT)
    assert complaint in str(caught.value)


def test_sizes_up_to_the_maximum_pass_and_so_do_all_where_nothing_is_known() -> None:
    longest, long = np.ones((3, 4), np.int64), np.ones((3, 9), np.int64)
    assert check_inputs([Tensor("ids", "INT64", longest), Tensor("mask", "INT64", longest)], TEXT).rows == 3
    old = [TensorSpec.from_json({"name": name, "datatype": "INT64", "shape": [-1, -1]}) for name in ("ids", "mask")]
    assert check_inputs([Tensor("ids", "INT64", longest), Tensor("mask", "INT64", long)], old).rows == 3


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_a_dimension_that_is_no_axis_of_any_size_is_refused(axis: int) -> None:
    body = {"name": "ids", "datatype": "INT64", "shape": [1, -1], "dimensions": [{"axis": axis, "name": "sequence"}]}
    with pytest.raises(ValueError, match=rf"is axis {axis} of \[1, -1\]"):
        TensorSpec.from_json(body)


def test_all_outputs_are_sent_unless_some_are_named() -> None:
    specs = [TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))]
    assert check_outputs(InferRequest((), None, is_binary=True), specs) == ((0, True), (1, True))
    named = (RequestedOutput("b", is_binary=False), RequestedOutput("a", is_binary=True))
    assert check_outputs(InferRequest((), named), specs) == ((1, False), (0, True))
    with pytest.raises(BadRequestError, match="no output 'c', it has 'a', 'b'"):
        check_outputs(InferRequest((), (RequestedOutput("c", is_binary=False),)), specs)


@pytest.mark.parametrize(("sent", "seconds"), [({}, None), ({"timeout": 0}, None), ({"timeout": 1500}, 0.0015)])
def test_a_timeout_is_in_microseconds(sent: dict[str, Any], seconds: float | None) -> None:
    assert timeout_s(InferRequest((), parameters=sent)) == seconds


@pytest.mark.parametrize("value", [-1, 1.5, "5", True, 2**60])
def test_a_timeout_that_is_no_number_of_microseconds_is_refused(value: Any) -> None:
    with pytest.raises(BadRequestError, match="microseconds as an integer"):
        timeout_s(InferRequest((), parameters={"timeout": value}))


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("FP32", np.array([1.0], "<f4"), True),
        ("FP32", np.array([1.0, np.nan], "<f4"), False),
        ("FP16", np.array([np.inf], "<f2"), False),
        ("BF16", np.array([0x3F80, 0x7F7F], "<u2"), True),  # 1.0 and the largest finite number
        ("BF16", np.array([0x7F80], "<u2"), False),  # infinity
        ("BF16", np.array([0xFFC0], "<u2"), False),  # a NaN with its sign set
        ("INT64", np.array([2**62]), True),
    ],
)
def test_finite_is_judged_in_the_tensors_own_datatype(datatype: str, data: Any, *, expected: bool) -> None:
    assert is_finite(Tensor("t", datatype, data)) is expected


def test_percentiles_are_values_that_were_measured() -> None:
    milliseconds = [value / 1e3 for value in range(100, 0, -1)]
    assert percentiles_ms(milliseconds) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles_ms([0.002]) == {"p50": 2.0, "p95": 2.0, "p99": 2.0}
    assert percentiles_ms([], (50,)) == {"p50": None}


def test_an_answer_is_counted_once_in_every_histogram() -> None:
    stats = Stats()
    stats.answered(3, 0.02, Timing(0.01, 0.001, 0.002, 0.003), now_ms=7)
    assert (stats.outcomes["ok"], stats.inferences, stats.last_inference_ms) == (1, 3, 7)
    assert [histogram.count for histogram in (stats.request, stats.queue, stats.compute)] == [1, 1, 1]
    assert stats.compute.total == pytest.approx(0.006)


def test_metrics_are_exposed_as_prometheus_reads_them() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 9.0):
        histogram.observe(value)
    text = expose(
        [
            Family("a_total", "counter", "Text.", {(("model", 'x"\\\n'),): 2}),
            Family("b", "histogram", "More.", {(): histogram}),
            Family("c", "gauge", "Nothing to say.", {}),
        ]
    )
    assert text.decode().splitlines() == [
        "# HELP a_total Text.",
        "# TYPE a_total counter",
        r'a_total{model="x\"\\\n"} 2',
        "# HELP b More.",
        "# TYPE b histogram",
        'b_bucket{le="1.0"} 1',
        'b_bucket{le="2.0"} 2',
        'b_bucket{le="+Inf"} 3',
        "b_sum 11.5",
        "b_count 3",
    ]


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        (b"", None),
        (b"identity", None),
        (b"deflate", "deflate"),
        (b"deflate, gzip;q=0.5", "gzip"),
        (b"gzip;q=0, deflate;q=1", "deflate"),
        (b"GZIP", "gzip"),
        (b"gzip;q=x", None),
        (b"br", None),
    ],
)
def test_a_reply_is_compressed_as_the_client_asks(header: bytes, encoding: str | None) -> None:
    assert accepted_encoding({b"accept-encoding": header}) == encoding


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131'),
        RuntimeError("NvMapMemAllocInternalTagged: 1075072515 error 12"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_recognised_in_every_wording(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert explain(error).code == "insufficient_memory"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(2, "No such file"), "bad_artifact"),
        (ValueError("schema 9"), "bad_artifact"),
        (RuntimeError("CUDA error: no kernel image is available"), "internal"),
    ],
)
def test_a_failed_load_says_whose_fault_it_is(error: Exception, code: str) -> None:
    assert explain(error).code == code
    assert str(error) in str(explain(error))


def test_a_gzip_body_may_have_several_members_within_the_limit_of_all() -> None:
    members = gzip.compress(b"abc") + gzip.compress(b"") + gzip.compress(b"defg")
    assert decompress(members, "gzip", 7) == b"abcdefg"
    with pytest.raises(TooLargeError, match="more than the 6 bytes"):
        decompress(members, "gzip", 6)
    noise = np.random.default_rng(0).bytes(2 * PIECE_BYTES)
    assert decompress(gzip.compress(noise[:-5]) + gzip.compress(noise[-5:]), "gzip", len(noise)) == noise


@pytest.mark.parametrize(
    ("body", "encoding", "complaint"),
    [
        (b"", "gzip", "the gzip body is cut short"),
        (gzip.compress(b"abc")[:-1], "gzip", "the gzip body is cut short"),
        (gzip.compress(b"abc") + gzip.compress(b"defg")[:-9], "gzip", "the gzip body is cut short"),
        (gzip.compress(b"abc") + b"garbage", "gzip", "is not gzip from byte 23 on"),
        (
            gzip.compress(b"") * (MOST_MEMBERS + 1),
            "gzip",
            f"followed by 20 other bytes, {MOST_MEMBERS} streams are read",
        ),
        (zlib.compress(b"abc") * 2, "deflate", "followed by 11 other bytes, 1 streams are read"),
    ],
    ids=["empty", "cut in its trailer", "cut in its second member", "garbage", "too many members", "two of zlib"],
)
def test_a_compressed_body_that_does_not_end_where_it_should_is_refused(
    body: bytes, encoding: str, complaint: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        decompress(body, encoding, 100)
    assert complaint in str(caught.value)
