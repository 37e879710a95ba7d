"""What the servers are loaded with beside each other: requests that all of them can read, of real pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agent.serving.oip import parse_request
from deploy.bench.beside.load import FORMS, noise, pictures, request


def test_pictures_are_drawings_in_three_alike_colours_and_no_two_are_the_same() -> None:
    found = pictures(16)
    assert (found.shape, found.dtype) == ((16, 3, 32, 32), np.float32)
    assert 0 <= found.min() < 0.1
    assert 0.9 < found.max() <= 1
    assert (found[:, :1] == found).all()
    assert len({picture.tobytes() for picture in found}) == 16


@pytest.mark.parametrize("form", FORMS)
def test_every_form_carries_the_row_of_its_number(form: str) -> None:
    expected = (noise if form == "noise" else pictures)(3)[2:]
    head, _, body = request(form, 80, "/v2/models/cnn/infer", 2).partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert int(fields[b"Content-Length"]) == len(body)
    if form == "lit":
        assert np.array_equal(np.array(json.loads(body)["data"], np.float32).reshape(expected.shape), expected)
        return
    length = fields.get(b"Inference-Header-Content-Length")
    assert (length is None) == (form == "json")
    (tensor,) = parse_request(body, None if length is None else int(length)).inputs
    assert np.array_equal(tensor.data, expected)
