"""Bridges to other people's device management: their words for a command on one side, ours on the other."""
