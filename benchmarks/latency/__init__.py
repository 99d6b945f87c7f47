"""Milliseconds in ONNX Runtime: a latency budget beside MACs budgets and stock Torch-Pruning.

``networks`` builds ten networks, ``variants`` says what is compared, ``timing`` writes and times files,
``measure`` runs one cell in a process of its own, and ``views`` and ``figures`` write the page.
"""
