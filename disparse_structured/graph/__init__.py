"""The exported program as data: capture, effects, provenance, where indices move."""
