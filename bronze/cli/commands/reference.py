"""The commands that look something up: explain (errors) and schema (the config)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bronze.cli.failures import exit_codes
from bronze.cli.options import AsJson

if TYPE_CHECKING:
    from bronze.cli.explanations import Explanation

_LONGEST = 100


def explain(
    kind: Annotated[
        str,
        typer.Argument(help="A kind of error: source_busy, or SourceBusy; all of them if none."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say what a kind of error means, and what to do about it."""
    from dataclasses import asdict

    from bronze.cli import explanations
    from bronze.cli.output import print_json, print_table

    with exit_codes(as_json):
        known = explanations.explanations()
        if kind:
            explanation = explanations.explain(kind)
            print_json(asdict(explanation)) if as_json else _print(explanation)
        elif as_json:
            print_json([asdict(explanation) for explanation in known.values()])
        else:
            rows = ([name, str(one.exit_code), one.summary] for name, one in known.items())
            print_table(("kind", "exit", "meaning"), rows, right=("exit",))


def schema(
    out: Annotated[Path | None, typer.Option(help="Write it into this file.")] = None,
) -> None:
    """Print the JSON schema of bronze.toml, by which editors complete and check it."""
    import json

    from bronze.cli.output import print_line
    from bronze.config.json_schema import json_schema
    from bronze.errors import ConfigError

    with exit_codes(False):
        text = json.dumps(json_schema(), ensure_ascii=False, indent=2)
        if out is None:
            typer.echo(text)
            return
        try:
            out.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"The file {out} cannot be written: {error.strerror}.") from None
        print_line(f"Wrote {out}. In editors with TOML support (Even Better TOML, taplo), this as")
        print_line("the first line of bronze.toml, with the path from there, completes the keys:")
        print_line(f"  #:schema ./{out.name}")


def _print(explanation: Explanation) -> None:
    from bronze.cli.output import print_line, width

    wide = min(width(), _LONGEST)
    print_line(
        f"{explanation.name} ({explanation.kind}), exit code {explanation.exit_code}", "bold"
    )
    for line in textwrap.wrap(explanation.meaning, wide):
        print_line(line)
    for heading, items in _parts(explanation):
        print_line(f"\n{heading}", "bold")
        for bullet, text in items:
            lines = textwrap.wrap(
                text,
                wide,
                initial_indent=bullet,
                subsequent_indent=" " * len(bullet),
                break_long_words=False,
                break_on_hyphens=False,
            )
            for line in lines:
                print_line(line)


def _parts(explanation: Explanation) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The titles of the parts, and their items, each with what is before it."""
    yield "Usual causes", [("  - ", cause) for cause in explanation.causes]
    steps = enumerate(explanation.steps, 1)
    yield "What to do", [(f"  {number}. ", step) for number, step in steps]
    yield "Does it help to retry?", [("  ", explanation.retry)]
    if explanation.messages:
        items = []
        for message in explanation.messages:
            items += [("  ", message.text), ("      ", message.remedy)]
        yield "Frequent messages", items
    if explanation.runbooks:
        commands = [("  ", f"bronze runbook {name}") for name in explanation.runbooks]
        yield "In the service, step by step", commands
