"""What a signal means between supervisor and server, beyond what it means by itself; neither imports the other."""

from __future__ import annotations

import signal

END = signal.SIGUSR1
"""Tells the server to end as at SIGTERM, and that none comes after it, see ``agent.serving.process``."""
