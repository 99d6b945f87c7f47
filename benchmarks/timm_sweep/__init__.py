"""The family of ``python -m benchmarks.timm_sweep``: every timm family, beside stock Torch-Pruning.

``models`` chooses models, ``subject`` has the calls of the library, ``measure`` the stages of one cell,
which runs in a process of its own; ``stock`` prunes the same model with Torch-Pruning alone. ``cells`` says
what is run and what a row holds; ``views`` reads finished rows.
"""
