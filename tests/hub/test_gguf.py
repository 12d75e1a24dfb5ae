import contextlib
import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from shuzhai.checkpoint import read_checkpoint_config
from shuzhai.errors import CheckpointError
from shuzhai.hub.gguf_convert import convert, unpermute
from tests.hub import tiny_gguf

IDS = [5, 99, 3, 260, 17, 17, 42, 1]


@pytest.fixture(scope="module")
def weights():
    return tiny_gguf.random_weights()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def _convert(tmp_path, folder, progress, weights, **options):
    path = tiny_gguf.write(tmp_path / "tiny.gguf", weights, **options)
    convert(path, folder, "tiny", progress)


def test_unpermute_undoes_the_row_order_of_llama_cpp():
    weight = np.arange(48 * 3, dtype=np.float32).reshape(48, 3)
    for heads in (1, 2, 4):
        assert (unpermute(tiny_gguf.permute(weight, heads), heads) == weight).all()


@pytest.mark.parametrize("tied", [True, False])
def test_the_converted_model_computes_the_same(tmp_path, folder, progress, weights, tied):
    if not tied:
        vocab = len(tiny_gguf.tokens())
        head = np.random.default_rng(7).normal(0, 0.3, (vocab, tiny_gguf.HIDDEN))
        weights = weights | {"output.weight": head.astype(np.float32)}
    _convert(tmp_path, folder, progress, weights)
    expected = tiny_gguf.forward_gguf(weights, IDS)
    found = tiny_gguf.forward_internlm2(load_file(folder / "model.safetensors"), IDS)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=0.02)  # float16 weights
    # The test can tell: without the rotation's row order the logits are far off.
    broken = {n: tiny_gguf.permute(v, 4) if "attn_q" in n else v for n, v in weights.items()}
    assert np.abs(tiny_gguf.forward_gguf(broken, IDS) - expected).max() > 0.5


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_quantised_weights_are_dequantised(tmp_path, folder, progress, weights, kind):
    kind = gguf.GGMLQuantizationType[kind]
    _convert(tmp_path, folder, progress, weights, kind=kind)
    quantised = {
        name: gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        if values.ndim == 2
        else values
        for name, values in weights.items()
    }
    found = tiny_gguf.forward_internlm2(load_file(folder / "model.safetensors"), IDS)
    np.testing.assert_allclose(found, tiny_gguf.forward_gguf(quantised, IDS), atol=0.02)


def test_the_configs_say_what_the_gguf_said(tmp_path, folder, progress, weights):
    _convert(tmp_path, folder, progress, weights)
    config = read_checkpoint_config(folder)
    decoder = config.decoder
    assert config.template == "smollm2-chat"
    assert dict(config.sampling) == {}
    assert (decoder.layout, decoder.num_layers, decoder.hidden_size) == ("internlm2", 2, 32)
    assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim) == (4, 2, 8)
    assert (decoder.rms_norm_eps, decoder.rope_theta) == (1e-5, 1e4)
    assert decoder.stop_ids == (2, 0)
    assert decoder.max_position_embeddings == 128
    assert "auto_map" not in json.loads((folder / "config.json").read_text())


def test_the_progress_adds_up(tmp_path, folder, progress, weights):
    _convert(tmp_path, folder, progress, weights)
    assert progress.stages[1:][0] == ("Reading tiny", None)
    stage, total = progress.stages[-1]
    assert stage == "Converting tiny"
    assert progress.done[-1] == total


def test_the_tokenizer(tmp_path, folder, progress, weights):
    _convert(tmp_path, folder, progress, weights)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = tiny_gguf.tokens()
    pieces = [names[i] for i in tokenizer.encode("hello world 42").ids]
    assert pieces == ["hell", "o", "Ġw", "o", "r", "l", "d", "Ġ", "4", "2"]
    text = "naïve 书生 🙂\n\t x"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("<|im_end|>").ids == [2]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"]["2"]["content"] == "<|im_end|>"
    assert config["added_tokens_decoder"]["2"]["special"] is True
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert config["add_bos_token"] is False


def _without(name):
    return lambda weights: {n: v for n, v in weights.items() if n != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("blk.1.ffn_up.weight"), "blk.1.ffn_up.weight is missing"),
        (lambda w: w | {"rope_freqs.weight": np.ones(4, np.float32)}, "rope_freqs.weight is not"),
        (lambda w: w | {"blk.0.attn_q.bias": np.ones(32, np.float32)}, "attn_q.bias is not"),
        (lambda w: w | {"output_norm.weight": np.ones(31, np.float32)}, "output_norm.weight is"),
        (lambda w: w | {"output_norm.weight": np.full(32, 1e9, np.float32)}, "float16"),
    ],
)
def test_tensors_are_mapped_strictly(tmp_path, folder, progress, weights, change, words):
    with pytest.raises(CheckpointError, match=words):
        _convert(tmp_path, folder, progress, change(weights))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type"),
        ({"llama.expert_count": 8}, "llama.expert_count"),
        ({"llama.attention.head_count": 0}, "do not fit"),
        ({"llama.attention.head_count": 5}, "do not fit"),
        ({"llama.attention.head_count_kv": 3}, "do not fit"),
        ({"llama.rope.dimension_count": 4}, "do not fit"),
        ({"llama.rope.freq_base": float("nan")}, "do not fit"),
        ({"llama.block_count": 0}, "do not fit"),
        ({"llama.block_count": 3}, "blk.2.* is missing"),
        ({"llama.block_count": "2"}, "llama.block_count must be a int"),
        ({"llama.context_length": None}, "llama.context_length"),
        ({"llama.vocab_size": 7}, "vocab_size"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.pre"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "bos_token_id"),
        ({"tokenizer.ggml.merges": ["h e", "hello"]}, "merge"),
        ({"tokenizer.ggml.merges": ["書 生"]}, "do not fit"),
    ],
)
def test_metadata_is_read_strictly(tmp_path, folder, progress, weights, changes, words):
    with pytest.raises(CheckpointError, match=words):
        _convert(tmp_path, folder, progress, weights, changes=changes)


def test_a_damaged_file_is_an_error_and_no_crash(tmp_path, folder, progress, weights):
    data = tiny_gguf.write(tmp_path / "tiny.gguf", weights).read_bytes()
    rng = np.random.default_rng(0)
    broken = [b"", b"GGUF", b"\x89PNG" + bytes(100), data[:20], data[:500], data[:-100]]
    for content in broken:
        (tmp_path / "broken.gguf").write_bytes(content)
        with pytest.raises(CheckpointError):
            convert(tmp_path / "broken.gguf", folder, "tiny", progress)
    assert list(folder.iterdir()) == []
    for _ in range(40):  # a byte anywhere in the metadata: it matters, or it does not
        copy = bytearray(data)
        copy[rng.integers(0, 9000)] ^= rng.integers(1, 256)
        (tmp_path / "broken.gguf").write_bytes(copy)
        with contextlib.suppress(CheckpointError):
            convert(tmp_path / "broken.gguf", folder, "tiny", progress)
