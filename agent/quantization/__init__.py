"""The builder: it opens checkpoints, quantizes them, and measures the result; see ``__main__``."""
