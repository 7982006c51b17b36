"""What the fields of a dataclass mean, read from its docstring: help on the command line says what the source says."""

from __future__ import annotations

import inspect
import re
import textwrap

ENTRY = re.compile(r"(\w+(?:, *\w+)*)(?: \([^)]*\))?:\s*(.*)")  # "name:", "fewest, most:" or "name (int):"
ROLE = re.compile(r":\w+:`~?([^`]*)`")  # :meth:`name`, :math:`x`


def meanings(cls: type) -> dict[str, str]:
    """The meaning of each field that a dataclass, or a base of it, documents in a section ``Attributes:``.

    Returns:
        field to one line of plain text, without marks of reST. A field that no docstring tells of is left out; a
        class's own docstring goes before that of its base.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _attributes(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
    return found


def _attributes(doc: str) -> dict[str, str]:
    _, _, rest = f"\n{doc}".partition("\nAttributes:\n")
    section = re.split(r"\n(?=\S)", rest, maxsplit=1)[0]
    entries: list[tuple[list[str], list[str]]] = []
    for line in textwrap.dedent(section).splitlines():
        entry = ENTRY.fullmatch(line)
        if entry:
            entries.append((re.split(", *", entry[1]), [entry[2]]))
        elif entries and line.strip():
            entries[-1][1].append(line.strip())
    return {name: _plain(" ".join(lines)) for names, lines in entries for name in names}


def _plain(text: str) -> str:
    return ROLE.sub(lambda role: role[1].replace("\\", ""), text).replace("``", "").strip().rstrip(".")
