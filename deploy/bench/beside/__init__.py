"""Servers that people would install instead, measured beside nibbled in one run: ``make bench-serving``.

Each of them answers with the same module on loopback. The files named after a server are what its users would write,
and run in an environment of their own that has no part of nibbled in it.
"""
