"""What the benchmark families share.

``cell`` says what a cell is, ``row`` keeps finished rows in JSONL files, ``runner`` runs cells in processes,
``limits`` bounds the time and memory of one, and ``sweep`` runs cells that have stages; ``views`` writes
tables, ``figures`` styles plots, ``options`` has the command lines' common parts, ``machine`` and ``measure``
say where and how something was measured, ``files`` where everything is kept.
"""
