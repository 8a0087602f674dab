"""Every error schedsearch raises, as one tree.

    SchedSearchError
    ├── ScheduleError
    │   ├── ScheduleFormatError (ValueError)    a file or a field breaks a rule of FORMAT.md; has ``path``
    │   └── UnsupportedVersionError (ValueError) a format version this release cannot read
    ├── SpaceError (ValueError)                 a space file or a genome is not legal
    ├── StudyError
    │   └── StudyMismatchError (ValueError)     a storage holds another study than the one asked for
    ├── ApplyError
    │   ├── ModelMismatchError (ValueError)     the schedule was made for another denoiser
    │   ├── AlreadyAppliedError                 the pipeline already carries a schedule
    │   └── UnsupportedFeatureError             the schedule asks for something this runtime cannot replay
    ├── ModelNotFoundError                      no weights at hand for the model that was named
    ├── EvaluationError                         a measurement could not be made, or a record of some cannot be read
    │   └── NotReachedError                     it was measured, and nothing reaches what was asked for
    └── UsageError (ValueError)                 an option or argument that cannot be used as given

The wording rule: what, where (dotted path), found, expected, what to do. This module knows nothing of the rest.
"""

from __future__ import annotations


class SchedSearchError(Exception):
    """Base of all errors meant for the user; the CLI prints them as one paragraph and exits with code 2."""


class ScheduleError(SchedSearchError):
    """Something is wrong with a schedule."""


class ScheduleFormatError(ScheduleError, ValueError):
    """A schedule breaks a rule of FORMAT.md.

    Args:
        path: dotted path of the offending value, such as ``steps.sigma[3]``; empty for the file itself.
        found: what stands there, shortened for reading.
        expected: what the rule asks for.
        fix: what the user can do.
        rule: the rule of FORMAT.md, such as ``R12``.
        file: name of the file that was read; empty for a schedule in memory.
    """

    def __init__(self, path: str, *, found: str, expected: str, fix: str = "", rule: str = "", file: str = "") -> None:
        self.path = path
        self.found = found
        self.expected = expected
        self.fix = fix
        self.rule = rule
        self.file = file
        where = "".join(f"{part}: " for part in (file, path) if part)
        tail = f" {fix}" if fix else ""
        cite = f" (FORMAT.md {rule})" if rule else ""
        super().__init__(f"{where}found {found}, expected {expected}.{tail}{cite}")


class UnsupportedVersionError(ScheduleError, ValueError):
    """The file's format version is newer, or of another major line, than this release can read."""


class SpaceError(SchedSearchError, ValueError):
    """A space file, an axis or a genome is not legal."""


class StudyError(SchedSearchError):
    """A study cannot be opened or written."""


class StudyMismatchError(StudyError, ValueError):
    """The storage holds a study with other settings than the run that was asked for."""


class ApplyError(SchedSearchError):
    """A schedule cannot be put on this pipeline."""


class ModelMismatchError(ApplyError, ValueError):
    """The schedule was made for a denoiser with other blocks or another configuration."""


class AlreadyAppliedError(ApplyError):
    """The pipeline already carries a schedule; remove it first."""


class UnsupportedFeatureError(ApplyError):
    """The schedule is valid, but this runtime cannot replay something it asks for."""


class ModelNotFoundError(SchedSearchError):
    """No weights are at hand for the model that was named."""


class EvaluationError(SchedSearchError):
    """A measurement could not be made."""


class NotReachedError(EvaluationError):
    """What was asked for, such as a budget, is not reached by anything that was found; the CLI exits with code 3."""


class UsageError(SchedSearchError, ValueError):
    """An option or argument cannot be used as given."""


class ScheduleMismatchWarning(UserWarning):
    """A schedule runs where it was not measured: another resolution, other adapters."""
