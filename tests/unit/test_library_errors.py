"""What libraries say of errors becomes a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.delta import log, store
from bronze.errors import LakeError
from bronze.library_errors import plain
from bronze.model.locations import Place

SAID = [
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


@pytest.mark.parametrize(("text", "said"), SAID)
def test_errors_of_libraries_are_sentences(text: str, said: str) -> None:
    """Without debug text, backtraces, colours and the names of layers that nobody knows."""
    assert plain(ValueError(text)) == said


@settings(derandomize=True, database=None, deadline=None)
@given(st.text(), st.text(st.sampled_from('aGe {}:()\n\x1b[31m↳->"')))
def test_any_error_has_one_line(text: str, odd: str) -> None:
    """Whatever it says, and never nothing."""
    for one in (text, odd, f"{text}: Generic {{ store: {odd} }}"):
        made = plain(ValueError(one))
        assert made
        assert len(made.splitlines()) == 1


@pytest.mark.parametrize("entry", ["{", '{"protocol":{"minReaderVersion":"x"}}', ""])
def test_a_damaged_log_is_said_plainly(tmp_path: Path, entry: str) -> None:
    """What deltalake makes of it has no frames of its own and no braces."""
    folder = tmp_path / "t" / "_delta_log"
    folder.mkdir(parents=True)
    (folder / f"{0:020}.json").write_text(entry)
    with pytest.raises(LakeError) as caught:
        log.read(Place(str(tmp_path / "t")))
    for word in ("<unknown>", "Kernel", "{", "\x1b", "Generic"):
        assert word not in caught.value.message


def test_a_scheme_that_nobody_knows_is_no_missing_table() -> None:
    """Neither deltalake nor the store beneath say that there is nothing."""
    place = Place("foo://lake/governance/audit_log")
    for act in (log.read, store.listing):
        with pytest.raises(LakeError) as caught:
            act(place)
        assert "could not be" in caught.value.message
        assert "Debug" not in caught.value.message
