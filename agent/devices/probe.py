"""The device as planning and reports see it: looks, asks further where something is missing, remembers what is settled.

Who is believed is decided in ``chain``. CUDA itself is asked by the builder's self-test once, and by a short child
where neither that nor NVML tells a figure; never in this process.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent.devices import facts
from agent.devices.chain import NOT_ASKED, Device, SelfTest, Snapshot, judge, wants_cuda
from agent.devices.cuda_child import Answer, CudaChild
from agent.devices.look import snapshot
from agent.planning.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["DeviceProbe", "SelfTest", "Snapshot", "snapshot"]


class DeviceProbe:
    """The device as planning and reports see it.

    Args:
        reserve_bytes: what a model may never take.
        limit_bytes: a fixed budget, or None.
        self_test: runs the builder's probe; slow, called once and when somebody asks for it again.
        look: returns a snapshot.
        ask_cuda: asks the driver in a child; takes seconds.
    """

    def __init__(
        self,
        *,
        reserve_bytes: int,
        limit_bytes: int | None,
        self_test: Callable[[], SelfTest],
        look: Callable[[], Snapshot] = snapshot,
        ask_cuda: Callable[[], Answer] | None = None,
    ) -> None:
        self._reserve_bytes = reserve_bytes
        self._limit_bytes = limit_bytes
        self._look = look
        self._ask_cuda = ask_cuda or CudaChild().ask
        self._run_self_test = self_test
        self._tested: SelfTest | None = None
        self._cuda = NOT_ASKED
        self._last: Budget | None = None
        self._lock = threading.Lock()

    def budget(self) -> Budget:
        """Return the memory that a model may take now, with its source.

        Raises:
            MemoryUnknownError: ``/proc/meminfo`` is missing or malformed.
        """
        seen = self._look()
        if wants_cuda(seen, self._tested, self._cuda):
            self._cuda = _kept(self._cuda, self._ask_cuda())
        return self._weigh(self._judge(seen))

    def last_budget(self) -> Budget | None:
        """Return the budget as it was last seen, None before the first look: a driver may hang when it is asked."""
        return self._last

    def usable_methods(self) -> Mapping[str, dict[str, Any]]:
        """Return what the self-test found per method, running it first if it has not run."""
        return self.self_test().methods

    def self_test(self) -> SelfTest:
        """Return the self-test's findings, running it once."""
        with self._lock:
            if self._tested is None:
                self._tested = self._run_self_test()
            return self._tested

    def test_again(self) -> Mapping[str, dict[str, Any]]:
        """Run the self-test now; return what it found per method, which counts from now on."""
        found = self._run_self_test()
        with self._lock:
            self._tested = found
        return found.methods

    @property
    def tested(self) -> SelfTest | None:
        """What the self-test found, or None while it has not run."""
        return self._tested

    def facts(self) -> dict[str, Any]:
        """Return the device for health reports, each figure with its source.

        No child is started for a report: what CUDA said when the last budget was asked for is repeated.

        Raises:
            MemoryUnknownError: ``/proc/meminfo`` is missing or malformed.
        """
        seen = self._look()
        device = self._judge(seen)
        return facts.describe(seen, device, self._weigh(device), self._cuda)

    def _judge(self, seen: Snapshot) -> Device:
        return judge(seen, self._tested, self._cuda)

    def _weigh(self, device: Device) -> Budget:
        has_gpu = bool(device.has_gpu.value)
        self._last = Budget(
            available_bytes=device.available_bytes.value or 0,
            reserve_bytes=self._reserve_bytes,
            source=device.available_bytes.source or "meminfo",
            total_bytes=device.total_bytes.value or 0,
            limit_bytes=self._limit_bytes,
            has_gpu=has_gpu,
            is_integrated=bool(device.is_integrated.value),
            capability=device.capability.value if has_gpu else None,
        )
        return self._last


def _kept(before: Answer, now: Answer) -> Answer:
    """Return the new answer; one that says nothing leaves standing what never changes."""
    if now.cuda is None and before.cuda is not None:
        return replace(now, cuda=replace(before.cuda, free_bytes=None))
    return now
