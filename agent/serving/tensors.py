"""Tensors as the protocol names them, held in numpy arrays. Pure.

BF16 has no numpy type: its arrays are ``uint16`` holding the bits, and only the runtime gives them a meaning.
The elements of BYTES have no size: its arrays hold ``bytes`` objects, see ``byte_strings``. No artifact has such
a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# Names and sizes: Open Inference Protocol, "Tensor Data Types"; BF16 as Triton added it. Wire order is little-endian.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
BYTES = "BYTES"
DATATYPE_NAMES = (*DATATYPES, BYTES)
BINARY_ONLY = frozenset({"FP16", "BF16"})
FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
# Exponent bits of a BF16: all set means infinity or NaN.
BF16_EXPONENT = 0x7F80
FP16_MAX = 65504.0


@dataclass(frozen=True)
class Dimension:
    """A dimension of any size, of which more is known.

    Attributes:
        axis: which one; its size in the shape is -1.
        name: dimensions of one name have one size in a request, whichever inputs they belong to.
        maximum: the largest size that the model can take, None without a bound.
    """

    axis: int
    name: str
    maximum: int | None = None


@dataclass(frozen=True)
class TensorSpec:
    """What a model declares about one input or output.

    Attributes:
        name: as clients must call it.
        datatype: a key of ``DATATYPES``.
        shape: -1 stands for any size; the first dimension counts rows when it is -1.
        minimum, maximum: the values that the model can take, None without a bound.
        dimensions: what is known of those of any size; artifacts of before it was told have none.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    minimum: int | None = None
    maximum: int | None = None
    dimensions: tuple[Dimension, ...] = ()

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> TensorSpec:
        """Read a sidecar's object; raises ``KeyError`` or ``ValueError`` for anything else."""
        if body["datatype"] not in DATATYPES:
            raise ValueError(f"datatype {body['datatype']!r} of {body['name']!r} is none of {', '.join(DATATYPES)}")
        shape = tuple(int(size) for size in body["shape"])
        dimensions = tuple(
            Dimension(int(each["axis"]), str(each["name"]), each.get("maximum")) for each in body.get("dimensions", ())
        )
        for each in dimensions:
            if not 0 <= each.axis < len(shape) or shape[each.axis] != -1:
                raise ValueError(f"dimension {each.name!r} of {body['name']!r} is axis {each.axis} of {list(shape)}")
        bounds = body.get("minimum"), body.get("maximum")
        return cls(str(body["name"]), str(body["datatype"]), shape, *bounds, dimensions)

    def to_json(self) -> dict[str, Any]:
        """Return the metadata object of the protocol, which knows no bounds."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Tensor:
    """A named array. ``data`` has the tensor's shape and the numpy type of ``datatype``."""

    name: str
    datatype: str
    data: Array


def is_finite(tensor: Tensor) -> bool:
    """Return whether no element is NaN or infinite."""
    if tensor.datatype == "BF16":
        return bool(((tensor.data & BF16_EXPONENT) != BF16_EXPONENT).all())
    return tensor.datatype not in FLOATS or bool(np.isfinite(tensor.data).all())


def fits_half(tensor: Tensor) -> bool:
    """Return whether every element is a number that FP16 can hold, in which a GPU computes: at most 65504 in size."""
    if tensor.datatype not in FLOATS:
        return True
    return bool((np.abs(as_floats(tensor)) <= FP16_MAX).all())


def as_floats(tensor: Tensor) -> Array:
    """Return the elements as numbers that numpy computes with, also those of BF16."""
    data = tensor.data
    return (data.astype("<u4") << 16).view("<f4") if tensor.datatype == "BF16" else data
