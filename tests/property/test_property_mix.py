"""``mixed`` over all models, sensitivities and budgets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.planning.methods import FOUR_BIT, METHODS, MIN_PACKED_NUMEL, Method
from agent.planning.mix import FP16, INT8, Part, applied, groups, order, raised_bytes, smallest, within

losses = st.none() | st.floats(0, 50, allow_nan=False)
bases = st.sampled_from([METHODS[name] for name in FOUR_BIT])


@st.composite
def models(draw: st.DrawFn) -> list[Part]:
    sizes = draw(st.lists(st.integers(MIN_PACKED_NUMEL, 1 << 24), min_size=1, max_size=20))
    return [
        Part({f"layer.{index}.weight": numel}, draw(losses), draw(losses), draw(st.booleans()))
        for index, numel in enumerate(sizes)
    ]


@given(models(), bases, st.floats(0, 1.5))
def test_whatever_is_raised_fits_and_no_prefix_takes_more(parts: list[Part], low: Method, share: float) -> None:
    numels = {name: numel for each in parts for name, numel in each.numels.items()}
    room = int(share * raised_bytes(numels.values(), low, INT8, 64))
    chain = within(order(parts, low, 64), room)
    taken = [
        sum(raised_bytes([numels[name]], low, method, 64) for name, method in applied(chain[:count]).items())
        for count in range(len(chain) + 1)
    ]
    assert taken == sorted(taken)
    assert taken[-1] <= room
    assert taken[-1] == sum(upgrade.added_bytes for upgrade in chain)


@given(models(), bases)
def test_every_tensor_goes_through_int8_before_fp16_and_never_twice(parts: list[Part], low: Method) -> None:
    seen: dict[tuple[str, ...], list[object]] = {}
    for upgrade in order(parts, low, 64):
        seen.setdefault(upgrade.names, []).append(upgrade.method)
    assert all(steps in ([INT8], [INT8, FP16]) for steps in seen.values())
    assert len(seen) == len(parts)


@given(st.lists(st.text("ab.", min_size=1, max_size=12), min_size=1, max_size=200, unique=True), st.integers(1, 64))
def test_groups_hold_every_tensor_once_and_are_as_few_as_asked(names: list[str], most: int) -> None:
    found = groups(names, most)
    assert sorted(name for group in found for name in group) == sorted(names)
    assert len(found) <= most
    assert all(found)


@given(st.integers(0, 200), st.integers(1, 8), st.sets(st.integers(0, 200)))
def test_what_a_search_returns_has_passed_within_its_trials(count: int, trials: int, good: set[int]) -> None:
    tried: list[int] = []

    def passes(number: int) -> bool:
        tried.append(number)
        return number in good

    found = smallest(count, passes, trials)
    assert len(tried) <= trials
    assert all(0 < number <= count for number in tried)
    assert found is None or (found in good and found == min(number for number in tried if number in good))
