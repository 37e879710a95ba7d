"""Changing a fleet in waves: a plan, a pure machine that follows it, and the thin shell that speaks MQTT for it."""
