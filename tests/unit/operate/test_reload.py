"""What a new config changes."""

from __future__ import annotations

from pathlib import Path

from bronze.config.settings import Settings
from bronze.operate.service import reload
from bronze.operate.service.reload import ConfigFile

TEXT = """
[source]
name = "shop"
dsn = "postgresql://bronze:{password}@localhost/shop"

[lake]
root = "lake"

[serve]
runs = {runs}
"""


def test_a_password_in_the_config_is_a_change_and_never_shown(tmp_path: Path) -> None:
    """The service connects with the new one; also where another key has changed as well."""
    path = tmp_path / "bronze.toml"
    path.write_text(TEXT.format(password="old-word", runs=2))
    before = Settings.from_file(path)
    file = ConfigFile(before)
    assert file.changed() is None
    for runs, expected in (
        (2, ("source (a password)",)),
        (3, ("serve.runs", "source (a password)")),
    ):
        path.write_text(TEXT.format(password="new-word", runs=runs))
        changed = file.changed()
        assert changed is not None
        keys = reload.differences(before, changed)
        assert keys == expected
        assert "word" not in reload.sentence(keys).replace("password", "")
    assert reload.differences(before, Settings.from_file(path)) != ()
    assert reload.differences(before, before) == ()
