"""Pictures and tables made from what a search wrote (`figures`). Knows no torch and no searcher."""
