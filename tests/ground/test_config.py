"""Options and config files are read strictly: what is not implemented is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shuzhai import CheckpointError, ConfigError, EngineConfig
from shuzhai.checkpoint import read_checkpoint_config
from shuzhai.config import Environment, parse_bytes
from tests.support.tiny import TinyShape, internlm2_config, write_json

GOOD = internlm2_config(TinyShape(), 400)


def read(folder: Path, generation: object = None, **values: object):
    write_json(folder / "config.json", GOOD | values)
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    return read_checkpoint_config(folder)


def test_numbers_come_from_the_file(tmp_path: Path) -> None:
    decoder = read(tmp_path, rope_theta=5e5, rms_norm_eps=1e-6, head_dim=16).decoder
    assert (decoder.rope_theta, decoder.rms_norm_eps, decoder.head_dim) == (5e5, 1e-6, 16)
    assert decoder.stop_ids == (2,)


def test_generation_config_has_the_last_word_on_stops_and_sampling(tmp_path: Path) -> None:
    config = read(tmp_path, {"eos_token_id": [2, 7], "temperature": 0.3, "top_k": 20})
    assert config.decoder.stop_ids == (2, 7)
    assert config.sampling == {"temperature": 0.3, "top_k": 20}
    greedy = read(tmp_path, {"do_sample": False})
    assert greedy.sampling == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 0.5}}, "factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "beta": 3}}, "beta"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"num_experts": 8}, "num_experts"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 34}, "hidden_size"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"num_key_value_heads": 3}, "kv heads"),
        ({"eos_token_id": "end"}, "eos_token_id"),
        ({"eos_token_id": 400}, "eos_token_id"),
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": {"x": 1}}, "architectures"),
        ({"architectures": [["x"]]}, "architectures"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ({"num_beams": 4}, "num_beams"),
    ],
)
def test_what_is_not_implemented_is_named(tmp_path: Path, values: dict, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read(tmp_path, **values)


@pytest.mark.parametrize(
    "values", [{"temperature": "hot"}, {"suppress_tokens": [1]}, {"eos_token_id": [9999]}]
)
def test_generation_config_is_read_strictly(tmp_path: Path, values: dict) -> None:
    with pytest.raises(CheckpointError, match=next(iter(values))):
        read(tmp_path, values)


def test_neutral_values_of_unknown_keys_pass(tmp_path: Path) -> None:
    read(tmp_path, num_experts=None, use_fancy=False, sliding_window=None, pretraining_tp=1)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_config_that_is_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_checkpoint_config(tmp_path)


def test_an_unknown_option_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'max_tokens'.*max_model_len"):
        EngineConfig.from_options({"max_tokens": 3})


@pytest.mark.parametrize(
    "options",
    [{"device": "tpu"}, {"dtype": "int8"}, {"memory": "lots"}, {"block_size": 0},
     {"max_num_seqs": 0}, {"max_model_len": 1.5}, {"kv_dtype": "int2"},
     {"device": "cuda:x"}],
)  # fmt: skip
def test_bad_options(options: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        EngineConfig.from_options(options)


def test_sizes() -> None:
    assert parse_bytes("8GiB") == 8 * 2**30
    assert parse_bytes("1.5 gb") == 1_500_000_000
    assert parse_bytes("8G") == parse_bytes("8 g") == 8 * 2**30
    for text in ("8T", "8Gi", "G", "-1", "8 GiB more"):
        with pytest.raises(ConfigError, match="must be a size such as 8GiB"):
            parse_bytes(text)
    assert parse_bytes(123) == 123
    for text in ("9" * 30, "9" * 400, "1" + "0" * 10 + "GiB"):
        with pytest.raises(ConfigError, match="more than any machine has"):
            parse_bytes(text)


def test_environment() -> None:
    env = Environment.read({"SHUZHAI_HOME": "/data", "SSH_CONNECTION": "1.2.3.4 5 6.7.8.9 22"})
    assert env.home == Path("/data")
    assert env.in_ssh
    assert Environment.read({}).home == Path.home() / ".shuzhai"
    assert json.dumps(Environment.read({}).api_key) == "null"


def test_keys_of_experts_are_harmless_where_there_are_none(tmp_path: Path) -> None:
    unused = {"num_experts": 8, "capacity_factor": 1.2, "noisy_gate_policy": "RSample"}
    read(tmp_path, use_moe=False, **unused)
    with pytest.raises(CheckpointError, match="use_moe"):
        read(tmp_path, use_moe=True, **unused)
