"""The harness of ``python -m benchmarks.disparse_tables``.

``settings`` has the scales, ``cells`` the cells, their rows and files, ``problems`` the data and networks,
``experiment`` what happens in one cell, ``runner`` the processes that work them off; ``views``, ``figures``
and ``ranks`` read finished rows; ``loudness`` and ``branches`` are experiments beside the tables.
"""
