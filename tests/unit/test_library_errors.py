"""Messages of errors of libraries become one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.delta import log, store
from bronze.errors import LakeError
from bronze.library_errors import error_text
from bronze.model.locations import Place
from tests.support.effort import examples

MESSAGES = [
    (
        "Generic LocalFileSystem error: Unable to open file /f/x: Not a directory (os error 20)"
        '\n\nDebug source:\nGeneric {\n    store: "LocalFileSystem",\n    source: Os {\n'
        '        kind: NotADirectory,\n        message: "Not a directory",\n    },\n}',
        "Unable to open file /f/x: Not a directory (os error 20)",
    ),
    (
        "Kernel error: Json error: Truncated record whilst reading object\n   0: <unknown>\n"
        "  12: start_thread\n             at ./nptl/pthread_create.c:442:8\n",
        "Truncated record whilst reading object",
    ),
    (
        "Kernel error -> Generic S3 error\n    \x1b[31m↳\x1b[0m Error performing GET http://h/x\n"
        "     \x1b[31m↳\x1b[0m tcp connect error\n",
        "Error performing GET http://h/x: tcp connect error",
    ),
    (
        'Object store error: Generic { store: "S3", source: RetryError(Impl { status: 409,'
        ' body: "slow down" }) }',
        "Object store error: 409",
    ),
    ("Parquet file size is 1 bytes", "Parquet file size is 1 bytes"),
    ('the key {"id": 1} is there', 'the key {"id": 1} is there'),
    ("", "ValueError"),
    ("x" * 1000, "x" * 300),
]


@pytest.mark.parametrize(("text", "message"), MESSAGES)
def test_debug_output_of_libraries_is_removed(text: str, message: str) -> None:
    """Without debug output, backtraces, colours and names of layers, the message is left."""
    assert error_text(ValueError(text)) == message


@settings(derandomize=True, database=None, deadline=None, max_examples=examples(25))
@given(st.text(), st.text(st.sampled_from('aGe {}:()\n\x1b[31m↳->"')))
def test_the_message_of_any_error_is_one_line(text: str, debug: str) -> None:
    """It is never empty."""
    for original in (text, debug, f"{text}: Generic {{ store: {debug} }}"):
        message = error_text(ValueError(original))
        assert message
        assert len(message.splitlines()) == 1


@pytest.mark.parametrize("entry", ["{", '{"protocol":{"minReaderVersion":"x"}}', ""])
def test_the_error_for_a_damaged_log_has_no_debug_output(tmp_path: Path, entry: str) -> None:
    """The backtrace of deltalake and the names of its layers are removed."""
    folder = tmp_path / "t" / "_delta_log"
    folder.mkdir(parents=True)
    (folder / f"{0:020}.json").write_text(entry)
    with pytest.raises(LakeError) as caught:
        log.read(Place(str(tmp_path / "t")))
    for word in ("<unknown>", "Kernel", "{", "\x1b", "Generic"):
        assert word not in caught.value.message


def test_an_unknown_url_scheme_is_an_error_and_not_a_missing_table() -> None:
    """Reading the log and listing files both fail, without debug output."""
    place = Place("foo://lake/governance/audit_log")
    for act in (log.read, store.listing):
        with pytest.raises(LakeError) as caught:
            act(place)
        assert "could not be" in caught.value.message
        assert "Debug" not in caught.value.message
