"""The numbers that are known without a model's files."""

from __future__ import annotations

import pytest

from shuzhai.config import ModelConfig
from shuzhai.errors import ModelNotFoundError
from shuzhai.hub.catalog import CATALOG
from shuzhai.hub.shapes import SHAPES, shape_of
from shuzhai.models.weights import num_parameters


def test_every_model_that_is_fetched_has_its_numbers() -> None:
    fetched = [entry.name for entry in CATALOG.values() if not entry.shipped]
    assert sorted(SHAPES) == sorted(fetched)
    for entry in CATALOG.values():
        if entry.name in SHAPES:
            model = SHAPES[entry.name]
            assert (model.vision is not None) == (entry.kind == "vision")
            assert model.decoder.num_heads % model.decoder.num_kv_heads == 0


@pytest.mark.parametrize("name", [name for name in SHAPES if CATALOG[name].wheel is None])
def test_the_numbers_agree_with_the_size_of_the_files(name: str) -> None:
    """Files of 16-bit numbers; catalogs round to 0.1 %."""
    size = 2 * num_parameters(shape_of(name))
    assert size == pytest.approx(CATALOG[name].download_bytes, rel=2e-3)


def test_a_name_is_what_people_type() -> None:
    assert isinstance(shape_of("InternVL2_2B"), ModelConfig)
    with pytest.raises(ModelNotFoundError, match="shuzhai pull tiny-internvl2"):
        shape_of("tiny-internvl2")
    with pytest.raises(ModelNotFoundError, match="Did you mean"):
        shape_of("internvl2-3b")
