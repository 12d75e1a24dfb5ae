"""Every operation the models use, in plain PyTorch: the specification, the fallback, the oracle.

A subclass overrides what its device does faster; tests hold each override against this class. A
kernel knows tensors only: no model, no request, no configuration.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shuzhai.config import DecoderConfig
from shuzhai.formats.kv import dequantise, quantise
from shuzhai.step import DrawInput, KVPages, StepInput

# How many of the best tokens are sorted at first to find a nucleus.
_NUCLEUS_CANDIDATES = 1024


class Kernels:
    """The reference kernels. Reductions run in float32 whatever the type of the input."""

    def activation_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """The type in which activations flow between layers for weights of a type."""
        return weight_dtype

    def encoder_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """The same for a vision tower."""
        return self.activation_dtype(weight_dtype)

    def can_record(self, config: DecoderConfig, pages: KVPages, dtype: torch.dtype) -> bool:
        """Decode steps of such a model ask nothing of the host, so that they can be recorded."""
        return False

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [T, in], weight [out, in], bias [out] -> [T, out] in the type of x."""
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def embed(
        self, token_ids: Tensor, table: Tensor, last_ids: Tensor | None, sources: Tensor | None
    ) -> Tensor:
        """Rows of table [vocab, n]: [T, n]. sources [T]: where not -1, last_ids[source] is the id.

        token_ids [T] int64, last_ids [S] int64.
        """
        if sources is not None and last_ids is not None:
            taken = last_ids[sources.clamp(min=0).long()]
            token_ids = torch.where(sources >= 0, taken, token_ids)
        return F.embedding(token_ids, table)

    def head(self, x: Tensor, weight: Tensor) -> Tensor:
        """Logits: x [R, n], weight [vocab, n] -> [R, vocab] float32, a tensor of its own."""
        return self.linear(x, weight).float()

    def norm_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """rms_norm, then linear: x, residual [T, n] -> ([T, out], sum [T, n])."""
        normed, total = self.rms_norm(x, norm, eps, residual)
        return self.linear(normed, weight, bias), total

    def norm_gated_linear(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same with weight [2m, n], gate first, then silu_mul: -> ([T, m], sum [T, n])."""
        gate_up, total = self.norm_linear(x, residual, norm, eps, weight)
        return self.silu_mul(gate_up), total

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add the residual, then normalise: x, residual [T, n] -> (normed, sum), both [T, n]."""
        if residual is not None:
            x = x + residual
        x32 = x.float()
        scale = x32.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        return (x32 * scale).mul_(weight).to(x.dtype), x

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """[T, n] -> [T, n]"""
        normed = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
        return normed.to(x.dtype)

    def add_layer_norm(
        self,
        x: Tensor,
        branch: Tensor,
        scale: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """add_branch, then layer_norm: x, branch [T, n] -> (normed, sum), both [T, n]."""
        total = add_branch(x, branch, scale)
        return self.layer_norm(total, weight, bias, eps), total

    def linear_gelu(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """linear, then x times the normal distribution's mass below it (arXiv:1606.08415)."""
        return F.gelu(self.linear(x, weight, bias))

    def quick_gelu(self, x: Tensor) -> Tensor:
        """CLIP's: x sigmoid(1.702 x)."""
        return x * torch.sigmoid(1.702 * x)

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of all to all in each of N pictures: [N, S, H, D] each, same out."""
        scores = torch.einsum("nthd,nshd->nhts", query.float(), key.float()) * scale
        return torch.einsum("nhts,nshd->nthd", scores.softmax(-1), value.float()).to(query.dtype)

    def add_partial_lora(
        self, out: Tensor, x: Tensor, rows: Tensor, down: Tensor, up: Tensor
    ) -> None:
        """Add x W_down^T W_up^T to these rows [I] of out [T, m], a view or not, in place.

        x [T, n], down [rank, n], up [m, rank].
        """
        out[rows] += self.linear(self.linear(x[rows], down), up)

    def rotary_angles(self, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of positions [T] times inv_freq, [D/2] or [T, D/2]: [T, D/2] float32 each."""
        angles = positions.float()[:, None] * inv_freq
        return angles.cos(), angles.sin()

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the halves of each head: x [T, H, D]; cos and sin [T, D/2] float32.

        Halves a, b become a cos - b sin, b cos + a sin.
        """
        x32 = x.float()
        cos, sin = torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]
        return torch.addcmul(x32 * cos, x32.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up for gate_up [T, 2n], gate first -> [T, n]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def decode_parts(
        self, seq_lens: Tensor, config: DecoderConfig, pages: KVPages, dtype: torch.dtype
    ) -> Tensor | None:
        """StepInput.parts of a step whose sequences of one token have these lengths [B] int32, on
        the host: as large for the same B. dtype: of the queries. None: there is no use for it."""
        return None

    def attend(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        pages: KVPages,
        step: StepInput,
        scale: float,
    ) -> Tensor:
        """Rotate queries and keys, store keys and values, attend.

        qkv [T, H + 2K, D], queries first, then keys, then values; cos, sin as `rotary` takes them
        -> [T, H, D].
        """
        num_kv_heads = pages.keys.shape[2]
        turning, v = qkv.split([qkv.shape[1] - num_kv_heads, num_kv_heads], 1)
        q, k = self.rotary(turning, cos, sin).tensor_split([-num_kv_heads], 1)
        self.store_kv(k, v, pages, step.slots)
        return self.paged_attention(q, pages, step, scale)

    def store_kv(self, keys: Tensor, values: Tensor, pages: KVPages, slots: Tensor) -> None:
        """Write keys and values [T, K, D] to their slots [T] of the pages, quantised where they
        hold codes. Tokens of slot -1 are not written."""
        if bool((slots < 0).any()):
            kept = slots >= 0
            keys, values, slots = keys[kept], values[kept], slots[kept]
        for new, stored, params in (
            (keys, pages.keys, pages.key_params),
            (values, pages.values, pages.value_params),
        ):
            if params is not None:
                new, new_params = quantise(new, pages.bits)
                params.flatten(0, 1).index_copy_(0, slots, new_params)
            stored.flatten(0, 1).index_copy_(0, slots, new.to(stored.dtype))

    def paged_attention(
        self, query: Tensor, pages: KVPages, step: StepInput, scale: float
    ) -> Tensor:
        """Causal attention of the step's tokens to their sequences' pages: [T, H, D], same out.

        The last query of a sequence sees all its keys, the one before it one less, and so on.
        """
        out = torch.zeros_like(query)
        starts = step.cu_seqlens_q.tolist()
        for b, length in enumerate(step.seq_lens.tolist()):
            rows = slice(starts[b], starts[b + 1])
            q = query[rows].float()  # [t, H, D]
            k, v = (x.float() for x in self.gather(pages, step.block_tables[b], length))
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # [S, H, D]
            scores = torch.einsum("thd,shd->hts", q, k) * scale
            scores.masked_fill_(~causal_mask(q.shape[0], length, q.device), float("-inf"))
            out[rows] = torch.einsum("hts,shd->thd", scores.softmax(-1), v).to(out.dtype)
        return out

    def gather(self, pages: KVPages, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values of one sequence, [length, K, D] each."""
        used = block_table[: -(-length // pages.keys.shape[1])]

        def take(stored: Tensor, params: Tensor | None) -> Tensor:
            rows = stored[used].flatten(0, 1)[:length]
            if params is None:
                return rows
            return dequantise(rows, params[used].flatten(0, 1)[:length], pages.bits)

        return take(pages.keys, pages.key_params), take(pages.values, pages.value_params)

    def argmax(self, logits: Tensor) -> Tensor:
        """The best token of each row [B, vocab] float32 -> [B] int64, the first one of several."""
        return logits.argmax(-1)

    def draw(self, logits: Tensor, how: DrawInput) -> Tensor:
        """One random token a row [B, vocab] float32 -> [B] int64, by inverse transform over the
        vocabulary's order: unlike one by probability, it does not change when rounding differs
        between batches. top_k, then top_p, then min_p; ties with the last one that is kept stay.
        """
        probs = (logits / how.temperature[:, None]).softmax(-1)
        if how.is_filtered:
            _keep_top_k(probs, how.top_k)
            _keep_top_p(probs, how.top_p)
            probs.masked_fill_(probs < how.min_p[:, None] * probs.amax(-1, keepdim=True), 0.0)
        cumulative = probs.cumsum(-1, dtype=torch.float64)
        target = how.numbers[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
        # Rounding may put the target at the very end, past the last token that has a chance.
        last = cumulative.shape[1] - 1 - (probs.flip(-1) > 0).int().argmax(-1)
        return torch.minimum(tokens, last)


def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """x + branch [T, n], the branch times a number for each channel where there is scale [n]."""
    if scale is None:
        return x + branch
    return torch.addcmul(x, branch, scale.to(x.dtype))


def _keep_top_k(probs: Tensor, top_k: Tensor) -> None:
    """Set all but the top_k probabilities of each row to 0."""
    rows = ((top_k > 0) & (top_k < probs.shape[1])).nonzero()[:, 0]
    if not len(rows):
        return
    counts = top_k[rows].long()
    best = probs[rows].topk(int(counts.max()), dim=-1).values
    least = best.gather(1, counts[:, None] - 1)
    probs[rows] = probs[rows].masked_fill(probs[rows] < least, 0.0)


def _keep_top_p(probs: Tensor, top_p: Tensor) -> None:
    """Keep the fewest best tokens of each row whose share of the row's mass reaches top_p."""
    rows = (top_p < 1.0).nonzero()[:, 0]
    if not len(rows):
        return
    kept = probs[rows]
    mass = (top_p[rows] * kept.sum(-1))[:, None]
    candidates = min(_NUCLEUS_CANDIDATES, kept.shape[1])
    best = kept.topk(candidates, dim=-1).values
    if bool((best.sum(-1, keepdim=True) < mass).any()):
        best = kept.sort(-1, descending=True).values
    before = best.cumsum(-1) - best
    inside = (before < mass).sum(-1, keepdim=True).clamp(min=1)
    least = best.gather(1, inside - 1)
    probs[rows] = kept.masked_fill(kept < least, 0.0)


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """[num_queries, num_keys] bool, True where a query may look; the last query sees every key."""
    query = torch.arange(num_keys - num_queries, num_keys, device=device)
    return torch.arange(num_keys, device=device)[None, :] <= query[:, None]
