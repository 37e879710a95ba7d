"""Which counters are kept when releases come and go."""

from __future__ import annotations

from agent.serving.ledger import KEPT, Ledger


def test_a_release_that_comes_back_goes_on_counting() -> None:
    ledger = Ledger()
    first = ledger.open("m", "1", "a")
    assert ledger.open("m", "2", "b") is not first
    assert ledger.open("n", "1", "a") is not first
    assert ledger.open("m", "1", "a") is first


def test_the_newest_that_are_not_loaded_are_kept_and_those_that_are_loaded_always() -> None:
    ledger = Ledger()
    loaded = ledger.open("m", "1", "loaded")
    oldest = ledger.open("m", "1", "oldest")
    for at in range(KEPT):
        ledger.open("m", "1", f"r{at}", ["loaded"])
    assert len(ledger.entries()) == KEPT + 2, "what is loaded and what was loaded last are not among those"
    ledger.open("m", "1", "one more", ["loaded"])
    assert ledger.entries()["m", "1", "loaded"] is loaded
    assert ("m", "1", "oldest") not in ledger.entries()
    assert ledger.open("m", "1", "oldest", ["loaded"]) is not oldest


def test_of_models_the_newest_that_are_not_loaded_are_kept_and_those_that_are_loaded_always() -> None:
    ledger = Ledger()
    loaded = ledger.open("loaded", "1", "a")
    oldest = ledger.open("oldest", "1", "a")
    for at in range(KEPT):
        ledger.open(f"m{at}", "1", "a", (), ["loaded"])
    assert len(ledger.entries()) == KEPT + 2, "what is loaded and what was loaded last are not among those"
    ledger.open("one more", "1", "a", (), ["loaded"])
    assert ledger.entries()["loaded", "1", "a"] is loaded
    assert ledger.open("oldest", "1", "a", (), ["loaded"]) is not oldest
    for at in range(100):
        ledger.open(f"n{at}", "1", "a", (), ["loaded"])
    assert len(ledger.entries()) == KEPT + 2


def test_a_model_that_comes_back_is_the_newest_again() -> None:
    ledger = Ledger()
    first = ledger.open("first", "1", "a")
    for at in range(KEPT):
        ledger.open(f"m{at}", "1", "a")
    assert ledger.open("first", "1", "a") is first
    ledger.open("one more", "1", "a")
    assert ledger.open("first", "1", "a") is first
