import pytest

from shuzhai.errors import ModelNotFoundError
from shuzhai.hub.catalog import CATALOG, DEFAULT_MODEL, DEFAULT_MODELS, find


def test_the_models_that_are_known():
    assert list(CATALOG) == [
        "smollm2-135m",
        "tiny-internvl2",
        "tiny-xcomposer2",
        "internlm2-chat-1.8b",
        "internlm-xcomposer2-vl-1.8b",
        "internvl2-2b",
    ]
    assert DEFAULT_MODELS == (DEFAULT_MODEL, "tiny-internvl2", "tiny-xcomposer2")
    assert set(DEFAULT_MODELS) <= set(CATALOG)
    for name, entry in CATALOG.items():
        assert entry.name == name
        is_on_hubs = entry.wheel is None and not entry.shipped
        assert is_on_hubs == (entry.huggingface is not None)
        assert is_on_hubs == (entry.modelscope is not None)
        assert entry.shipped == (entry.download_bytes == 0)
        if entry.shipped:
            assert "Apache-2.0" in entry.licence
            assert "NOTICE" in entry.licence


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("  SmolLM2_135M ", "smollm2-135m"),
        ("InternLM2-chat-1_8b", "internlm2-chat-1.8b"),
        ("internlm/internlm2-chat-1_8b", "internlm2-chat-1.8b"),
        ("Shanghai_AI_Laboratory/internlm2-chat-1_8b", "internlm2-chat-1.8b"),
        ("internlm-xcomposer2-vl-1_8b", "internlm-xcomposer2-vl-1.8b"),
        ("opengvlab/internvl2-2b", "internvl2-2b"),
        ("INTERNVL2-2B", "internvl2-2b"),
        ("Tiny_InternVL2", "tiny-internvl2"),
    ],
)
def test_names_as_people_type_them(typed, name):
    assert find(typed).name == name


def test_an_unknown_name_gets_the_known_ones_and_a_close_one():
    with pytest.raises(ModelNotFoundError) as caught:
        find("internvl-2b")
    assert "Did you mean internvl2-2b?" in str(caught.value)
    for name in CATALOG:
        assert name in str(caught.value)


def test_a_hostile_name_is_not_echoed_whole():
    with pytest.raises(ModelNotFoundError) as caught:
        find("x" * 1_000_000)
    assert len(str(caught.value)) < 600
