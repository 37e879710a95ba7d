"""A device whose journal was damaged while it was off: it serves, and says what it lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes.box import TOPICS, Box

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, None])
def test_the_last_good_model_serves_and_the_loss_is_told_once(
    serving_box: Box, tmp_path: Path, content: bytes | None
) -> None:
    served = serving_box.serving()
    serving_box.send("set_config", {"id": "set", "config": {"health": {"interval_s": 7}}})
    serving_box.settle()
    serving_box.journal.close()
    path = tmp_path / "journal.db"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    serving_box.reboot()
    serving_box.settle()

    assert serving_box.serving() == served
    assert serving_box.live.current.health.interval_s == 7
    assert serving_box.broker.retained(TOPICS.reported)["config"] == {"health": {"interval_s": 7.0}}
    serving_box.reboot()
    serving_box.settle()
    told = [body for body in serving_box.broker.bodies(TOPICS.event) if body["event"] == "journal_recovered"]
    assert [body["rows"]["served"] for body in told] == [1]
    serving_box.send("rollback", {"id": "after", "model": "kanji"})
    serving_box.settle()
    assert serving_box.report("after")["state"] == "succeeded"
    assert (serving_box.serving() or "").endswith("-fp4")
