"""Names and texts of a foreign database as parts of a statement that has parameters.

psycopg takes a per cent sign anywhere in such a statement for the beginning of one, in names too.
"""

from psycopg import sql


def identifier(*names: str) -> sql.Identifier:
    """A name as SQL, for a statement with parameters: there a per cent sign begins one."""
    return sql.Identifier(*(name.replace("%", "%%") for name in names))


def literal(text: str) -> sql.Literal:
    """The same for a text that must stand in the statement itself."""
    return sql.Literal(text.replace("%", "%%"))
