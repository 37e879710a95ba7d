"""A device's inference port as an operator asks it: where a token may go."""

from __future__ import annotations

import pytest

from agent.adapters.open_inference import Inference, InferenceError


@pytest.mark.parametrize(
    "url", ["http://box-17:8000", "http://192.0.2.1:8000/v2", "http://localhost.example", "http://127.0.0.1.example"]
)
def test_a_token_that_others_could_read_on_its_way_is_not_sent(url: str) -> None:
    with pytest.raises(InferenceError, match="readable on its way; it takes https"):
        Inference(url, token="a" * 16).model("kanji")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://[::1]:1/v2", "http://localhost:1", "https://127.0.0.1:1", "HTTPS://[::1]:1"]
)
def test_over_loopback_and_over_tls_it_is(url: str) -> None:
    with pytest.raises(InferenceError) as caught:  # nobody listens there
        Inference(url, token="a" * 16).model("kanji")
    assert caught.value.status is None
    assert "readable" not in str(caught.value)
