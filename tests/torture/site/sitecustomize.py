"""Imported by every interpreter that has this folder on its path, as those of tortured agents have; see ``arming``."""

from tests.torture.arming import install

install()
