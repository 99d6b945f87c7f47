"""The family of ``python -m benchmarks.no_training``: how good pruned networks are without any training.

``networks`` has the trained networks, ``bench`` what every method gets, ``methods`` all methods; ``ours``
the call of the library, ``stock``, ``folding`` and ``compensation`` the others. ``cells`` and ``runner``
say what is run and where rows are kept; ``results``, ``goals``, ``views`` and ``figures`` read finished
rows; ``call`` times one call on a large network.
"""
