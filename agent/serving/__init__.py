"""The server: a long-lived process that answers inference from finished artifacts. See ``__main__``."""
