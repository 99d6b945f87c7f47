"""A page about a run: HTML in one file, Markdown, and comparisons of two runs.

Everything is made from `report.json` and `plan.json`, so that pages of old folders can be made at any time.
Importing these modules imports neither torch nor a template library.
"""
