"""The data of training from public packages: python -m training.artwork PACKAGES DATA

PACKAGES holds unpacked npm packages, each in a folder of its name: emojibase-data,
cldr-annotations-full, and @iconify-json/<set> for every set of artwork. A concept is an emoji of
one code point, or a flag of no country, that noto and twemoji have drawn.
"""

from __future__ import annotations

import io
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image

from training.data import HELD_OUT_SETS, SIDE, TRAIN_SETS

_FLAGS = ("1F3F3-200D-1F308", "1F3F3-200D-26A7", "1F3F4-200D-2620")
# Names of keys whose drawing is the text itself.
_NOT_CONCEPTS = {"keycap: 10"}
_NEEDED = ("noto", "twemoji")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _annotations(packages: Path, language: str) -> dict[str, dict[str, list[str]]]:
    """Names (tts) and keywords (default) of Unicode CLDR by character, sequences among them."""
    folder = packages / "cldr-annotations-full" / "annotations"
    return _read(folder / language / "annotations.json")["annotations"]["annotations"]


def _plain(text: str) -> str:
    """Without the selector that asks for a colourful picture."""
    return text.replace("\ufe0f", "")


def concepts(packages: Path) -> list[dict[str, Any]]:
    """The manifest: one entry for each concept, in the order of emojibase."""
    emojis = _read(packages / "emojibase-data" / "en" / "data.json")
    groups = _read(packages / "emojibase-data" / "meta" / "groups.json")
    english, chinese = (_annotations(packages, language) for language in ("en", "zh"))
    codes = _shortcodes(packages)
    labels = {_letters(emoji["label"]) for emoji in emojis}
    sets = {name: IconNames(packages, name) for name in (*TRAIN_SETS, *HELD_OUT_SETS)}
    listed = []
    for emoji in sorted(emojis, key=lambda e: e.get("order", 0)):
        code = emoji["hexcode"].replace("-FE0F", "")
        group = groups["groups"].get(str(emoji.get("group")))
        is_one = "-" not in code or code in _FLAGS
        if not is_one or group in (None, "component") or emoji["label"] in _NOT_CONCEPTS:
            continue
        first = sets[_NEEDED[0]].find(code, ())
        # What is called like another emoji is that one: dizzy is no face.
        names = (
            emoji["label"],
            first or "",
            *(c for c in codes[code] if _letters(c) not in labels),
        )
        found = {name: icons.find(code, names) for name, icons in sets.items()}
        if not all(found[name] for name in _NEEDED):
            continue
        char = _plain(emoji["emoji"])
        en, zh = english[char], chinese[char]
        listed.append({
            "char": char, "hex": code, "group": group,
            "subgroup": groups["subgroups"][str(emoji["subgroup"])],
            "en": en["tts"][0], "zh": zh["tts"][0], "kw_en": en["default"], "kw_zh": zh["default"],
            "icons": {name: icon for name, icon in found.items() if icon},
        })  # fmt: skip
    return listed


def _shortcodes(packages: Path) -> dict[str, list[str]]:
    """What people type for an emoji, by code points: names of icons, too, in sets without codes."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((packages / "emojibase-data" / "en" / "shortcodes").glob("*.json")):
        for code, names in _read(path).items():
            found[code.replace("-FE0F", "")] += [names] if isinstance(names, str) else names
    return found


class IconNames:
    """The icons of a set, by code points where it knows them, else by names."""

    def __init__(self, packages: Path, name: str) -> None:
        folder = packages / "@iconify-json" / name
        chars, icons = _read(folder / "chars.json"), _read(folder / "icons.json")
        self._by_code = {c.upper().replace("-FE0F", ""): icon for c, icon in chars.items()}
        # An alias that mirrors or turns its parent would be drawn wrongly.
        same = [a for a, how in icons.get("aliases", {}).items() if how.keys() == {"parent"}]
        self._by_name = {_letters(icon): icon for icon in (*same, *icons["icons"])}

    def find(self, code: str, names: Iterable[str]) -> str | None:
        if self._by_code:
            return self._by_code.get(code)
        return next((self._by_name[n] for n in map(_letters, names) if n in self._by_name), None)


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def render(packages: Path, name: str, listed: list[dict[str, Any]], folder: Path) -> int:
    """Write <set>.bin and <set>.json: [concept, offset, length] of each drawing. Their number."""
    icons = _read(packages / "@iconify-json" / name / "icons.json")
    rows = [row for row, concept in enumerate(listed) if name in concept["icons"]]
    with ThreadPoolExecutor() as pool:
        files = list(pool.map(lambda row: _draw(icons, listed[row]["icons"][name]), rows))
    index, at = [], 0
    for row, file in zip(rows, files, strict=True):
        index.append([row, at, len(file)])
        at += len(file)
    (folder / f"{name}.bin").write_bytes(b"".join(files))
    (folder / f"{name}.json").write_text(json.dumps(index), encoding="utf-8")
    return len(rows)


def _draw(icons: dict[str, Any], name: str) -> bytes:
    icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
    box = [icon.get("left", 0), icon.get("top", 0)]
    box += [icon.get(key, icons.get(key, 16)) for key in ("width", "height")]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}" width="{SIDE}" height="{SIDE}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    packed = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGBA").save(packed, "WEBP", quality=80, method=6)
    return packed.getvalue()


def main(packages: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    listed = concepts(packages)
    text = json.dumps(listed, ensure_ascii=False)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    print(f"{len(listed)} concepts")
    for name in (*TRAIN_SETS, *HELD_OUT_SETS):
        print(f"{name}: {render(packages, name, listed, folder)} drawings")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
