"""The exported program as data: capture, effects, provenance, index tracking."""
