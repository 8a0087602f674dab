"""A comparison as tables, sentences, a picture and files. Measures nothing.

The tables say what a reader wants to know first: quality of every family at every speed it was measured to reach, how
far ours are ahead or behind and with what certainty, and with which settings the other libraries did it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from schedsearch.bench._tables import markdown, write_rows
from schedsearch.optimize import Display
from schedsearch.schedule import write_atomically
from schedsearch.study import (
    OURS,
    PLAIN,
    Comparison,
    Interval,
    Measure,
    Row,
    Verdict,
    rows_on_front,
    write_comparison,
)
from schedsearch.study._verdicts import best_within

NOTHING = "-"

UNITS = {"dB": " dB"}
"""How units stand behind a number; those not here are left out."""

NAMES = {"psnr": "PSNR dB", "ssim": "SSIM", "latent_error": "latent error"}
"""Metrics in column heads; others go by their own name."""

CONVERGED = "converged_"
"""How metrics against the converged run begin."""

WORDS = {
    "ahead": "ours lead by {lead} over {rival}",
    "level": "ours and {rival} cannot be told apart: {lead}",
    "behind": "ours lose by {lead} to {rival}",
    "alone": "only ours are as fast",
    "out of reach": "ours lose to {rival}: nothing of ours is as fast",
    "nobody": "nobody is as fast",
}


def write_all(comparison: Comparison, out: Path, into: Path | None, display: Display) -> None:
    """Writes ``compare.json``, ``compare.csv``, ``compare.md`` and ``compare.png``, and shows the table.

    Args:
        comparison: what was measured.
        out: an existing folder.
        into: Markdown file whose ``compare`` markers get the tables.
        display: where the table and the names of the files go.
    """
    from schedsearch_reports.comparison import draw
    from schedsearch_reports.figures import put_table

    write_comparison(comparison, out / "compare.json")
    write_rows(out / "compare.csv", csv_header(comparison), csv_rows(comparison))
    text = report(comparison)
    write_atomically(out / "compare.md", f"{text}\n".encode())
    draw(comparison, out / "compare.png")
    first = comparison.metrics[0]
    header, rows = by_speed(comparison, first)
    display.table(f"{comparison.conditions.model}: {label(first)} at measured speed-ups", header, rows)
    for line in (*sentences(comparison, first), *reasons(comparison)):
        display.line(line)
    for name in ("compare.json", "compare.csv", "compare.md", "compare.png"):
        display.line(f"Wrote {out / name}")
    if into is not None:
        put_table(into, text, name="compare")
        display.line(f"Wrote the tables into {into}")


def report(comparison: Comparison) -> str:
    """Returns everything in Markdown."""
    first = comparison.metrics[0]
    parts = [markdown(*by_speed(comparison, first))]
    verdicts = sentences(comparison, first)
    if verdicts:
        parts.append("\n".join(f"- {line}" for line in verdicts))
    header, rows = settings_table(comparison, first)
    if rows:
        parts += ["The settings of other libraries that count, the best of each library at each speed:",
                  markdown(header, rows)]  # fmt: skip
    missing = reasons(comparison)
    if missing:
        parts += ["Without a number:", "\n".join(f"- {line}" for line in missing)]
    return "\n\n".join([*parts, origin(comparison)])


def label(measure: Measure) -> str:
    """Returns a metric's name as a column head.

    >>> label(Measure(name="converged_psnr", unit="dB", better="max"))
    'converged PSNR dB'
    """
    name = measure.name.removeprefix(CONVERGED)
    word = "converged " if name != measure.name else ""
    return word + NAMES.get(name, name.replace("_", " "))


def by_speed(comparison: Comparison, measure: Measure) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of quality at each budget: ours, the other families, and our lead."""
    budgets = comparison.budgets
    rows = []
    for family in comparison.families:
        best = [best_within(comparison.rows_of(family.name), measure, budget) for budget in budgets]
        if family.name != PLAIN and any(best):
            title = f"**{family.title}**" if family.name == OURS else family.title
            rows.append([title, *(cell(row, measure) for row in best)])
    leads = [verdict for verdict in comparison.verdicts if verdict.metric == measure.name]
    if leads:
        rows.append([f"{OURS} minus the best other", *(_lead(verdict, measure) for verdict in leads)])
    return [f"{label(measure)} at", *(f"{budget:g}x" for budget in budgets)], rows


def cell(row: Row | None, measure: Measure) -> str:
    """Returns the quality of ``row`` in short."""
    return NOTHING if row is None else number(row.score(measure.name).mean.value, measure)


def number(value: float, measure: Measure) -> str:
    """Returns a value of a metric with as many decimals as make sense."""
    return f"{value:.2f}" if measure.unit == "dB" else f"{value:.4f}"


def _signed(value: float, measure: Measure) -> str:
    return f"{value:+.2f}" if measure.unit == "dB" else f"{value:+.4f}"


def _lead(verdict: Verdict, measure: Measure) -> str:
    lead = verdict.lead
    if lead is None:
        return NOTHING
    low, high = _signed(lead.low, measure), _signed(lead.high, measure)
    return f"{_signed(lead.value, measure)} [{low}, {high}]"


