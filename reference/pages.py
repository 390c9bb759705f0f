"""The generated pages by their paths in the repository."""

from __future__ import annotations

from pathlib import Path

from reference import commands, config, errors, governance, index, monitoring, types


def pages(root: Path) -> dict[str, str]:
    """The texts of all generated pages. The index has those of the folder ``root`` as well."""
    made = {
        "docs/reference/config.md": config.page(),
        "docs/reference/commands.md": commands.page(),
        "docs/reference/exit-codes.md": errors.exit_codes_page(),
        "docs/reference/governance.md": governance.page(),
        "docs/reference/types.md": types.page(),
        "docs/reference/monitoring.md": monitoring.page(),
        "docs/troubleshooting.md": errors.troubleshooting_page(),
    }
    return {**made, "docs/llms.txt": index.page(root / "docs", made)}


def outdated(root: Path) -> list[str]:
    """The pages of a folder that are not as they would be written now."""
    return [
        name
        for name, text in pages(root).items()
        if not (root / name).exists() or (root / name).read_text(encoding="utf-8") != text
    ]
