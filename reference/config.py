"""docs/reference/config.md: every key of bronze.toml."""

from __future__ import annotations

from typing import Any

from bronze.config.fields import Section
from bronze.config.json_schema import SectionText, json_schema, properties_of, texts
from reference.markdown import code, document, table, toml

_INTRODUCTION = """\
Every key that `bronze.toml` may have, with its type, default, meaning and an example.
`bronze init` writes a file to begin with; [one config per cloud](../how-to/clouds.md) has
whole ones.

An unknown key is an error, which names the nearest known one; an error names the line, or
the variable. A duration is written as `"30s"`, `"5m"`, `"2h"` or `"30d"` (a number is
seconds), a size as `"500MB"` or `"2GiB"`: `128MB` is 128,000,000 bytes, `128MiB`
134,217,728. A text may name environment variables, `"${NAME}"` (`$${NAME}` is the text
itself), and a variable `BRONZE_SECTION__KEY` replaces the value of a key:
`BRONZE_RUN__MEMORY=2GB`.

`bronze schema --out bronze.schema.json` writes the JSON schema of all this. Editors with TOML
support (Even Better TOML, taplo) complete and check the keys, if the first line of
`bronze.toml` is `#:schema ./bronze.schema.json`."""

_NO_DEFAULT = "–"
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


def page() -> str:
    """The page."""
    schema = json_schema()
    classes = {one.__name__: one for one in _classes(Section)}
    parts = []
    for name, text in texts().items():
        if name != "Settings":
            parts.append(_section(text, schema["$defs"][name], classes[name]))
    top = schema["properties"].items()
    contents = table(("section", ""), ((code(f"[{key}]"), one["description"]) for key, one in top))
    return document("Keys of bronze.toml", _INTRODUCTION, contents, *parts)


def _classes(base: type[Section]) -> list[type[Section]]:
    return [one for child in base.__subclasses__() for one in (child, *_classes(child))]


def _section(text: SectionText, section: dict[str, Any], made: type[Section]) -> str:
    fields = {field.alias or name: field for name, field in made.model_fields.items()}
    rows = []
    for key, schema in properties_of(section).items():
        default = code(toml(schema["default"])) if "default" in schema else _NO_DEFAULT
        rows.append(
            (
                code(key),
                type_of(schema),
                "required" if fields[key].is_required() else default,
                schema["description"],
                code(toml(schema["examples"][0])),
            )
        )
    readers = ", ".join(code(f"bronze {command}") for command in text.used_by)
    read_by = f"Read by {readers}." if readers else ""
    figures = table(("key", "type", "default", "meaning", "example"), rows)
    return f"## {code(text.at)}\n\n{text.about} {read_by}".rstrip() + f"\n\n{figures}"


def type_of(schema: dict[str, Any]) -> str:
    """The type that a schema describes, in words."""
    parts = schema.get("anyOf") or schema.get("oneOf") or [schema]
    names = [_type(part) for part in parts]
    # A number is a duration or a size, too; any value may be a variable.
    if {"duration", "size"} & {*names}:
        names = [name for name in names if not name.startswith("integer")]
    return " or ".join(dict.fromkeys(filter(None, names)))


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema or "oneOf" in schema:
        return type_of(schema)
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        simple = {"Duration": "duration", "Size": "size", "Variable": "", "SecretName": "secret"}
        return simple.get(name, f"table {code(texts()[name].at) if name in texts() else name}")
    if "const" in schema:
        return code(toml(schema["const"]))
    if "enum" in schema:
        return ", ".join(code(toml(word)) for word in schema["enum"])
    kind = schema.get("type", "any value")
    if kind == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}"
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"{_type(inner)}, by name" if isinstance(inner, dict) else "table"
    bounds = [words.format(schema[bound]) for bound, words in _BOUNDS.items() if bound in schema]
    name = {"string": "text"}.get(kind, kind)
    return f"{name}, {', '.join(bounds)}" if bounds else name