def sentences(comparison: Comparison, measure: Measure) -> list[str]:
    """Returns one verdict per budget in words."""
    found = []
    for verdict in comparison.verdicts:
        if verdict.metric != measure.name:
            continue
        rival = f"{comparison.family(verdict.rival).title} ({verdict.setting})" if verdict.rival else ""
        lead = "" if verdict.lead is None else _in_words(verdict.outcome, verdict.lead, measure)
        found.append(f"{verdict.budget:g}x: {WORDS[verdict.outcome].format(lead=lead, rival=rival)}.")
    return found


def _in_words(outcome: str, lead: Interval, measure: Measure) -> str:
    unit = UNITS.get(measure.unit, "")
    if outcome == "level":
        bounds = f"[{_signed(lead.low, measure)}, {_signed(lead.high, measure)}]"
        return f"{_signed(lead.value, measure)}{unit} {bounds}"
    sign = -1.0 if outcome == "behind" else 1.0
    low, high = sorted(sign * bound for bound in (lead.low, lead.high))
    return f"{number(sign * lead.value, measure)}{unit} [{number(low, measure)}, {number(high, measure)}]"


def settings_table(comparison: Comparison, measure: Measure) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the best setting of every other library at every budget."""
    libraries = dict.fromkeys(family.library for family in comparison.families if family.library)
    versions = {each.name: each.version for each in comparison.conditions.versions}
    rows = []
    for library in libraries:
        names = {family.name for family in comparison.families if family.library == library}
        own = [row for row in comparison.rows if row.family in names]
        shown: list[Row] = []
        for budget in comparison.budgets:
            best = best_within(own, measure, budget)
            if best is not None and best not in shown:
                shown.append(best)
        for row in shown or own:
            title = comparison.family(row.family).title
            named = title if title.startswith(library) else f"{library}: {title}"
            cells = [cell(row, each) for each in _shown(comparison)]
            words = f"{row.setting} ({row.note})" if row.note else row.setting
            version = versions.get(library, "")
            rows.append([named, version, words, span(row.speedup), *cells])
    header = ["way", "version", "setting", "speed-up", *(label(each) for each in _shown(comparison))]
    return header, rows


def _shown(comparison: Comparison) -> list[Measure]:
    return [each for each in comparison.metrics if not each.name.startswith(CONVERGED)]


def span(interval: Interval) -> str:
    """Returns a speed-up with its interval.

    >>> span(Interval(value=2.0, low=1.9, high=2.125))
    '2.00x [1.90, 2.12]'
    """
    return f"{interval.value:.2f}x [{interval.low:.2f}, {interval.high:.2f}]"


def reasons(comparison: Comparison) -> list[str]:
    """Returns why something has no number, one line each; alike failures of one family are one line."""
    told: dict[tuple[str, str, str], list[str]] = {}
    for each in comparison.absent:
        told.setdefault((each.family, each.cause, each.reason), []).append(each.setting)
    found = []
    for (family, cause, reason), settings in told.items():
        named = [setting for setting in settings if setting]
        titles = {f.name: f.title for f in comparison.families}
        which = "" if not named else f", {named[0]}" if len(named) == 1 else f", {len(named)} settings"
        found.append(f"{titles.get(family, family)}{which}: {cause}; {reason}.")
    return found


def origin(comparison: Comparison) -> str:
    """Returns where the numbers come from, in a sentence."""
    at = comparison.conditions
    plain = comparison.rows_of(PLAIN)
    noise = f" The full run against itself: {span(plain[0].speedup)}." if plain else ""
    versions = ", ".join(f"{each.name} {each.version}" for each in at.versions)
    return (
        f"Measured on {at.n_prompts} held-out prompts ({at.prompts} sha256:{at.prompts_sha256[:16]}), {at.device}, "
        f"{at.dtype}, batch {at.batch}, {at.steps} steps of {at.width}x{at.height}; {versions}; "
        f"{comparison.seconds / 60.0:.1f} minutes in all. Brackets are 95 % bootstrap intervals over prompts.{noise}"
    )


def csv_header(comparison: Comparison) -> list[str]:
    """Returns the columns of ``compare.csv``."""
    scores = [name for each in comparison.metrics for name in (label(each), "low", "high")]
    first = ("family", "title", "source", "library", "setting", "speedup", "low", "high", "latency ms", "work %")
    return [*first, *scores, "on front", "note", "id"]


def csv_rows(comparison: Comparison) -> list[list[str]]:
    """Returns all rows, families in the order of the tables; ``on front`` names the metrics."""
    found = []
    for family in comparison.families:
        own = comparison.rows_of(family.name)
        fronts = {each.name: rows_on_front(own, each) for each in comparison.metrics}
        for row in sorted(own, key=lambda r: r.speedup.value):
            speed = row.speedup
            scores = [f"{value:.6g}" for each in comparison.metrics for value in _three(row.score(each.name).mean)]
            on = " ".join(name for name, rows in fronts.items() if row in rows)
            found.append([
                family.name, family.title, family.source, family.library, row.setting, f"{speed.value:.4f}",
                f"{speed.low:.4f}", f"{speed.high:.4f}", f"{row.latency_ms:.2f}", f"{100 * row.work:.2f}", *scores, on,
                row.note, row.schedule,
            ])  # fmt: skip
    return found


def _three(interval: Interval) -> Sequence[float]:
    return interval.value, interval.low, interval.high
