"""Print the table of ``dependencies.md``: installed size and reason of every package that a device carries."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

REASONS = {
    "paho-mqtt": ("MQTT 5 client", "the field's standard; no dependencies"),
    "pydantic": ("parses every message and setting", "hand-written validation"),
    "pydantic-core": ("compiled part of pydantic", ""),
    "pydantic-settings": ("TOML and environment", ""),
    "structlog": ("structured logs", ""),
    "nvidia-ml-py": ("NVML; the maintained home of `pynvml`", ""),
    "urllib3": ("downloads with ranges and TLS", "httpx: more packages for the same"),
    "cryptography": ("Ed25519 signatures", "calling `openssl`"),
    "click": ("command line", "typer: twelve packages"),
    "rich": ("demo and terminal output", ""),
    "uvicorn": ("HTTP server of the inference process", ""),
    "httptools": ("its parser", "h11, in Python"),
    "uvloop": ("its event loop", "asyncio's own"),
    "orjson": ("tensors as JSON", "`json`, several times slower on arrays"),
    "pysimdjson": ("arrays of numbers in requests", "orjson alone, half as fast on them"),
    "numpy": ("tensors on the wire", ""),
    "safetensors": ("artifacts: mapped, never executed", "pickle"),
    "grpcio": ("gRPC; the extra `grpc`", "`grpclib` on `h2`: HTTP/2 in Python"),
    "protobuf": ("its messages; the same extra", ""),
    "tomli": ("TOML on Python 3.10", ""),
}


def size_mib(name: str) -> float | None:
    """Return the installed size of a package, None where it is not installed."""
    try:
        files = distribution(name).files or []
    except ModuleNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files)
    return sum(path.stat().st_size for path in paths if path.is_file()) / 2**20


def main() -> None:
    """Print one row a package."""
    for name, (reason, instead) in REASONS.items():
        size = size_mib(name)
        print(f"| {name} | {'-' if size is None else f'{size:.1f}'} | {reason} | {instead} |")


if __name__ == "__main__":
    main()
