"""Another frame may be put into a stream of HTTP/2 frames, wherever its bytes were cut."""

from __future__ import annotations

import pytest

from agent.serving.grpc.frames import GO_AWAY, Boundaries


def frame(kind: int, body: bytes, flags: int = 0) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + b"\x00\x00\x00\x01" + body


FRAMES = [
    frame(4, b""),
    frame(1, b"head"),
    frame(9, b"more", 4),
    frame(0, b"x" * 300),
    frame(1, b"end", 5),
    frame(6, b"8" * 8),
]
# Behind the HEADERS without END_HEADERS nothing may be put but its CONTINUATION.
PLACES = [sum(map(len, FRAMES[:count])) for count in (1, 3, 4, 5, 6)]


@pytest.mark.parametrize("size", [1, 2, 8, 9, 10, 13, 64, 10_000])
def test_the_last_place_of_every_piece_is_found_and_no_other(size: int) -> None:
    stream, boundaries = b"".join(FRAMES), Boundaries()
    assert not boundaries.is_at
    for start in range(0, len(stream), size):
        piece = stream[start : start + size]
        inside = [place - start for place in PLACES if start < place <= start + len(piece)]
        assert boundaries.follow(piece) == (inside[-1] if inside else None)
        assert boundaries.is_at == (start + len(piece) in PLACES)


def test_the_frame_that_sends_away_is_a_whole_frame() -> None:
    boundaries = Boundaries()
    assert boundaries.follow(GO_AWAY) == len(GO_AWAY)
