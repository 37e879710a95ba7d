"""What a person at the device asks for: ``nibbled doctor`` and ``nibbled status``."""
