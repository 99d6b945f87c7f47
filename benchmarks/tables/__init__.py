"""The family of ``python -m benchmarks.disparse_tables``.

``settings`` has the scales, ``cells`` the cells and their rows, ``problems`` the data and networks,
``regimes`` the calls of the library, ``experiment`` what happens in one cell, ``runner`` which cells are run;
``views``, ``sections``, ``figures`` and ``ranks`` read finished rows; ``loudness``, ``branches`` and
``variants`` are experiments beside the tables.
"""
