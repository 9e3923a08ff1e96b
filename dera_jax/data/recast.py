"""Records under other names: from what a data set calls its fields to what commands here read.

recast(out, data="hf:EdinburghNLP/xsum:train", prompt="summarize: {document}", completion="{summary}")
"""

from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from dera_jax.common.files import make_folder, write_bytes
from dera_jax.common.json_files import encode_json
from dera_jax.data.records import Record, load_records


def recast(out: Path, data: str, first: str | None = None, **templates: str) -> None:
    """Writes data.jsonl into the folder `out`: of each record the fields that `templates` name.

    A template is text with fields in braces, such as `summarize: {document:.2000}`: at most its first
    2 000 characters; `{info[post]}` and `{answers[0]}` lie deeper; `{{` is a brace. One that is nothing but
    a field keeps its kind, a list for instance; any other gives a text.

    Args:
      out: is made where it is not there.
      data: as commands take it.
      first: number of records; None is all.
      templates: new name to template.

    Raises:
      ValueError: a template that cannot be read; data that cannot be; a record without a field that a
        template asks for, with file and line. Nothing is written then.
    """
    if not templates:
        raise ValueError(f"{data}: expected a template for at least one field, found none")
    for name, template in templates.items():
        _check(name, template)
    records = load_records(data, None if first is None else int(first))
    make_folder(out)
    made = ({name: _fill(name, text, record) for name, text in templates.items()} for record in records)
    write_bytes(out / "data.jsonl", b"".join(encode_json(fields) + b"\n" for fields in made))


class _Fields(Formatter):
    """Formats with fields in brackets, never with attributes of what it is given."""

    def get_field(self, field_name: str, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        return _look_up(field_name, kwargs), field_name


class _Missing(LookupError):
    """A record lacks a field."""


def _look_up(name: str, fields: Any) -> Any:
    for part in name.replace("]", "").split("["):
        try:
            fields = fields[int(part) if isinstance(fields, list) else part]
        except (LookupError, TypeError, ValueError):
            fields = None
        if fields is None:  # which tables hold where a row lacks a field
            raise _Missing(name)
    return fields


def _check(name: str, template: str) -> None:
    try:
        list(_Fields().parse(template))
    except ValueError as error:
        raise ValueError(f"{name}={template!r}: {error}") from error


def _fill(name: str, template: str, record: Record) -> Any:
    parts = list(_Fields().parse(template))
    try:
        if len(parts) == 1 and parts[0] == ("", parts[0][1], "", None):
            return _look_up(parts[0][1], record.fields)
        return _Fields().vformat(template, (), record.fields)
    except _Missing as error:
        found = ", ".join(map(str, record.fields)) or "none"
        raise ValueError(
            f"{record.where}: no field {str(error)!r}, which {name}={template!r} asks for; found {found}"
        ) from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{record.where}: {name}={template!r}: {error}") from error
