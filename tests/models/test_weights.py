"""Checkpoints are read strictly, and nothing in them is run."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shuzhai import LLM, CheckpointError
from shuzhai.checkpoint import read_checkpoint_config
from shuzhai.models.weights import load_weights, read_model_config, read_tensors
from tests.support.tiny import TinyShape, write_checkpoint, write_json

CPU = torch.device("cpu")


def load(folder: Path) -> dict[str, torch.Tensor]:
    model = read_model_config(folder, read_checkpoint_config(folder))
    return load_weights(folder, model, torch.float32, CPU)["decoder"]


def logits(folder: Path) -> torch.Tensor:
    with LLM(folder, device="cpu", dtype="float32") as llm:
        return llm.logits([1, 5, 9, 200, 31])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def set_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | values)


def test_a_missing_tensor_is_named(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda t: t.pop("model.layers.1.attention.wo.weight"))
    with pytest.raises(CheckpointError, match=r"missing.*layers\.1\.attention\.wo\.weight"):
        load(checkpoint)


def test_a_left_over_tensor_is_named(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda t: t.update({"model.layers.0.extra.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"layers\.0\.extra\.weight is not part"):
        load(checkpoint)


@pytest.mark.parametrize(
    "name", ["model.layers.0.feed_forward.w1.weight", "model.layers.0.attention.wqkv.weight"]
)
def test_a_wrong_shape_is_named(checkpoint: Path, name: str) -> None:
    rewrite(checkpoint, lambda t: t.update({name: t[name][:-1].clone()}))
    with pytest.raises(CheckpointError, match=rf"{name} has shape"):
        load(checkpoint)


def test_an_integer_tensor_is_refused(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is of type torch\.int8"):
        load(checkpoint)


def test_a_cut_file_is_refused(checkpoint: Path) -> None:
    data = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load(checkpoint)


def test_no_weights_at_all(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        load(checkpoint)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_shards_of_both_kinds_give_the_same_model(
    checkpoint: Path, tmp_path: Path, kind: str, shards: int
) -> None:
    expected = logits(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    stem, index = {
        "safetensors": ("model", "model.safetensors.index.json"),
        "bin": ("pytorch_model", "pytorch_model.bin.index.json"),
    }[kind]
    weight_map = {}
    for i in range(shards):
        part = {name: t for k, (name, t) in enumerate(tensors.items()) if k % shards == i}
        name = f"{stem}.{kind}" if shards == 1 else f"{stem}-{i + 1:05}-of-{shards:05}.{kind}"
        weight_map |= dict.fromkeys(part, name)
        if kind == "bin":
            torch.save(part, checkpoint / name)
        else:
            save_file(part, checkpoint / name)
    if shards > 1:
        write_json(checkpoint / index, {"metadata": {}, "weight_map": weight_map})
    assert torch.equal(logits(checkpoint), expected)


def test_an_index_cannot_point_out_of_the_folder(checkpoint: Path) -> None:
    write_json(
        checkpoint / "model.safetensors.index.json",
        {"weight_map": {"model.norm.weight": "../model/model.safetensors"}},
    )
    with pytest.raises(CheckpointError, match="not in the folder"):
        load(checkpoint)


class Mischief:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_is_refused_and_not_run(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Mischief(tmp_path / "ran")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="was not loaded"):
        load(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_checkpoint_is_not_imported(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "modeling_internlm2.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    )
    set_config(checkpoint, auto_map={"AutoModelForCausalLM": "modeling_internlm2.Model"})
    logits(checkpoint)
    assert not (tmp_path / "ran").exists()


def to_llama(tensors: dict[str, torch.Tensor], shape: TinyShape) -> dict[str, torch.Tensor]:
    """The same weights under Llama's names."""
    renamed = {
        "model.embed_tokens.weight": tensors["model.tok_embeddings.weight"],
        "model.norm.weight": tensors["model.norm.weight"],
        "lm_head.weight": tensors["output.weight"],
    }
    group, dim = shape.num_heads // shape.num_kv_heads, shape.hidden_size // shape.num_heads
    for i in range(shape.num_layers):
        layer = f"model.layers.{i}."
        qkv = tensors[layer + "attention.wqkv.weight"]
        heads = list(qkv.view(-1, dim, shape.hidden_size))
        q = [h for k, h in enumerate(heads) if k % (group + 2) < group]
        k = heads[group :: group + 2]
        v = heads[group + 1 :: group + 2]
        renamed |= {
            layer + "self_attn.q_proj.weight": torch.cat(q),
            layer + "self_attn.k_proj.weight": torch.cat(k),
            layer + "self_attn.v_proj.weight": torch.cat(v),
            layer + "self_attn.o_proj.weight": tensors[layer + "attention.wo.weight"],
            layer + "mlp.gate_proj.weight": tensors[layer + "feed_forward.w1.weight"],
            layer + "mlp.up_proj.weight": tensors[layer + "feed_forward.w3.weight"],
            layer + "mlp.down_proj.weight": tensors[layer + "feed_forward.w2.weight"],
            layer + "input_layernorm.weight": tensors[layer + "attention_norm.weight"],
            layer + "post_attention_layernorm.weight": tensors[layer + "ffn_norm.weight"],
            layer + "self_attn.rotary_emb.inv_freq": torch.ones(dim // 2),
        }
    return renamed


def test_llama_weights_run_on_the_same_decoder(checkpoint: Path) -> None:
    expected = logits(checkpoint)
    tensors = to_llama(load_file(checkpoint / "model.safetensors"), TinyShape())
    save_file({k: t.contiguous() for k, t in tensors.items()}, checkpoint / "model.safetensors")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    del config["bias"]
    config |= {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False}
    write_json(checkpoint / "config.json", config)
    assert torch.equal(logits(checkpoint), expected)


def test_a_tied_embedding_has_no_head_of_its_own(checkpoint: Path) -> None:
    rewrite(
        checkpoint, lambda t: t.update({"output.weight": t["model.tok_embeddings.weight"].clone()})
    )
    expected = logits(checkpoint)
    set_config(checkpoint, tie_word_embeddings=True)
    assert torch.equal(logits(checkpoint), expected), "named twice is the same"
    rewrite(checkpoint, lambda t: t.pop("output.weight"))
    assert torch.equal(logits(checkpoint), expected)
    other = {"output.weight": torch.ones(402, 32)}
    rewrite(checkpoint, lambda t: t.update(other))
    with pytest.raises(CheckpointError, match="head is not the embedding"):
        load(checkpoint)


def test_files_of_the_time_before_zip(checkpoint: Path) -> None:
    expected = logits(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(tensors, checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(logits(checkpoint), expected)


def test_attention_biases_are_loaded_and_used(tmp_path: Path) -> None:
    biased = write_checkpoint(tmp_path / "biased", TinyShape(bias=True))
    with_bias = logits(biased)
    rewrite(biased, lambda t: [t[name].zero_() for name in t if name.endswith("bias")])
    assert not torch.allclose(logits(biased), with_bias, atol=0.1)


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_of_a_file_go_as_they_are_read(is_zip: bool, tmp_path: Path) -> None:
    """Those of a file that cannot be mapped are in memory as a whole at first."""
    saved = {name: torch.ones(3) for name in "abc"}
    torch.save(saved, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    seen: list[weakref.ref[torch.Tensor]] = []
    for _, tensor in read_tensors(tmp_path):
        assert all(each() is None for each in seen[:-1])
        assert torch.equal(tensor, torch.ones(3))
        seen.append(weakref.ref(tensor))
    assert len(seen) == 3
