"""What may be searched: the legal set of schedules for one model, read from a YAML file per model family."""

from schedsearch.space._load import load_space, shipped_spaces
from schedsearch.space._space import LEVELS, Forbidden, SearchSpace
from schedsearch.space._yaml import read_yaml, shown

__all__ = ["LEVELS", "Forbidden", "SearchSpace", "load_space", "read_yaml", "shipped_spaces", "shown"]
