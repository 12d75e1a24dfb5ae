"""The cards of the shipped models agree with the models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shuzhai.hub import shipped
from shuzhai.hub.catalog import CATALOG

CARDS = Path(__file__).parents[2] / "docs" / "models"
SHIPPED = [name for name, entry in CATALOG.items() if entry.shipped]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_is_there_and_its_links_hold(name: str) -> None:
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    assert "## 中文" in text
    assert "does not know photographs" in text
    assert "不认识照片" in text
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (CARDS / link).exists(), link


@pytest.mark.parametrize("name", SHIPPED)
def test_sizes_are_those_of_the_folder(name: str) -> None:
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    folder = shipped.folder_of(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    decoder, tower = config.get("llm_config", config), config["vision_config"]
    assert (
        f"InternLM2, {decoder['hidden_size']} wide, {decoder['num_hidden_layers']} layers, "
        f"{decoder['num_attention_heads']} heads, {decoder['num_key_value_heads']} kv heads, "
        f"FFN {decoder['intermediate_size']},"
    ) in text
    assert (
        f"tower | {tower['hidden_size']} wide, {tower['num_hidden_layers']} layers, "
        f"{tower['num_attention_heads']} heads, {tower['image_size']} px"
    ) in text
    megabytes = (folder / "model.safetensors").stat().st_size / 1e6
    assert text.count(f"{megabytes:.1f} MB") == 2
