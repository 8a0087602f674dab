"""Search spaces, one YAML file per model family; data only."""
