"""A small random Llama in a GGUF file, in llama.cpp's layout, and the plain mathematics of both
layouts to compare with."""

import gguf
import numpy as np

LAYERS, HIDDEN, INTER, HEADS, KV_HEADS, CONTEXT = 2, 32, 64, 4, 2, 128
HEAD_DIM = HIDDEN // HEADS
THETA, EPS = 1e4, 1e-5
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "Ġ w"]


def tokens():
    """Control tokens, the 256 bytes in GPT-2's spelling, merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    spelled = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    return [*CONTROL, *spelled, *(merge.replace(" ", "") for merge in MERGES)]


def permute(weight, num_heads):
    """llama.cpp's converter: halves of each head's rows become pairs."""
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def random_weights(seed=0):
    """The tensors of the GGUF, q and k in llama.cpp's order."""
    rng = np.random.default_rng(seed)
    vocab = len(tokens())

    def matrix(*shape):
        return rng.normal(0, 0.3, shape).astype(np.float32)

    weights = {
        "token_embd.weight": matrix(vocab, HIDDEN),
        "output_norm.weight": 1 + matrix(HIDDEN),
    }
    for i in range(LAYERS):
        blk = f"blk.{i}"
        weights |= {
            f"{blk}.attn_q.weight": matrix(HIDDEN, HIDDEN),
            f"{blk}.attn_k.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{blk}.attn_v.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{blk}.attn_output.weight": matrix(HIDDEN, HIDDEN),
            f"{blk}.ffn_gate.weight": matrix(INTER, HIDDEN),
            f"{blk}.ffn_up.weight": matrix(INTER, HIDDEN),
            f"{blk}.ffn_down.weight": matrix(HIDDEN, INTER),
            f"{blk}.attn_norm.weight": 1 + matrix(HIDDEN),
            f"{blk}.ffn_norm.weight": 1 + matrix(HIDDEN),
        }
    return weights


def write(path, weights, *, kind=None, changes=None):
    """Write a GGUF; `kind` quantises the matrices, `changes` replaces metadata (None: none)."""
    writer = gguf.GGUFWriter(path, "llama")
    metadata = {
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INTER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": EPS,
        "llama.rope.freq_base": THETA,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.vocab_size": len(tokens()),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens(),
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(tokens()) - len(CONTROL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
    } | (changes or {})
    for key, value in metadata.items():
        if value is None:
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    for name, values in weights.items():
        if kind is not None and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight


def _angles(num_tokens):
    return np.arange(num_tokens)[:, None] / THETA ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)


def rotate_pairs(x):
    """x [T, H, D]: (x0, x1), (x2, x3)... are rotated: llama.cpp."""
    cos, sin = np.cos(_angles(len(x)))[:, None], np.sin(_angles(len(x)))[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., ::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
    return out


def rotate_halves(x):
    """x [T, H, D]: (x0, xD/2), (x1, xD/2+1)... are rotated: InternLM2."""
    cos, sin = np.cos(_angles(len(x)))[:, None], np.sin(_angles(len(x)))[:, None]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def _layer(x, q, k, v, out, gate, up, down, ffn_norm):
    """q [T, H, D], k and v [T, K, D], rotated; causal attention, then the MLP."""
    k, v = (np.repeat(part, HEADS // KV_HEADS, axis=1) for part in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(HEAD_DIM)
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    x = x + np.einsum("hts,shd->thd", scores, v).reshape(len(x), HIDDEN) @ out.T
    y = _norm(x, ffn_norm)
    gated = y @ gate.T
    return x + (gated / (1 + np.exp(-gated)) * (y @ up.T)) @ down.T


def forward_gguf(weights, ids):
    """Logits as llama.cpp computes them from its own layout."""
    x = weights["token_embd.weight"][ids]
    for i in range(LAYERS):
        w = {name: weights[f"blk.{i}.{name}.weight"] for name in (
            "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
            "attn_norm", "ffn_norm",
        )}  # fmt: skip
        y = _norm(x, w["attn_norm"])
        q = rotate_pairs((y @ w["attn_q"].T).reshape(-1, HEADS, HEAD_DIM))
        k = rotate_pairs((y @ w["attn_k"].T).reshape(-1, KV_HEADS, HEAD_DIM))
        v = (y @ w["attn_v"].T).reshape(-1, KV_HEADS, HEAD_DIM)
        x = _layer(x, q, k, v, w["attn_output"], w["ffn_gate"], w["ffn_up"], w["ffn_down"],
                   w["ffn_norm"])  # fmt: skip
    head = weights.get("output.weight", weights["token_embd.weight"])
    return _norm(x, weights["output_norm.weight"]) @ head.T


def forward_internlm2(weights, ids):
    """Logits as InternLM2 computes them from its checkpoint."""
    weights = {name: values.astype(np.float32) for name, values in weights.items()}
    x = weights["model.tok_embeddings.weight"][ids]
    for i in range(LAYERS):
        prefix = f"model.layers.{i}."
        w = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
        qkv = _norm(x, w["attention_norm.weight"]) @ w["attention.wqkv.weight"].T
        qkv = qkv.reshape(len(ids), KV_HEADS, HEADS // KV_HEADS + 2, HEAD_DIM)
        q = rotate_halves(qkv[:, :, :-2].reshape(-1, HEADS, HEAD_DIM))
        k, v = rotate_halves(qkv[:, :, -2]), qkv[:, :, -1]
        x = _layer(x, q, k, v, w["attention.wo.weight"], w["feed_forward.w1.weight"],
                   w["feed_forward.w3.weight"], w["feed_forward.w2.weight"],
                   w["ffn_norm.weight"])  # fmt: skip
    return _norm(x, weights["model.norm.weight"]) @ weights["output.weight"].T
