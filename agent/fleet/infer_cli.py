"""``nibblectl infer``: asks a model of a device, at the device's own HTTP port."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.adapters.open_inference import Inference, InferenceError
from agent.fleet.options import asks_models
from agent.fleet.rows import printable
from agent.fleet.target import UNREACHABLE, fail

if TYPE_CHECKING:
    from agent.fleet.target import Target

JsonObject = dict[str, Any]
REFUSED = 1
BEST = 3
"""Classes that are shown of a row."""


@click.command(short_help="Ask a model of a device.")
@click.argument("model")
@click.argument(
    "request", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@click.option("--zeros", is_flag=True, help="Send zeros in the shape that the model wants: does it answer?")
@click.option("--text", help="Let a language model go on with a text.")
@asks_models
@click.pass_obj
def infer(target: Target, model: str, request: Path | None, *, zeros: bool, text: str | None) -> None:
    """Ask MODEL of --device at --url, by the Open Inference Protocol.

    REQUEST is its JSON (- for stdin), such as {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2],
    "data": [0, 0]}]}.
    """
    if sum((request is not None, zeros, text is not None)) != 1:
        raise click.UsageError("give a REQUEST, or --zeros, or --text")
    asked = Inference(target.inference_url(), target.token(), target.ca_file, target.wait_s or 60.0)
    try:
        if text is not None:
            answer = asked.generate(model, text)
        else:
            body = json.dumps(_zeros(asked.model(model))).encode() if zeros else _content(request)
            answer = asked.infer(model, body)
    except InferenceError as error:
        hint = "is the port open to others (serving.host), and --url right?" if error.status is None else ""
        fail(f"{error}" + (f"\n  {hint}" if hint else ""), UNREACHABLE if error.status is None else REFUSED)
    click.echo(json.dumps(answer) if target.as_json else "\n".join(printable(line) for line in answer_lines(answer)))


def answer_lines(answer: JsonObject) -> list[str]:
    """Return an answer for people: the best classes of each row, or the shape of what is no row of classes."""
    if "text_output" in answer:
        return str(answer["text_output"]).splitlines() or [""]
    lines = [f"{answer.get('model_name')} {answer.get('model_version') or ''}".rstrip()]
    for output in answer.get("outputs", ()):
        shape, data = output["shape"], output.get("data")
        lines.append(f"{output['name']} {output['datatype']} {shape}")
        if data and len(shape) == 2 and len(data) == math.prod(shape):  # noqa: PLR2004 - rows of classes
            width = shape[1]
            for row in range(shape[0]):
                values = data[row * width : (row + 1) * width]
                best = sorted(range(width), key=values.__getitem__, reverse=True)[:BEST]
                lines.append(f"  row {row}: " + ", ".join(f"class {each} ({values[each]:.3g})" for each in best))
    return lines


def _zeros(metadata: JsonObject) -> JsonObject:
    """Return a request of zeros; one where the model leaves the size to the client."""
    inputs = []
    for each in metadata["inputs"]:
        shape = [max(1, size) for size in each["shape"]]
        inputs.append(
            {"name": each["name"], "datatype": each["datatype"], "shape": shape, "data": [0] * math.prod(shape)}
        )
    return {"inputs": inputs}


def _content(request: Path | None) -> bytes:
    content = sys.stdin.buffer.read() if str(request) == "-" else Path(str(request)).read_bytes()
    try:
        json.loads(content)
    except ValueError as error:
        fail(f"{request}: no JSON: {error}", 2)
    return content
