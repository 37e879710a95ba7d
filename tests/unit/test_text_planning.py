"""Keys and values in the plan: their formula, their share of the memory, what others may count on, and the words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.deployment.admission import terms, unloads_first
from agent.deployment.models import Release, Served
from agent.deployment.planner import budget_for
from agent.deployment.ports import StepError
from agent.planning.budget import Budget
from agent.planning.explain import explain
from agent.planning.memory import Footprint, estimate
from agent.planning.methods import method
from agent.planning.plan import plan
from agent.planning.texts import LEAST_TOKENS, MAX_SEQUENCES, SHARE, TextCache, cached_token_bytes

MIB, GIB = 2**20, 2**30
CACHE = TextCache(layers=16, heads=32, kv_heads=8, head_width=64, context_tokens=8192)
EACH = CACHE.token_bytes + CACHE.copied_bytes
NEEDS = Footprint((256 * MIB,), plain_bytes=MIB, transient_numel=MIB, activation_bytes=8 * MIB, texts=CACHE)
BOX = Budget(4 * GIB, 512 * MIB, "meminfo", 8 * GIB)


def test_a_token_takes_what_papers_say_it_does() -> None:
    # OPT-13B in fp16, the example of the PagedAttention paper: 800 KB.
    assert cached_token_bytes(layers=40, kv_heads=40, head_width=128, element_bytes=2) == 800 * 1024
    # Llama 2 7B in fp16: the figure that is usually given for it.
    assert cached_token_bytes(layers=32, kv_heads=32, head_width=128, element_bytes=2) == 512 * 1024


def test_heads_that_share_keys_hold_less_and_are_copied_for_all_heads_of_queries() -> None:
    assert CACHE.token_bytes == 16 * 2 * 8 * 64 * 4
    assert CACHE.copied_bytes == 2 * (8 + 32) * 64 * 4


def test_a_model_has_its_share_of_what_it_leaves_free_at_least_what_is_of_use_and_no_more_than_it_can_fill() -> None:
    some = CACHE.room(SHARE * 3000 * EACH)
    assert (some.tokens, some.sequences, some.bytes) == (3000, 2, 3000 * EACH)
    least = CACHE.room(0)
    assert (least.tokens, least.sequences, least.bytes) == (LEAST_TOKENS, 1, CACHE.least_bytes)
    most = CACHE.room(1 << 50)
    assert (most.tokens, most.sequences) == (MAX_SEQUENCES * 8192, MAX_SEQUENCES)


def test_of_a_short_context_as_many_run_as_have_room_for_the_whole_of_it() -> None:
    short = replace(CACHE, context_tokens=128)
    assert short.least_bytes == 128 * EACH
    assert short.room_of(3 * 128 * EACH).sequences == 3


def test_what_is_planned_for_a_language_model_has_room_for_a_text() -> None:
    found, without = estimate(NEEDS, method("nf4")), estimate(replace(NEEDS, texts=None), method("nf4"))
    assert found.total_bytes == without.total_bytes + CACHE.least_bytes
    room = BOX.reserve_bytes + without.total_bytes
    assert plan(replace(NEEDS, texts=None), replace(BOX, available_bytes=room), requested="nf4").chosen
    refused = plan(NEEDS, replace(BOX, available_bytes=room), requested="nf4")
    assert (refused.chosen, refused.texts) == (None, None)
    assert plan(NEEDS, replace(BOX, available_bytes=room + CACHE.least_bytes), requested="nf4").chosen


def test_the_plan_says_how_many_texts_there_is_room_for_and_says_it_in_words() -> None:
    made = plan(NEEDS, BOX, requested="nf4")
    record = made.to_json()
    spare = BOX.bytes - estimate(replace(NEEDS, texts=None), method("nf4")).total_bytes
    assert record["texts"]["tokens"] == spare // SHARE // EACH
    assert record["texts"]["bytes"] == record["texts"]["tokens"] * EACH <= spare // SHARE
    assert (record["texts"]["token_bytes"], record["texts"]["context_tokens"]) == (64 * 1024, 8192)
    assert record["candidates"][0]["texts_bytes"] == CACHE.least_bytes
    told = [sentence for sentence in explain(record) if sentence.startswith("It writes")]
    tokens, needed = f"{record['texts']['tokens']:,}", f"{record['texts']['bytes'] / MIB:.0f} MiB"
    assert "".join(told) == (
        f"It writes up to 8 texts at a time, with {tokens} tokens together: {needed} for their keys and values, "
        "64.0 KiB a token; one text may have 8,192."
    )
    assert plan(replace(NEEDS, texts=None), BOX).to_json()["texts"] is None


def test_in_place_of_its_old_form_it_may_take_what_that_held() -> None:
    tight = replace(BOX, available_bytes=BOX.reserve_bytes + 100 * MIB, reclaimable_bytes=1500 * MIB)
    made = plan(NEEDS, tight, requested="nf4")
    assert made.admission == "unload_first"
    assert made.texts is not None
    spare = tight.room_bytes - estimate(replace(NEEDS, texts=None), method("nf4")).total_bytes
    assert made.texts.room.bytes == spare // SHARE // EACH * EACH


def release(name: str, resident_bytes: int, texts_bytes: int | None) -> Release:
    decision: dict[str, Any] = {"texts": {"bytes": texts_bytes} if texts_bytes else None}
    return Release(
        name, "1", "0" * 64, "hf", "nf4", "/a", "/g", 1, resident_bytes, 1.0, 1.0, None, None, decision=decision
    )


SERVED = {
    "writer": Served("writer", release("w", 100 * MIB, 300 * MIB)),
    "seer": Served("seer", release("s", 50 * MIB, None)),
}


def test_what_texts_of_others_may_take_is_not_free_for_a_model() -> None:
    third = budget_for("third", BOX, SERVED)
    assert third.bytes == third.room_bytes == BOX.bytes - 300 * MIB
    own = budget_for("writer", BOX, SERVED)
    assert own.bytes == BOX.bytes - 300 * MIB, "beside its old form, whose texts are still written"
    assert own.room_bytes == BOX.bytes + 100 * MIB
    limited = budget_for("third", replace(BOX, limit_bytes=GIB), SERVED)
    assert limited.bytes == GIB - 450 * MIB
    assert "300 MiB promised to other models' texts" in str(third)
    assert "300 MiB are promised to texts of what is loaded" in explain(plan([MIB], third).to_json())[2]


def test_a_load_is_told_what_its_texts_may_take_and_unpacked_weights_do_not_get_that() -> None:
    budget = budget_for("writer", BOX, {})
    told = terms({"residency": "auto"}, budget, SERVED["writer"].current)
    assert told["texts_bytes"] == 300 * MIB
    assert told["allowed_bytes"] == (budget.bytes - 300 * MIB) // 2
    assert terms({"compile": "auto"}, budget, SERVED["seer"].current) == {
        "compile": "auto",
        "allowed_bytes": budget.bytes // 2,
        "texts_bytes": None,
    }
    assert terms({}, None, SERVED["seer"].current)["allowed_bytes"] == 0


def test_memory_that_shrank_below_the_room_for_a_text_is_noticed_before_the_load() -> None:
    record = plan(NEEDS, BOX, requested="nf4").to_json()
    needed = record["candidates"][0]["estimated_bytes"]
    enough = replace(BOX, available_bytes=needed + BOX.reserve_bytes // 2)
    assert not unloads_first(record, "nf4", enough)
    with pytest.raises(StepError):
        unloads_first(record, "nf4", replace(enough, available_bytes=enough.available_bytes - CACHE.least_bytes))


def test_a_footprint_with_texts_survives_json_and_one_of_an_older_agent_has_none() -> None:
    assert Footprint.from_json(NEEDS.to_json()) == NEEDS
    body = NEEDS.to_json()
    del body["texts"]
    assert Footprint.from_json(body).texts is None
