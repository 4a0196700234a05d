"""One family of errors: each class says what went wrong, each message ends with the next step.

Nothing here ever reaches the host chain; the command line prints the message alone, without a traceback.
"""


class RagblameError(Exception):
    """Root of the family. ``str(error)`` is one clear line that ends with the next step."""

    exit_code: int = 1


class SettingsError(RagblameError):
    """A setting is unknown, malformed or contradicts another."""

    exit_code = 2


class DatabaseError(RagblameError):
    """PostgreSQL cannot be reached, refuses us, or lacks what we need (pgvector, version, rights)."""

    exit_code = 3


class MigrationError(DatabaseError):
    """The schema cannot be brought up to date: an edited file, a newer database, or failing SQL."""


class EmbeddedPostgresError(DatabaseError):
    """The embedded server cannot be started, reached or stopped."""


class ModelError(RagblameError):
    """The scorer's model is missing, damaged, or of a kind that a method cannot serve."""

    exit_code = 4


class UnsupportedArchitectureError(ModelError):
    """A method cannot serve a model family; the message names both."""


class ContextLengthError(ModelError):
    """Prompt and answer are longer than the scorer can read; the message gives all three lengths."""


class AlignmentError(RagblameError):
    """Tokens and text disagree: offsets would be wrong, so nothing is computed."""


class InputError(RagblameError):
    """What the caller handed in cannot be used (empty answer, bad file, unknown trace)."""

    exit_code = 5


class MissingExtraError(RagblameError):
    """An optional part is not installed; the message names the extra."""

    exit_code = 6


class ReviewConflictError(RagblameError):
    """Somebody else decided about the span in the meantime; nothing was overwritten."""

    exit_code = 7
