"""Fetching files: what may be reached, how it is asked for, what is kept of it. `downloader` is the way in."""
