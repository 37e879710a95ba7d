"""Judge what was measured against what was demanded. Pure: measurements in, complaints out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


MAX_SLOWDOWN = 20.0
"""How much slower a release may be than the one it replaces: far beyond what a busy device does to a measurement."""
UNNOTICED_MS = 25.0
"""An answer that takes no longer is not called slow, however fast the one before was."""


@dataclass(frozen=True)
class Thresholds:
    """What a model has to prove; None is not asked for.

    Attributes:
        max_slowdown: how many times the latency of the release that it replaces, as that one's canary measured it.
        judges_synthetic: whether ``min_agreement`` was demanded by somebody, and so holds on made-up inputs too. As a
            default it does not: on noise a classifier's best classes lie so close together that the smallest change
            of a weight reorders them. There the cosine between the answers is judged instead.
    """

    min_agreement: float = 0.95
    max_accuracy_drop: float = 0.02
    min_accuracy: float | None = None
    max_latency_ms: float | None = None
    max_slowdown: float = MAX_SLOWDOWN
    judges_synthetic: bool = False


# Comparisons are written so that NaN, which compares false with everything, never passes.


def judge(measured: Mapping[str, Any], demanded: Thresholds) -> list[str]:
    """Return why ``measured`` is not good enough, one sentence each; an empty list means that it passed.

    Args:
        measured: ``agreement`` (None for embeddings of too few rows), ``non_finite``, ``accuracy`` and
            ``accuracy_source`` (None without labels and for embeddings) and ``latency_ms.p50``, as the builder's gate
            and the server's canary report them; ``inputs`` says whether they are a ``dataset`` or ``synthetic``,
            ``answer`` whether the model answers with ``classes``, as it does if nothing is said, or an ``embedding``;
            ``replaces_p50_ms`` is what the release before took, None or absent without one.
        demanded: the thresholds.
    """
    complaints = []
    if measured["non_finite"]:
        complaints.append(f"{measured['non_finite']} of {measured['rows']} answers are not finite")
    if measured.get("inputs") == "synthetic" and not demanded.judges_synthetic:
        complaints += _judge_cosine(measured)
    else:
        complaints += _judge_agreement(measured, demanded.min_agreement)
    complaints += _judge_accuracy(measured, demanded)
    return complaints + _judge_latency(measured, demanded)


def _judge_latency(measured: Mapping[str, Any], demanded: Thresholds) -> list[str]:
    latency, before = measured["latency_ms"]["p50"], measured.get("replaces_p50_ms")
    complaints = []
    if demanded.max_latency_ms is not None and not latency <= demanded.max_latency_ms:
        complaints.append(f"latency p50 {latency:.2f} ms, at most {demanded.max_latency_ms} ms demanded")
    if before is not None and not latency <= max(UNNOTICED_MS, demanded.max_slowdown * before):
        complaints.append(
            f"latency p50 {latency:.2f} ms, {before:.2f} ms before: more than {demanded.max_slowdown:g} times as long; "
            "gate.max_slowdown allows more"
        )
    return complaints


def _judge_agreement(measured: Mapping[str, Any], least: float) -> list[str]:
    """Judge the share of rows that kept their class or, embeddings, their nearest neighbour."""
    share = measured["agreement"]
    what = "agreement of nearest neighbours" if _is_embedding(measured) else "agreement"
    if share is None:
        told = f"{what} {least} demanded, but {measured['rows']} rows are too few to tell; give at least 3"
        return [told] if least > 0 else []
    return [] if share >= least else [f"{what} {share:.4f} with the source, {least} demanded"]


def _is_embedding(measured: Mapping[str, Any]) -> bool:
    return measured.get("answer") == "embedding"


MIN_SYNTHETIC_COSINE = 0.95


def _judge_cosine(measured: Mapping[str, Any]) -> list[str]:
    """Judge answers to made-up inputs by their direction; a canary, which does not measure it, by nothing."""
    if "cosine" not in measured or (measured["cosine"] or 0.0) >= MIN_SYNTHETIC_COSINE:
        return []
    where = f"on {measured['rows']} synthetic inputs"
    told = f"cosine {measured['cosine'] or 0.0:.4f} with the source {where}, {MIN_SYNTHETIC_COSINE} demanded"
    return [f"{told}; give gate.dataset to be judged by real ones"]


def _judge_accuracy(measured: Mapping[str, Any], demanded: Thresholds) -> list[str]:
    accuracy, source = measured.get("accuracy"), measured.get("accuracy_source")
    complaints = []
    if demanded.min_accuracy is not None:
        if accuracy is None:
            why = "an embedding has no classes" if _is_embedding(measured) else "the evaluation data has no labels"
            complaints.append(f"accuracy {demanded.min_accuracy} demanded, but {why}")
        elif not accuracy >= demanded.min_accuracy:
            complaints.append(f"accuracy {accuracy:.4f}, {demanded.min_accuracy} demanded")
    if accuracy is not None and source is not None and not source - accuracy <= demanded.max_accuracy_drop:
        complaints.append(
            f"accuracy fell from {source:.4f} to {accuracy:.4f}, a drop of {demanded.max_accuracy_drop} is allowed"
        )
    return complaints
