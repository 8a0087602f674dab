"""How much single layers and blocks matter, and what to choose from that: records, file, ranking, assignment.

Numbers are measured elsewhere (`schedsearch.evaluate`); here they are only used, without torch, so that a search can
begin from them.
"""

from schedsearch.sensitivity._additivity import ENOUGH, Additivity, additivity, draw_subsets
from schedsearch.sensitivity._assignment import Assignment, Option, assigned
from schedsearch.sensitivity._chosen import (
    KEPT,
    average_bits,
    mixed,
    most_saved_ms,
    protected_layers,
    removed_blocks,
    rules_of,
)
from schedsearch.sensitivity._file import (
    parse_sensitivities,
    read_sensitivities,
    sensitivities_text,
    write_sensitivities,
)
from schedsearch.sensitivity._ranking import (
    Ranked,
    ranked_blocks,
    ranked_layers,
    ranked_operations,
    ranked_removals,
)
from schedsearch.sensitivity._records import (
    REMOVED,
    Cell,
    Choice,
    Header,
    Layer,
    Sensitivities,
    Subset,
    SubsetKind,
    effect_of,
)
from schedsearch.sensitivity._rules import block_of, compact_rules, operation_of
from schedsearch.sensitivity._seeds import seed_choices, seed_removals

__all__ = [
    "ENOUGH",
    "KEPT",
    "REMOVED",
    "Additivity",
    "Assignment",
    "Cell",
    "Choice",
    "Header",
    "Layer",
    "Option",
    "Ranked",
    "Sensitivities",
    "Subset",
    "SubsetKind",
    "additivity",
    "assigned",
    "average_bits",
    "block_of",
    "compact_rules",
    "draw_subsets",
    "effect_of",
    "mixed",
    "most_saved_ms",
    "operation_of",
    "parse_sensitivities",
    "protected_layers",
    "ranked_blocks",
    "ranked_layers",
    "ranked_operations",
    "ranked_removals",
    "read_sensitivities",
    "removed_blocks",
    "rules_of",
    "seed_choices",
    "seed_removals",
    "sensitivities_text",
    "write_sensitivities",
]
