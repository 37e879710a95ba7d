"""Work on a checkpoint at hand, without a fleet: quantize it, compare the methods, export it.

Runs on the supervisor's side of the house: torch is in the builder child only.
"""
