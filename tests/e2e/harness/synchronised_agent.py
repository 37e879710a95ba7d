"""``nibbled`` on a machine whose clock is disciplined: dates in manifests are judged only where the kernel says so.

Test machines often run without NTP. Nothing but the kernel's answer is replaced.
"""

from unittest import mock

from agent.adapters.clock import SystemClock
from agent.cli import main

if __name__ == "__main__":
    with mock.patch.object(SystemClock, "is_synchronised", return_value=True):
        main()
