"""What the demo feeds: a loopback file server and the held-out images, read with the standard library alone."""

from __future__ import annotations

import contextlib
import functools
import json
import struct
import threading
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKPOINT, EVALUATION, CLASSES = "checkpoint_best.pt", "evaluation.safetensors", "classes.json"


class DemoDataError(Exception):
    """The demo's model or data is not there."""


def directory() -> Path:
    """Return where checkpoint, evaluation data and class list lie: in the wheel, or in a source checkout.

    Raises:
        DemoDataError: when they are in neither.
    """
    package = Path(__file__).parent
    for candidate in (package / "kanji", package.parent.parent / "deploy" / "demo" / "kanji"):
        if (candidate / CHECKPOINT).is_file():
            return candidate
    raise DemoDataError(
        f"{CHECKPOINT} is neither in the package nor in deploy/demo/kanji; deploy/demo/train.py makes it"
    )


@contextlib.contextmanager
def file_server(root: Path) -> Iterator[str]:
    """Serve ``root`` on loopback while the block runs; yield the base URL."""
    handler = functools.partial(_Quiet, directory=str(root))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Say nothing."""


@dataclass(frozen=True)
class Images:
    """Held-out images and what they show.

    Attributes:
        shape: of one image with its batch dimension, ``(1, 1, 64, 64)``.
        pixels: one flat tuple of floats in [0, 1] per image.
        labels: index into ``classes`` per image.
        classes: the characters.
    """

    shape: tuple[int, ...]
    pixels: list[tuple[float, ...]]
    labels: list[int]
    classes: list[str]


def images(root: Path, count: int) -> Images:
    """Read ``count`` images, spread evenly over the evaluation set (float16 inputs, int64 labels)."""
    raw = (root / EVALUATION).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    rows, *shape = header["inputs"]["shape"]
    pixel_data, label_data = (_slice(body, header[name]) for name in ("inputs", "labels"))
    labels = struct.unpack(f"<{rows}q", label_data)
    numel = len(pixel_data) // 2 // rows
    chosen = [index * rows // count for index in range(min(count, rows))]
    pixels = [struct.unpack_from(f"<{numel}e", pixel_data, 2 * numel * index) for index in chosen]
    classes = json.loads((root / CLASSES).read_text(encoding="utf-8"))["classes"]
    return Images((1, *shape), pixels, [labels[index] for index in chosen], classes)


def _slice(body: bytes, entry: dict[str, Any]) -> bytes:
    begin, end = entry["data_offsets"]
    return body[begin:end]
