"""Reports made from a study.

Empty in this release; results are printed as a table and written to ``frontier.json``. Knows no torch and no searcher.
"""
