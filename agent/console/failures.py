"""Failures of Jetsons and of their libraries that are known by their words, with what they mean and what helps. Pure.

None of them says what it is: an out-of-memory shows as an assertion about NVML, a library built for another machine as
a missing symbol. ``README.md`` and ``docs/troubleshooting.md`` have the same in more words.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A failure that others had before.

    Attributes:
        signs: texts of which one is in the message.
        meaning: what it is in truth.
        next_step: what helps.
    """

    signs: tuple[str, ...]
    meaning: str
    next_step: str


_FREE = "free memory: undeploy a model, end the desktop (sudo systemctl isolate multi-user), or raise memory.reserve"
KNOWN = (
    Known(
        ("named symbol not found",),
        "this bitsandbytes was built for another GPU or for server Arm; it imports, and its first kernel fails",
        "build it from source with -DCOMPUTE_CAPABILITY=87 (Orin; 72 for Xavier), or take the Jetson AI Lab's wheel; "
        "until then torch alone unpacks the same weights",
    ),
    Known(
        ("NVML_SUCCESS == r INTERNAL ASSERT",),
        "memory ran out: on a Jetson torch's allocator asks NVML about it, which knows no memory there",
        _FREE,
    ),
    Known(
        ("NvMap",),
        "the driver found no memory, or none in one piece: it gets fragmented while a board is up",
        f"{_FREE}; where much is free, reboot",
    ),
    Known(
        ("libcusparseLt",),
        "cuSPARSELt is missing, which NVIDIA's torch for JetPack needs and does not bring",
        "install cuSPARSELt for this CUDA (package cusparselt, or the installer that NVIDIA's page on PyTorch for "
        "Jetson names), then: sudo ldconfig",
    ),
    Known(
        ("no kernel image is available",),
        "this build has no code for this GPU",
        "install a torch (and bitsandbytes) that is built for this board: on a Jetson, the one for its JetPack",
    ),
    Known(
        ("CUDA driver version is insufficient", "driver on your system is too old"),
        "torch was built for a newer CUDA than the driver knows",
        "install the torch for this JetPack, or a newer driver",
    ),
    Known(
        ("Torch not compiled with CUDA enabled",),
        "this torch was built without CUDA, as the one of PyPI for Arm is",
        "on a Jetson install NVIDIA's torch for its JetPack; pip must not replace it (docs/jetson.md)",
    ),
    Known(
        ("No module named 'torch'",),
        "torch is not installed in this environment",
        "on a Jetson: NVIDIA's torch, and a venv with --system-site-packages; else: pip install 'nibbled[model]'",
    ),
    Known(
        ("No module named 'bitsandbytes'",),
        "bitsandbytes is not installed: torch alone unpacks the weights, slower",
        "on a Jetson build it from source or take the Jetson AI Lab's wheel; else: pip install bitsandbytes",
    ),
    Known(
        ("version mismatch",),
        "the driver's library was upgraded under the running driver",
        "reboot, or load the driver's module anew",
    ),
    Known(
        ("out of memory", "can't allocate memory"),
        "memory ran out",
        _FREE,
    ),
)


def recognise(text: str | None) -> Known | None:
    """Return the known failure whose words are in ``text``; upper and lower case count alike."""
    lower = (text or "").lower()
    return next((known for known in KNOWN if any(sign.lower() in lower for sign in known.signs)), None)
