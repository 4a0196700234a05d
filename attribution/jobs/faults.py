"""What psycopg raises, as our errors: one line with the next step, and a type to retry by."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from ragblame.errors import DatabaseError, InputError


@contextmanager
def database_faults(what: str, trace_id: UUID | None = None) -> Iterator[None]:
    """Turn psycopg's errors inside the block into ours; ``what`` names the work, for example "results".

    ``DatabaseError`` is the server's or the schema's fault and may pass; ``InputError`` means that these
    values will be refused again.
    """
    import psycopg

    about = what if trace_id is None else f"{what} of trace {trace_id}"
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise DatabaseError(
            f"{about}: the database's schema does not fit this version ({first_line(error)}); "
            "run `ragblame migrate`"
        ) from error
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded) as error:
        raise InputError(f"{about}: PostgreSQL refuses a value: {first_line(error)}; report this") from error
    except psycopg.Error as error:
        raise DatabaseError(
            f"{about}: PostgreSQL failed: {first_line(error)}; run `ragblame doctor` to see what is wrong"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class when it has none."""
    text = str(error).strip()
    return re.split(r"[\r\n]", text, maxsplit=1)[0] if text else type(error).__name__
