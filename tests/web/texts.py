"""The page's own texts, so that tests can name what they mean in either language."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from playwright.sync_api import Page

FOLDER = Path(__file__).resolve().parents[2] / "web" / "src" / "i18n"
AREAS = ("chat", "compare", "models", "settings", "shell", "ui")
PLACE = re.compile(r"\{\{(\w+)\}\}")


class Texts:
    """`texts("chat:send")`; values fill the places of a text."""

    _read: ClassVar[dict[str, dict[str, Any]]] = {}  # by area, then by language

    def __init__(self, page: Page, language: str) -> None:
        if not self._read:
            self._read.update({area: read_area(page, area) for area in AREAS})
        self._areas = {area: texts[language] for area, texts in self._read.items()}

    def __call__(self, key: str, **values: object) -> str:
        text = PLACE.sub(lambda place: str(values[place[1]]), self._find(key, values.get("count")))
        assert text
        return text

    def pattern(self, key: str, **values: object) -> re.Pattern[str]:
        """The whole text, with anything in the places that no value is given for."""
        parts = PLACE.split(self._find(key, values.get("count")))
        for i in range(1, len(parts), 2):
            parts[i] = re.escape(str(values[parts[i]])) if parts[i] in values else ".+"
        parts[::2] = [re.escape(part) for part in parts[::2]]
        return re.compile("^" + "".join(parts) + "$")

    def _find(self, key: str, count: object) -> str:
        area, name = key.split(":")
        node: Any = self._areas[area]
        for part in name.split("."):
            plural = f"{part}_one" if count == 1 else f"{part}_other"
            node = node[part] if part in node else node.get(plural, node.get(f"{part}_other"))
        assert isinstance(node, str), key
        return node


def read_area(page: Page, area: str) -> dict[str, dict[str, Any]]:
    """The file is one plain object, which a browser can read."""
    source = (FOLDER / f"{area}.ts").read_text("utf-8")
    literal = source[source.index("export default") :].removeprefix("export default").rstrip(" ;\n")
    return page.evaluate(f"() => ({literal})")
