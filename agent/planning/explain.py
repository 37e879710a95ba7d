"""A decision record in sentences, for somebody who has never read a guide to quantization. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WORDS = {
    "nf4": "4 bits a weight, values spaced as a normal distribution",
    "nf4-dq": "as nf4, its scales quantized too: 8 % smaller",
    "fp4": "4 bits a weight, a tiny floating-point number",
    "fp4-dq": "as fp4, its scales quantized too: 8 % smaller",
    "int8": "8 bits a weight",
    "fp16": "half precision, 16 bits a weight",
    "fp32": "full precision, 32 bits a weight",
    "mixed": "4 bits for most weights, 8 or 16 for those whose error costs most",
}
_SOURCES = {
    "nvml": "the GPU's driver (NVML)",
    "cuda": "CUDA",
    "meminfo": "the operating system (/proc/meminfo)",
    "cgroup": "the limit of the agent's control group",
    "profile": "the device's profile",
}


def explain(decision: Mapping[str, Any], *, has_failed: bool = False) -> list[str]:
    """Return what was decided and why, a sentence a fact; what a record does not hold is left out.

    A record of another version of the agent, whose form differs, is told by its reason alone.

    Args:
        decision: the record.
        has_failed: whether its operation ended without success: what was to be kept then is not.
    """
    try:
        told = {**decision, "has_failed": has_failed}
        return [sentence for part in _PARTS for sentence in part(told)]
    except (AttributeError, KeyError, TypeError, ValueError):
        reason = decision.get("reason")
        return [reason] if isinstance(reason, str) else []


def _plan(decision: Mapping[str, Any]) -> Iterator[str]:
    if "scenario" not in decision:
        return
    if decision.get("requested", "auto") != "auto":
        yield f"{decision['requested']} ({WORDS[decision['requested']]}) was asked for by name."
        return
    rule = decision["rule"]
    why = "no special case applies to it" if rule == "no earlier row applies" else rule
    yield f"This device and model are the case '{decision['scenario']}' of the decision matrix: {why}."
    planned = decision.get("planned")
    if planned:
        yield f"Planned for it: {planned} ({WORDS[planned]}), since {decision['rationale']}."


def _memory(decision: Mapping[str, Any]) -> Iterator[str]:
    budget = decision.get("budget")
    if not budget:
        return
    own = budget.get("reclaimable_bytes")
    held = f" and {size(own)} that the model holds now" if own else ""
    limit = budget.get("limit_bytes")
    limited = f", limited to {size(limit)} by configuration" if limit is not None else ""
    room = budget.get("room_bytes", budget["bytes"])
    promised = budget.get("promised_bytes")
    texts = f", {size(promised)} are promised to texts of what is loaded" if promised else ""
    yield (
        f"It may take {size(room)}: {_SOURCES.get(budget['source'], budget['source'])} says that "
        f"{size(budget['available_bytes'])} of {size(budget['total_bytes'])} are free{held}, and "
        f"{size(budget['reserve_bytes'])} stay in reserve{texts}{limited}."
    )
    if decision.get("admission") == "unload_first":
        yield "Old and new form do not fit side by side: the old one goes first, and requests wait meanwhile."


def _weighed(decision: Mapping[str, Any]) -> Iterator[str]:
    candidates = decision.get("candidates") or ()
    if candidates:
        told = ", ".join(
            f"{each['method']} {size(each['estimated_bytes'])} ({'fits' if each['fits'] else 'no: ' + _no(each)})"
            for each in candidates
        )
        yield f"Estimated need, weights and what answering takes: {told}."


def _texts(decision: Mapping[str, Any]) -> Iterator[str]:
    texts = decision.get("texts")
    if texts:
        several = "one text" if texts["sequences"] == 1 else f"up to {texts['sequences']} texts"
        each, context = size(texts["token_bytes"]), f"{texts['context_tokens']:,}"
        yield (
            f"It writes {several} at a time, with {texts['tokens']:,} tokens together: {size(texts['bytes'])} for "
            f"their keys and values, {each} a token; one text may have {context}."
        )


def _no(candidate: Mapping[str, Any]) -> str:
    return "failed its self-test here" if "self-test" in candidate["why"] else "too large"


def _measured(decision: Mapping[str, Any]) -> Iterator[str]:
    for each in decision.get("evidence") or ():
        if each.get("agreement") is None and each.get("cosine") is None:
            yield f"{each['method']} could not be measured: {'; '.join(each['complaints'])}."
            continue
        quality = (
            [f"{each['agreement']:.1%} of its answers are those of the source"] if each["agreement"] is not None else []
        )
        quality += [f"accuracy {each['accuracy']:.1%}"] if each.get("accuracy") is not None else []
        verdict = "passes" if each["passes"] else f"refused ({'; '.join(each['complaints'])})"
        yield f"Measured, {each['method']}: {', '.join(quality) or 'answers compared by their direction'}; {verdict}."


def _outcome(decision: Mapping[str, Any]) -> Iterator[str]:
    chosen = decision.get("method")
    kept = "It was to be" if decision["has_failed"] else "Kept:"
    if chosen is None:
        yield f"Nothing was {'changed' if decision.get('compare') else 'built'}: {decision['reason']}."
    elif decision.get("evidence") and not any(each["passes"] for each in decision["evidence"]):
        yield "Nothing is kept: no method passes."
    elif decision.get("overruled"):
        yield f"{kept} {chosen} ({WORDS[chosen]}); the measurements overruled the plan."
    elif "evidence" in decision:
        yield f"{kept} {chosen}, as planned."
    else:
        yield f"Chosen: {chosen}."


def _kept(decision: Mapping[str, Any]) -> Iterator[str]:
    measured = decision.get("measured") or {}
    residency = measured.get("residency")
    if residency and residency["mode"] != "packed":
        yield f"Weights in memory: {residency['reason']}."
    for name, words in (("compile", "Compiled by torch"), ("graphs", "Replayed as CUDA graphs")):
        if measured.get(name):
            yield f"{words}: {measured[name]['reason']}."


def _accuracy(decision: Mapping[str, Any]) -> Iterator[str]:
    errors = decision.get("estimate_error")
    if errors:
        told = ", ".join(
            f"{name.replace('_', ' ')} {value:+.1%}" for name, value in errors.items() if value is not None
        )
        yield f"Measured against the estimate: {told}."


_PARTS = (_plan, _memory, _weighed, _texts, _measured, _outcome, _kept, _accuracy)
