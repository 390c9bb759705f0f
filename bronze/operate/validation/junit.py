"""A validation as JUnit XML, as CI systems show it: a test for each check."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from bronze.errors import ConfigError
from bronze.operate.validation.results import CheckResult, ValidationResult
from bronze.printable import visible


def document(result: ValidationResult) -> str:
    """The XML of a validation: failed checks are failures, unknown ones are skipped."""
    suite = ElementTree.Element(
        "testsuite",
        name="bronze validate",
        tests=str(len(result.checks)),
        failures=str(result.count("fail")),
        skipped=str(result.count("unknown")),
        errors="0",
        time=f"{result.seconds:.3f}",
    )
    for check in result.checks:
        _add(suite, check)
    suites = ElementTree.Element("testsuites", name="bronze validate")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def write(result: ValidationResult, path: Path) -> None:
    """Writes the XML to a file.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document(result), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The file {path} cannot be written: {error.strerror}.", hint="Name another --junit."
        ) from None


def _add(suite: ElementTree.Element, check: CheckResult) -> None:
    name = f"{check.name} of {check.subject}" if check.subject else check.name
    case = ElementTree.SubElement(
        suite, "testcase", classname=f"bronze.{check.group}", name=visible(name)
    )
    message = visible(" ".join(filter(None, (check.text, check.hint))))
    if check.state == "fail":
        ElementTree.SubElement(case, "failure", message=message)
    elif check.state == "unknown":
        ElementTree.SubElement(case, "skipped", message=message)
    else:
        ElementTree.SubElement(case, "system-out").text = message
