"""The style sheet and the script: contrasts, and nothing from elsewhere."""

from __future__ import annotations

import re

import pytest

from bronze.operate.view import TableState
from bronze.operate.web.markup.layout import STATIC, TONES

_STYLE = (STATIC / "style.css").read_text()
_LIGHT, _DARK = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part))
    for part in _STYLE.split("@media (prefers-color-scheme: dark)")[:2]
)
_TEXTS = ("text", "muted", "accent", "good", "warn", "bad", "busy", "calm")


def _luminance(colour: str) -> float:
    """The relative luminance of WCAG 2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colours", [_LIGHT, _DARK], ids=["light", "dark"])
def test_texts_have_the_contrast_of_aa(colours: dict[str, str]) -> None:
    """4.5 for all texts on page and card, for states on their tints, and for buttons."""
    pairs = [(name, ground) for name in _TEXTS for ground in ("page", "card")]
    pairs += [(name, f"{name}-tint") for name in ("good", "warn", "bad", "busy", "calm")]
    pairs += [("on-accent", "accent")]
    low = {
        pair: round(_contrast(colours[pair[0]], colours[pair[1]]), 2)
        for pair in pairs
        if _contrast(colours[pair[0]], colours[pair[1]]) < 4.5
    }
    assert low == {}
    # Lines of fields, of the charts and of focus: 3 is enough.
    for name in ("muted", "accent"):
        assert _contrast(colours[name], colours["card"]) >= 3


def test_both_schemes_have_the_same_colours() -> None:
    """And all colours outside of them are variables."""
    assert set(_LIGHT) == set(_DARK)
    rest = _STYLE.split("* { box-sizing")[1]
    assert re.findall(r"#[0-9a-f]{3,8}\b", rest) == []
    assert set(re.findall(r"var\(--([\w-]+)\)", rest)) <= {*_LIGHT, "shadow"}


def test_nothing_is_loaded_from_elsewhere() -> None:
    """Style sheet, script and picture name no other host."""
    for path in STATIC.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE), path.name
        assert "@import" not in text
        assert "eval(" not in text


def test_each_state_has_a_colour_and_a_shape() -> None:
    """So that colour is never alone."""
    assert set(TableState.__args__) <= set(TONES)  # type: ignore[attr-defined]
    for tone in set(TONES.values()):
        assert f".badge.{tone}::before" in _STYLE
