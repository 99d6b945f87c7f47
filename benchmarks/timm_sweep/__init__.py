"""The family of ``python -m benchmarks.timm_sweep``: every timm family, beside stock Torch-Pruning.

``models`` chooses models, ``subject`` has the calls of the library, ``measure`` the stages of one cell,
which runs in a process of its own; ``stock`` prunes the same model with Torch-Pruning alone. ``cells`` and
``runner`` say what is run and where rows are kept; ``views`` reads finished rows.
"""
