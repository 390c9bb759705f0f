"""docs/troubleshooting.md and docs/reference/exit-codes.md: what errors mean."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bronze.cli.explanations import Explanation, explanations
from reference.markdown import code, document, table

EXIT_CODES = {
    0: ("All went well.", "nothing"),
    1: (
        "Some tables failed and the others were loaded; or a record of what was done could not be"
        " written; or `check`, `verify`, `quality`, `validate`, `audit --verify`, `doctor` or"
        " `status` found something.",
        "look at the message: a retry rarely helps",
    ),
    2: ("The config or the arguments are wrong. Nothing was changed.", "correct it first"),
    3: (
        "The source, the lake, a catalog or a provider of secrets could not be reached, and no"
        " table was loaded for that reason.",
        "retry after a minute, a few times",
    ),
    70: ("A fault inside bronze.", "report it"),
    130: (
        "Stopped or interrupted (Ctrl-C, SIGTERM). What had landed stays, and nothing half-written"
        " is visible.",
        "run it again when it is wanted",
    ),
}


def exit_codes_page() -> str:
    """The page of exit codes."""
    rows = []
    for number, (meaning, advice) in EXIT_CODES.items():
        kinds = [one for one in explanations().values() if one.exit_code == number]
        links = ", ".join(_link(one) for one in kinds) if number > 1 else ""
        rows.append((str(number), meaning, advice, links))
    kinds_of_errors = table(
        ("kind", "class", "exit code", "retry?", "meaning"),
        (
            (_link(one), code(one.kind), str(one.exit_code), _word(one.retry), one.summary)
            for one in explanations().values()
        ),
    )
    return document(
        "Exit codes",
        "What a command exits with, for schedulers and scripts.",
        table(("code", "meaning", "what to do", "errors"), rows),
        "A run of several tables exits with 3 only if each of them failed for such a reason, and"
        " with 130 if it was stopped.",
        "## Kinds of errors",
        "The kind is in the field `error.kind` of documents (`--json`) and in the column"
        " `error_kind` of `governance.runs`; in Python it is the class. `bronze explain KIND` says"
        " more.",
        kinds_of_errors,
    )


def _link(one: Explanation) -> str:
    return f"[{code(one.name)}](../troubleshooting.md#{one.name})"


def _word(retry: str) -> str:
    return re.split(r"[:.,]", retry)[0].lower()


def troubleshooting_page() -> str:
    """The page of all kinds of errors, with the messages by which people search."""
    by_message = (
        (code(message.text), f"[{code(one.name)}](#{one.name})")
        for one in explanations().values()
        for message in one.messages
    )
    return document(
        "Troubleshooting",
        "An error is one sentence that says what is wrong and where, a hint that says what to do,"
        " and the command that explains its kind: `bronze explain table_refused` prints the section"
        " of this page. `bronze doctor` looks for what is wrong with config, secrets, source, lake"
        " and machine within seconds, and changes nothing.",
        "## By message",
        "“…” stands for a name.",
        table(("message", "kind"), by_message),
        *("\n\n".join(_parts(one)) for one in explanations().values()),
    )


def _parts(one: Explanation) -> Iterator[str]:
    yield f"## {one.name}"
    yield f"Class `{one.kind}`, exit code {one.exit_code}. {one.meaning}"
    yield "**Usual causes**"
    yield "\n".join(f"- {cause}" for cause in one.causes)
    yield "**What to do**"
    yield "\n".join(f"{number}. {step}" for number, step in enumerate(one.steps, 1))
    yield f"**Does it help to retry?** {one.retry}"
    if one.messages:
        rows = ((code(message.text), message.remedy) for message in one.messages)
        yield table(("message", "what to do"), rows)
    if one.runbooks:
        books = ", ".join(code(f"bronze runbook {name}") for name in one.runbooks)
        yield f"In the service, step by step: {books}."
