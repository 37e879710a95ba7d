"""Packed layers compute what torch's own layers compute with the unpacked weights, in a fraction of the memory."""

from __future__ import annotations

import copy
import importlib
import logging
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from agent.planning.methods import BLOCKSIZES, METHODS, Method
from agent.quantization import codebooks, kernels, layers, modules, packed
from agent.quantization.assignment import large_enough
from agent.quantization.layers import PackedLinear
from agent.quantization.packed import PackedTensor
from agent.quantization.recurrent import PackedRecurrent
from agent.quantization.swap import pack_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NF4_DQ = METHODS["nf4-dq"]
PACKING = [method for method in METHODS.values() if method.name != "fp32"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    fused = torch.backends.mha.get_fastpath_enabled()
    yield
    torch.backends.mha.set_fastpath_enabled(value=fused)


def test_bitsandbytes_fetches_no_code_and_its_warning_of_that_is_held_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looked: list[object] = []

    def importing(name: str) -> str:
        looked.append(sys.modules.get("kernels", "not looked at"))
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward: %s", "x")
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("something else")
        return name

    monkeypatch.setattr(kernels._held_back, "was_said", False)
    monkeypatch.setattr(importlib, "import_module", importing)
    assert kernels.bitsandbytes.__wrapped__() == "bitsandbytes"
    assert looked == [None], "an import of the package that fetches code would fail"
    assert "kernels" not in sys.modules
    assert kernels.lacks_fused_kernel()
    assert [record.message for record in caplog.records] == ["something else"]


def test_packed_weights_are_computed_with_and_the_compiler_is_not_imported_for_it() -> None:
    program = """
import sys, torch
from torch import nn
from agent.quantization import kernels
from tests.contract.test_quantization_layers import METHODS, packed_twin
hidden = torch._disable_dynamo
for method in ("nf4", "fp4-dq", "int8"):
    with torch.inference_mode():
        assert packed_twin(nn.Sequential(nn.Linear(256, 256)), METHODS[method])(torch.ones(2, 256)).isfinite().all()
assert kernels.kernel(torch.device("cpu"), "nf4").is_bitsandbytes
assert torch._disable_dynamo is hidden
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class Holder(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


def packed_twin(source: nn.Module, method: Method = NF4_DQ, blocksize: int = 64) -> nn.Module:
    """Return ``source`` with its layers packed; ``source`` keeps its own weights."""
    twin = pack_layers(copy.deepcopy(source), large_enough(method), blocksize)
    weights = source.state_dict()
    for name, module in twin.named_modules():
        if isinstance(module, PackedTensor):
            for part, value in packed.pack(weights[name], method, blocksize).items():
                module.register_buffer(part, value)
    return twin.eval()


def rounded(source: nn.Module, twin: nn.Module) -> nn.Module:
    """Return ``source`` with the weights that its packed twin stands for."""
    weights = source.state_dict()
    for name, module in twin.named_modules():
        if isinstance(module, PackedTensor):
            weights[name] = module.unpack()
    result = copy.deepcopy(source)
    result.load_state_dict(weights)
    return result.eval()


def assert_equal(got: Any, want: Any) -> None:
    if isinstance(want, PackedSequence):
        got, want = got.data, want.data
    if isinstance(want, Tensor):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    elif want is not None:
        for one, other in zip(got, want, strict=True):
            assert_equal(one, other)


def assert_same_function(layer: nn.Module, *args: Any, method: Method = NF4_DQ, **kwargs: Any) -> nn.Module:
    source = Holder(layer).eval()
    twin = packed_twin(source, method)
    torch.backends.mha.set_fastpath_enabled(value=False)
    with torch.inference_mode():
        assert_equal(twin(*args, **kwargs), rounded(source, twin)(*args, **kwargs))
    assert any(isinstance(module, PackedTensor) for module in twin.modules())
    return twin


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("numel", [1, 7, 4096, 100_003])
def test_bitsandbytes_and_torch_pack_and_unpack_to_the_same_bits(
    quant_type: codebooks.QuantType, blocksize: int, numel: int
) -> None:
    weights = torch.randn(numel)
    ours = kernels.pack_4bit_torch(weights, quant_type, blocksize)
    theirs = kernels._pack_bitsandbytes(weights, quant_type, blocksize)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    unpacked = kernels.unpack_4bit_torch(*ours, quant_type, blocksize, numel)
    assert torch.equal(kernels.unpack_4bit(*ours, quant_type, blocksize, numel), unpacked)


def test_chunks_do_not_change_a_code() -> None:
    weights = torch.randn(3 * kernels.CHUNK_NUMEL + 77)
    codes, scales = kernels.pack_4bit(weights, "nf4", 4096)
    whole_codes, whole_scales = kernels.pack_4bit_torch(weights, "nf4", 4096)
    assert torch.equal(codes, whole_codes)
    assert torch.equal(scales, whole_scales)


def test_codebooks_are_those_of_bitsandbytes() -> None:
    from bitsandbytes import functional  # noqa: PLC0415 - slow, and only here

    assert torch.equal(codebooks.dynamic_8bit(CPU), functional.create_dynamic_map())
    for quant_type in ("nf4", "fp4"):
        assert torch.equal(codebooks.four_bit(quant_type, CPU), functional.get_4bit_type(quant_type, device="cpu"))


def test_double_quantization_is_at_least_as_close_as_that_of_bitsandbytes() -> None:
    from bitsandbytes import functional  # noqa: PLC0415 - slow, and only here

    weights = torch.randn(1 << 20)
    _, scales = kernels.pack_4bit(weights, "nf4", 64)
    codes, nested, offset = kernels.pack_scales(scales)
    _, state = functional.quantize_4bit(weights, blocksize=64, quant_type="nf4", compress_statistics=True)
    assert torch.equal(nested, state.state2.absmax)
    assert torch.equal(offset[0], state.offset)
    theirs = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    ours = kernels.unpack_scales(codes, nested, offset)
    assert (ours - scales).norm() <= (theirs - scales).norm()


def test_nothing_on_the_cpu_reaches_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.backends.default import ops  # noqa: PLC0415 - slow, and only here

    def compiled(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("an operator that torch.compile wraps was called")

    for name in ("_dequantize_4bit_compute", "_dequantize_blockwise_compute"):
        monkeypatch.setattr(ops, name, compiled)
    for shape in ((64, 7, 3, 3), (101, 77), (4097,)):
        for blocksize in BLOCKSIZES:
            for method in PACKING:
                tensor = PackedTensor(shape, method, blocksize)
                weights = torch.randn(shape)
                for part, value in packed.pack(weights, method, blocksize).items():
                    tensor.register_buffer(part, value)
                assert tensor.unpack().shape == shape


@pytest.mark.parametrize("method", PACKING, ids=lambda method: method.name)
@pytest.mark.parametrize("shape", [(4096,), (100, 77), (64, 32, 3, 3), (3,)])
def test_a_packed_tensor_has_exactly_the_bytes_of_the_method_table(method: Method, shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape)
    parts = packed.pack(weights, method, 64)
    assert sum(part.nbytes for part in parts.values()) == method.tensor_bytes(weights.numel())
    held = {name: (tuple(part.shape), part.dtype) for name, part in parts.items()}
    assert held == packed.layout(method, shape, 64)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("nf4", 0.090, 0.094), ("fp4", 0.118, 0.126), ("int8", 0.004, 0.008), ("fp16", 1e-5, 1e-3)],
)
def test_rounding_normal_weights_loses_what_the_literature_says(name: str, least: float, most: float) -> None:
    method, weights = METHODS[name], torch.randn(1 << 18)
    tensor = PackedTensor((1 << 18,), method, 64)
    for part, value in packed.pack(weights, method, 64).items():
        tensor.register_buffer(part, value)
    assert least < float((tensor.unpack() - weights).norm() / weights.norm()) < most


def test_scales_keep_their_dtype_when_a_module_is_halved() -> None:
    twin = packed_twin(nn.Sequential(nn.Linear(256, 64)))
    before = {name: value.clone() for name, value in twin.state_dict().items() if ".weight." in name}
    twin.half()
    after = twin.state_dict()
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("method", PACKING, ids=lambda method: method.name)
@pytest.mark.parametrize(
    ("make", "args"),
    [
        (lambda: nn.Linear(256, 100), (torch.randn(5, 256),)),
        (lambda: nn.Linear(100, 77, bias=False), (torch.randn(2, 5, 100),)),
        (lambda: nn.Conv2d(64, 64, 3, groups=4, stride=2, dilation=2), (torch.randn(2, 64, 9, 9),)),
        (lambda: nn.Conv2d(512, 512, 3, groups=512, padding="same"), (torch.randn(2, 512, 4, 4),)),
        (lambda: nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"), (torch.randn(2, 32, 9, 9),)),
        (lambda: nn.Conv1d(64, 64, 5, bias=False), (torch.randn(2, 64, 9),)),
        (lambda: nn.Embedding(100, 128), (torch.tensor([[0, 3], [99, 3]]),)),
        (lambda: nn.Embedding(100, 100, padding_idx=0), (torch.tensor([0, 99]),)),
    ],
)
def test_layers_compute_the_same(make: Callable[[], nn.Module], args: tuple[Tensor, ...], method: Method) -> None:
    assert_same_function(make(), *args, method=method)


def test_a_wide_linear_is_unpacked_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "UNPACKED_NUMEL_CPU", 128 * 10)
    pieces = []
    whole = PackedTensor.unpack_in_steps

    def counted(self: PackedTensor, step: int, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        for start, piece in whole(self, step, dtype):
            pieces.append(piece.shape[0])
            yield start, piece

    monkeypatch.setattr(PackedTensor, "unpack_in_steps", counted)
    assert_same_function(nn.Linear(128, 96), torch.randn(2, 3, 128))
    assert pieces == [10] * 9 + [6]


def test_a_piece_is_gone_before_the_next_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "UNPACKED_NUMEL_CPU", 128 * 10)
    pieces: list[weakref.ref[Tensor]] = []
    unpack = PackedTensor._unpack_some

    def watched(self: PackedTensor, rows: Tensor | slice, scales: Tensor, dtype: torch.dtype) -> Tensor:
        assert all(piece() is None for piece in pieces)
        piece = unpack(self, rows, scales, dtype)
        pieces.append(weakref.ref(piece))
        return piece

    monkeypatch.setattr(PackedTensor, "_unpack_some", watched)
    assert_same_function(nn.Linear(128, 96), torch.randn(2, 3, 128))
    assert len(pieces) == 10


def sequences() -> PackedSequence:
    return pack_padded_sequence(torch.randn(3, 7, 64), torch.tensor([3, 7, 5]), batch_first=True, enforce_sorted=False)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    ("options", "make_input"),
    [
        ({"num_layers": 2, "bidirectional": True, "batch_first": True}, lambda: torch.randn(3, 7, 64)),
        ({"num_layers": 2, "bias": False}, lambda: torch.randn(7, 3, 64)),
        ({"num_layers": 1}, lambda: torch.randn(7, 64)),
        ({"num_layers": 2, "bidirectional": True, "batch_first": True}, sequences),
    ],
)
def test_recurrent_layers_compute_the_same(
    kind: Callable[..., nn.RNNBase], options: dict[str, Any], make_input: Callable[[], Any]
) -> None:
    layer = kind(64, 128, **options)
    x = make_input()
    twin = assert_same_function(layer, x)
    is_batched = isinstance(x, PackedSequence) or x.dim() == 3
    directions = 2 if layer.bidirectional else 1
    state: Any = torch.randn(layer.num_layers * directions, *([3] if is_batched else []), 128)
    assert_same_function(layer, x, (state, state * 2) if kind is nn.LSTM else state)
    assert isinstance(twin.layer, PackedRecurrent)


def test_an_lstm_shrinks_in_memory_and_not_only_in_the_file() -> None:
    source = Holder(nn.LSTM(256, 256, num_layers=2, bidirectional=True))
    twin = packed_twin(source)
    with torch.inference_mode():
        twin(torch.randn(5, 1, 256))
    full = sum(parameter.nbytes for parameter in source.parameters())
    assert modules.resident_bytes(source) == full
    assert modules.resident_bytes(twin) < full / 7.4


def test_resident_bytes_count_the_copies_that_torchs_lstm_hides() -> None:
    layer = nn.LSTM(64, 64)
    hidden = [weight.detach().clone() for weight in layer.parameters()]
    before = modules.resident_bytes(layer)
    layer._flat_weights = [*hidden]  # as a parametrization leaves it
    assert modules.resident_bytes(layer) == 2 * before


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_computes_the_same_and_packs_both_projections(*, batch_first: bool) -> None:
    x = torch.randn(3, 5, 128)
    mask = torch.zeros(3, 5, dtype=torch.bool) if batch_first else None
    twin = assert_same_function(nn.MultiheadAttention(128, 8, batch_first=batch_first), x, x, x, key_padding_mask=mask)
    names = {name for name, module in twin.named_modules() if isinstance(module, PackedTensor)}
    assert names == {"layer.in_proj_weight", "layer.out_proj.weight"}


def test_a_whole_transformer_encoder_computes_the_same() -> None:
    block = nn.TransformerEncoderLayer(128, 8, 256, batch_first=True)
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    assert_same_function(encoder, torch.randn(2, 6, 128), src_key_padding_mask=torch.zeros(2, 6, dtype=torch.bool))


def test_the_state_of_a_layer_is_the_same_before_and_after_its_forward_pass() -> None:
    twin = packed_twin(nn.Sequential(nn.Linear(256, 96)))
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    with torch.inference_mode():
        first = twin(torch.ones(1, 256))
        after = twin.state_dict()
        assert torch.equal(twin(torch.ones(1, 256)), first)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before)


class Conv1D(nn.Module):
    """A Linear with its weight the other way round, as Hugging Face's GPT-2 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(128, 64))
        self.bias = nn.Parameter(torch.randn(64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def test_the_transposed_linear_of_hugging_face_is_packed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conv1D, "__module__", "transformers.pytorch_utils")
    twin = assert_same_function(Conv1D(), torch.randn(2, 3, 128))
    assert isinstance(twin.layer, PackedLinear)


class LoudLinear(nn.Linear):
    """A subclass with a mind of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class QuietLinear(nn.Linear):
    """A subclass in name only."""


def test_a_subclass_is_packed_only_if_it_computes_what_its_parent_computes() -> None:
    model = nn.Sequential(LoudLinear(128, 128), QuietLinear(128, 128))
    pack_layers(model, large_enough(NF4_DQ), 64)
    assert type(model[0]) is LoudLinear
    assert isinstance(model[1], PackedLinear)


def test_small_and_unknown_layers_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LSTMCell(64, 64), nn.ConvTranspose2d(32, 32, 3), nn.LayerNorm(5000))
    twin = pack_layers(model, large_enough(NF4_DQ), 64)
    assert not any(isinstance(module, PackedTensor) for module in twin.modules())


def test_tied_weights_are_packed_once_and_stay_tied() -> None:
    embedding, head = nn.Embedding(100, 128), nn.Linear(128, 100, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    pack_layers(model, large_enough(NF4_DQ), 64)
    assert model["head"].weight is model["embedding"].weight
    assert next(iter(modules.slots(model).values())) == ("embedding.weight.codes", "head.weight.codes")


def test_fp32_packs_nothing() -> None:
    method = METHODS["fp32"]
    model = nn.Sequential(nn.Linear(512, 512))
    pack_layers(model, large_enough(method), 64)
    assert type(model[0]) is nn.Linear
