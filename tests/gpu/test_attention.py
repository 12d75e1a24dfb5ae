"""Attention and the KV store against the reference kernels: odd shapes, poisoned memory.

What a kernel stores is held against what the reference stores; what it attends to, against the
reference in float32 on the pages as the kernel left them.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from shuzhai.formats.kv import dequantise
from shuzhai.kernels.base import Kernels
from shuzhai.kernels.triton import attention
from shuzhai.kernels.triton.decode_attention import decode_attend
from shuzhai.kernels.triton.decode_tiles import DecodeWorkspace, decode_parts
from shuzhai.kernels.triton.kv_store import rotate_and_store
from shuzhai.kernels.triton.prefill_attention import prefill_attention
from shuzhai.step import KVPages, StepInput
from tests.gpu.conftest import is_interpreted

pytestmark = [
    pytest.mark.skipif(
        not (torch.cuda.is_available() or is_interpreted()), reason="needs a GPU or the interpreter"
    ),
    # The interpreter's own, of numpy.
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]

REFERENCE = Kernels()
NAN = float("nan")
PAGE_SIZE = 16
# (query heads, kv heads, head size), type of the activations, bits of the pages. The real model's
# heads in every kind; groups of 1, 3 and 8, small and large heads in a few: each is compiled.
MODEL = (16, 8, 128) if not is_interpreted() else (4, 2, 64)
CASES = [
    (MODEL, torch.float32, 32), (MODEL, torch.bfloat16, 16), (MODEL, torch.float16, 16),
    (MODEL, torch.float32, 8), (MODEL, torch.bfloat16, 8), (MODEL, torch.float16, 4),
    (MODEL, torch.bfloat16, 4), (MODEL, torch.float32, 4), (MODEL, torch.float16, 8),
    ((6, 2, 64), torch.float32, 32), ((6, 2, 64), torch.bfloat16, 8),
    ((2, 2, 64), torch.float16, 4), ((2, 2, 32), torch.bfloat16, 16),
    ((8, 1, 16), torch.float16, 16), ((8, 1, 32), torch.float32, 8),
    ((4, 2, 256), torch.bfloat16, 16), ((4, 2, 256), torch.float16, 8),
]  # fmt: skip
if is_interpreted():
    # It does not multiply bfloat16.
    CASES = [case for case in CASES if case[0][2] < 256 and case[1:] != (torch.bfloat16, 16)]
# Of values of about 1: probabilities and results are rounded to the type of the activations, of 8
# and 11 bits, and numbers from codes to 11.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def empty_pages(
    count: int, kv_heads: int, dim: int, dtype: torch.dtype, bits: int, device: torch.device
) -> KVPages:
    """Full of NaN."""
    shape = (count, PAGE_SIZE, kv_heads)
    if bits >= 16:
        return KVPages(
            *(torch.full((*shape, dim), NAN, dtype=dtype, device=device) for _ in "kv"), bits=bits
        )
    codes = [torch.full((*shape, dim * bits // 8), 255, dtype=torch.uint8) for _ in "kv"]
    params = [torch.full((*shape, 2), NAN, dtype=torch.float16) for _ in "kv"]
    return KVPages(*(x.to(device) for x in (*codes, *params)), bits=bits)


def copy_of(pages: KVPages) -> KVPages:
    parts = (pages.keys, pages.values, pages.key_params, pages.value_params)
    return KVPages(*(None if x is None else x.cpu().clone() for x in parts), bits=pages.bits)


class Case:
    """Sequences of (new tokens, length) whose past lies in shuffled pages; a length of 0 is an
    empty place."""

    def __init__(self, chunks, heads, dtype, bits, device) -> None:
        num_heads, kv_heads, dim = heads
        counts = [-(-length // PAGE_SIZE) for _, length in chunks]
        self.pages = empty_pages(sum(counts) + 3, kv_heads, dim, dtype, bits, device)
        order = (1 + torch.randperm(sum(counts) + 2, generator=torch.Generator())).tolist()
        tables = torch.zeros(len(chunks), max(counts) + 2, dtype=torch.int32)
        past, new, starts = [], [], [0]
        for b, (count, length) in enumerate(chunks):
            own = [order.pop() for _ in range(counts[b])]
            tables[b, : len(own)] = torch.tensor(own, dtype=torch.int32)
            slots = [own[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for p in range(length)]
            past += slots[: length - count] if length else []
            new += slots[length - count :] if length else [-1] * count
            starts.append(starts[-1] + count)
        host = copy_of(self.pages)
        old = noise(2, len(past), kv_heads, dim).to(dtype)
        REFERENCE.store_kv(old[0], old[1] + 0.5, host, torch.tensor(past, dtype=torch.int64))
        for mine, theirs in zip(parts_of(self.pages), parts_of(host), strict=True):
            mine.copy_(theirs)
        total, angles = starts[-1], noise(starts[-1], dim // 2, seed=1) * 3
        self.scale, self.kv_heads = dim**-0.5, kv_heads
        self.qkv = noise(total, num_heads + 2 * kv_heads, dim, seed=2).to(dtype).to(device)
        self.cos, self.sin = angles.cos().to(device), angles.sin().to(device)
        self.step = StepInput(
            token_ids=torch.zeros(total, dtype=torch.int64),
            positions=torch.zeros(total, dtype=torch.int64),
            slots=torch.tensor(new, dtype=torch.int64),
            cu_seqlens_q=torch.tensor(starts, dtype=torch.int32),
            seq_lens=torch.tensor([length for _, length in chunks], dtype=torch.int32),
            block_tables=tables,
            logit_rows=torch.zeros(0, dtype=torch.int64),
            num_decodes=0,
            max_seqlen_q=max(count for count, _ in chunks),
        )
        self.slots, self.cu, self.lengths, self.tables = (
            x.to(device)
            for x in (self.step.slots, self.step.cu_seqlens_q, self.step.seq_lens, tables)
        )

    def rotated(self) -> torch.Tensor:
        """Queries and keys as the reference turns them."""
        turning = self.qkv[:, : -self.kv_heads].cpu()
        return REFERENCE.rotary(turning, self.cos.cpu(), self.sin.cpu())

    def expected_pages(self) -> KVPages:
        """As the reference leaves them; call before the kernel has run."""
        pages, v = copy_of(self.pages), self.qkv[:, -self.kv_heads :].cpu()
        REFERENCE.store_kv(self.rotated()[:, -self.kv_heads :], v, pages, self.step.slots)
        return pages

    def expected(self, queries: torch.Tensor) -> torch.Tensor:
        """What the reference finds in the pages as they are now, in float32."""
        return REFERENCE.paged_attention(
            queries.float(), copy_of(self.pages), self.step, self.scale
        )

    def parts(self, workspace: DecodeWorkspace) -> torch.Tensor:
        num_heads, lengths = self.qkv.shape[1] - 2 * self.kv_heads, self.lengths.cpu()
        return decode_parts(
            lengths, num_heads, self.kv_heads, self.qkv.shape[2], self.qkv.dtype, self.pages.bits,
            workspace,
        ).to(self.qkv.device)  # fmt: skip

    def decode(
        self, workspace: DecodeWorkspace, tile: attention.Tile | None = None
    ) -> torch.Tensor:
        num_heads = self.qkv.shape[1] - 2 * self.kv_heads
        shape = (self.qkv.shape[0], num_heads, self.qkv.shape[2])
        out = torch.full(shape, NAN, dtype=self.qkv.dtype, device=self.qkv.device)
        found = decode_attend(
            self.qkv, self.cos, self.sin, self.pages, self.slots, self.lengths, self.tables,
            self.parts(workspace), self.scale, workspace, out, tile,
        )  # fmt: skip
        assert found is out
        return out.cpu()

    def prefill(self, queries: torch.Tensor) -> torch.Tensor:
        out = torch.full_like(queries, NAN)
        found = prefill_attention(
            queries, self.pages, self.cu, self.lengths, self.tables, self.step.max_seqlen_q,
            self.scale, out=out,
        )  # fmt: skip
        assert found is out
        return out.cpu()


def parts_of(pages: KVPages) -> list[torch.Tensor]:
    parts = (pages.keys, pages.values, pages.key_params, pages.value_params)
    return [x for x in parts if x is not None]


def assert_same_pages(found: KVPages, expected: KVPages, dtype: torch.dtype) -> None:
    """The same but for rounding: a last bit of the activations' type, or one code of a number that
    lay between two; untouched where the reference did not write."""
    found, eps = copy_of(found), torch.finfo(dtype).eps
    for mine, theirs, params, their_params in (
        (found.keys, expected.keys, found.key_params, expected.key_params),
        (found.values, expected.values, found.value_params, expected.value_params),
    ):
        if params is None:
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=eps, equal_nan=True)
            continue
        torch.testing.assert_close(params, their_params, atol=1e-3, rtol=eps, equal_nan=True)
        a, b = dequantise(mine, params, found.bits), dequantise(theirs, their_params, found.bits)
        apart, step = (a - b).abs().nan_to_num(0), their_params[..., :1].float().nan_to_num(0)
        # The bounds of a head may be off by a last bit each, too.
        largest = b.abs().amax(-1, keepdim=True).nan_to_num(0)
        assert bool((apart <= 1.01 * step + 3 * eps * largest).all())
        assert (apart > 0.2 * step + 3 * eps * largest).float().mean() < 0.005
        assert bool((mine[their_params.isnan().any(-1)] == 255).all())


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCES[found.dtype]
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("heads", "dtype", "bits"), CASES)
def test_rotate_and_store(heads, dtype, bits, device) -> None:
    for tokens in [1, 7] if is_interpreted() else [1, 7, 63, 130]:
        case = Case([(tokens, tokens + 5), (1, 0)], heads, dtype, bits, device)
        expected, rotated = case.expected_pages(), case.rotated()
        q, k = rotate_and_store(case.qkv, case.cos, case.sin, case.pages, case.slots, True)
        found = torch.cat((q, k), 1).cpu()
        torch.testing.assert_close(found, rotated, atol=1e-6, rtol=torch.finfo(dtype).eps)
        assert_same_pages(case.pages, expected, dtype)
        again, none = rotate_and_store(case.qkv, case.cos, case.sin, case.pages, case.slots)
        assert none is None
        assert torch.equal(again, q)


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_of_unusual_heads(bits, device) -> None:
    dtype, heads, dim = torch.float32, 7, 64
    v = noise(1, heads, dim)
    v[0, 0], v[0, 1], v[0, 2] = 0.0, 3.25, 1e-8 * v[0, 2]
    v[0, 3, 5], v[0, 4, 9], v[0, 5, 1] = 60000.0, float("inf"), NAN
    qkv = torch.cat((noise(1, heads, dim), noise(1, heads, dim), v), 1).to(device)
    pages = empty_pages(1, heads, dim, dtype, bits, device)
    cos, sin = torch.ones(1, dim // 2, device=device), torch.zeros(1, dim // 2, device=device)
    expected, slots = copy_of(pages), torch.tensor([3])
    REFERENCE.store_kv(qkv[:, heads:-heads].cpu(), v, expected, slots)
    rotate_and_store(qkv, cos, sin, pages, slots.to(device))
    found = copy_of(pages)
    assert torch.equal(found.key_params[0, 3], expected.key_params[0, 3])
    torch.testing.assert_close(
        found.value_params[0, 3], expected.value_params[0, 3], atol=0, rtol=0, equal_nan=True
    )
    assert bool(found.value_params[0, 3, 5].isnan().all())
    kept = [0, 1, 2, 3, 4, 6]
    values = [dequantise(p.values, p.value_params, bits)[0, 3, kept] for p in (found, expected)]
    torch.testing.assert_close(*values, atol=0, rtol=1e-6)


DECODES = [[1], [17], [300], [1, 0, 16, 130, 15, 0, 64], [5] * 33]
LONG_DECODES = [[1000], [5000, 3], [1000, 3, 257, 0, 512, 128, 129], list(range(1, 131)), [700] * 9]


@pytest.mark.parametrize(("heads", "dtype", "bits"), CASES)
def test_decode(heads, dtype, bits, device) -> None:
    workspace = DecodeWorkspace(device)
    for lengths in DECODES[:4] if is_interpreted() else DECODES + LONG_DECODES:
        case = Case([(1, length) for length in lengths], heads, dtype, bits, device)
        expected = case.expected_pages()
        found = case.decode(workspace)
        assert_same_pages(case.pages, expected, dtype)
        assert_near(found, case.expected(case.rotated()[:, : -case.kv_heads]))
        assert bool((found[case.step.seq_lens == 0] == 0).all())
        assert torch.equal(case.decode(workspace), found)
        assert not bool(workspace.counters.any())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [2, 8, 16])
def test_tiles_of_codes_for_tensor_cores(rows, bits, device) -> None:
    for keys, warps, stages in [(32, 1, 1), (32, 2, 3), (64, 2, 2), (64, 4, 2)]:
        if is_interpreted() and (warps, rows) not in [(1, 2), (2, 8), (4, 16)]:
            continue
        lengths = [1, 0, 33, 100] if is_interpreted() else [1, 0, 33, 300, 64, 65, 1000]
        case = Case([(1, length) for length in lengths], MODEL, torch.float16, bits, device)
        workspace, tile = DecodeWorkspace(device), attention.Tile(rows, keys, warps, stages)
        found = case.decode(workspace, tile)
        assert_near(found, case.expected(case.rotated()[:, : -case.kv_heads]))
        assert torch.equal(case.decode(workspace, tile), found)


def test_small_queries_of_large_keys(device) -> None:
    case = Case([(1, 70), (1, 33)], MODEL, torch.float16, 4, device)
    small, large = 3e-3, 1000
    case.qkv[:, : -2 * case.kv_heads] *= small
    case.qkv[:, -2 * case.kv_heads : -case.kv_heads] *= large
    case.pages.key_params.mul_(large)
    found = case.decode(DecodeWorkspace(device)).float()
    expected = case.expected(case.rotated()[:, : -case.kv_heads]).float()
    assert (found - expected).norm() < 7e-4 * expected.norm()


@pytest.mark.skipif(is_interpreted(), reason="it rounds sums, which tensor cores cut off")
@pytest.mark.parametrize("bits", [8, 4])
def test_sums_of_many_tokens_lose_nothing(bits, device) -> None:
    """The mean of the values is near 0, that of their codes is not."""
    case = Case([(1, 20000)], MODEL, torch.float16, bits, device)
    case.pages.value_params[..., 1] -= 0.5
    found = case.decode(DecodeWorkspace(device))
    expected = case.expected(case.rotated()[:, : -case.kv_heads])
    torch.testing.assert_close(found.float(), expected.float(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [2.0**-7, 2.0**11])
def test_small_and_large_values_are_as_near(size, bits, device) -> None:
    case = Case([(1, 40), (1, 2), (1, 100)], MODEL, torch.float16, bits, device)
    case.qkv[:, -case.kv_heads :] *= size
    case.pages.value_params.mul_(size)
    found = case.decode(DecodeWorkspace(device), attention.Tile(8, 32, 2, 2))
    expected = case.expected(case.rotated()[:, : -case.kv_heads])
    assert_near((found.float() / size).half(), expected / size)


CHUNKS = [
    [(1, 1)], [(7, 7)], [(63, 63)], [(3, 40)], [(1, 100)],
    [(5, 5), (1, 0), (1, 30), (40, 77), (2, 2), (16, 64)],
]  # fmt: skip
LONG_CHUNKS = [
    [(130, 130)], [(1000, 1000)], [(7, 3000)], [(300, 1001), (129, 129), (1, 1), (64, 640)],
    [(n, 2 * n) for n in range(1, 70)],
]  # fmt: skip


@pytest.mark.parametrize(("heads", "dtype", "bits"), CASES)
def test_prefill(heads, dtype, bits, device) -> None:
    for chunks in CHUNKS[2:] if is_interpreted() else CHUNKS + LONG_CHUNKS:
        case = Case(chunks, heads, dtype, bits, device)
        q, _ = rotate_and_store(case.qkv, case.cos, case.sin, case.pages, case.slots)
        assert_near(case.prefill(q), case.expected(q.cpu()))


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 32), (torch.float16, 8)])
def test_chunks_behind_decodes(dtype, bits, device) -> None:
    case = Case([(1, 20), (1, 3), (9, 30), (21, 21)], MODEL, dtype, bits, device)
    q, _ = rotate_and_store(case.qkv, case.cos, case.sin, case.pages, case.slots)
    expected = case.expected(q.cpu())
    for first_token in (0, 2):
        out = torch.full_like(q[first_token:], NAN)
        prefill_attention(
            q[first_token:], case.pages, case.cu[2:], case.lengths[2:], case.tables[2:],
            21, case.scale, first_token, out,
        )  # fmt: skip
        assert bool(out[: 2 - first_token].isnan().all())
        assert_near(out[2 - first_token :].cpu(), expected[2:])


@pytest.mark.parametrize("num_decodes", [7, 14, 15, 16, 31, 63])
@pytest.mark.parametrize("chunks", [(2, 2), (4, 3), (1, 1, 1), (17, 2, 30)])
def test_every_chunk_behind_any_number_of_decodes_is_written(num_decodes, chunks, device) -> None:
    lengths = [(1, 1)] * num_decodes + [(n, n) for n in chunks]
    case = Case(lengths, (4, 2, 32), torch.float32, 32, device)
    q, _ = rotate_and_store(case.qkv, case.cos, case.sin, case.pages, case.slots)
    out = torch.full_like(q[num_decodes:], NAN)
    prefill_attention(
        q[num_decodes:], case.pages, case.cu[num_decodes:], case.lengths[num_decodes:],
        case.tables[num_decodes:], max(chunks), case.scale, num_decodes, out,
    )  # fmt: skip
    assert_near(out.cpu(), case.expected(q.cpu())[num_decodes:])


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 32), (torch.bfloat16, 4)])
def test_nan_stays_in_its_sequence(dtype, bits, device) -> None:
    case = Case([(1, 40), (1, 300), (1, 7)], MODEL, dtype, bits, device)
    case.qkv[1] = NAN
    found = case.decode(DecodeWorkspace(device))
    assert found.isnan().all(-1).all(-1).tolist() == [False, True, False]
    assert bool(found[[0, 2]].isfinite().all())
    case = Case([(5, 40), (6, 70), (3, 7)], MODEL, dtype, bits, device)
    case.qkv[5:11] = NAN
    q, _ = rotate_and_store(case.qkv, case.cos, case.sin, case.pages, case.slots)
    found = case.prefill(q)
    assert found.isnan().flatten(1).all(-1).tolist() == [False] * 5 + [True] * 6 + [False] * 3
    assert not bool(found[:5].isnan().any() | found[11:].isnan().any())


def test_what_does_not_belong_together_is_refused(device) -> None:
    case = Case([(1, 4)], (4, 2, 32), torch.float32, 32, device)
    workspace = DecodeWorkspace(device)
    good = {
        "qkv": case.qkv, "cos": case.cos, "sin": case.sin, "pages": case.pages,
        "slots": case.slots, "seq_lens": case.lengths, "block_tables": case.tables,
        "parts": case.parts(workspace), "scale": 1.0, "workspace": workspace,
    }  # fmt: skip
    decode_attend(**good)
    half = KVPages(case.pages.keys.half(), case.pages.values.half())
    for name, bad in {
        "qkv": case.qkv[..., :-1],
        "cos": case.cos.double(),
        "pages": half,
        "slots": case.slots.int(),
        "seq_lens": case.lengths.repeat(2),
        "block_tables": case.tables.long(),
        "parts": case.parts(workspace).long(),
        "out": case.qkv,
    }.items():
        with pytest.raises(ValueError, match=r".+"):
            decode_attend(**{**good, name: bad})
    with pytest.raises(ValueError, match="no kernel"):
        rotate_and_store(case.qkv[..., :24].contiguous(), case.cos, case.sin, half, case.slots)
    assert not attention.supports(48, torch.float16, 16, 2)
    assert not attention.supports(16, torch.float16, 4, 2)
    assert not attention.supports(64, torch.float16, 32, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bits", [16, 4])
def test_a_captured_graph_serves_any_length(bits, device) -> None:
    lengths = [3, 900, 1]
    case = Case([(1, length) for length in lengths], MODEL, torch.bfloat16, bits, device)
    workspace = DecodeWorkspace(device)
    expected = case.decode(workspace)
    grown, parts = case.lengths.clone(), case.parts(workspace)
    case.lengths.fill_(1)
    given = case.parts(workspace)
    assert given.shape == parts.shape
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_attend(
            case.qkv, case.cos, case.sin, case.pages, case.slots, case.lengths, case.tables,
            given, case.scale, workspace,
        )  # fmt: skip
    case.lengths.copy_(grown)
    given.copy_(parts)
    for _ in range(3):
        graph.replay()
        assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_many_tokens_of_little_weight_count(bits, device) -> None:
    """One token has nearly all the weight, as the first of a text often does; the others together
    make the answer, since its value is nothing."""
    length, dim = 1500, MODEL[2]
    case = Case([(1, length)], MODEL, torch.float16, bits, device)
    num_heads = case.qkv.shape[1] - 2 * case.kv_heads
    case.cos, case.sin = torch.ones_like(case.cos), torch.zeros_like(case.sin)
    generator = torch.Generator().manual_seed(0)
    keys = torch.zeros(length, case.kv_heads, dim)
    keys[0, :, 0] = 10.0
    keys[1:, :, 1:] = torch.randn(length - 1, case.kv_heads, dim - 1, generator=generator) * 0.01
    values = torch.randn(length, case.kv_heads, dim, generator=generator) * 0.02 + 0.02
    values[0] = 0
    places = torch.arange(length)
    pages = case.tables.cpu()[0, places // PAGE_SIZE].long()
    host = copy_of(case.pages)
    REFERENCE.store_kv(keys.half(), values.half(), host, pages * PAGE_SIZE + places % PAGE_SIZE)
    for mine, theirs in zip(parts_of(case.pages), parts_of(host), strict=True):
        mine.copy_(theirs)
    case.qkv[:, :num_heads] = 0
    # exp(10 * 10 / sqrt(D) - 0): all others together weigh a tenth of the first, or less.
    case.qkv[:, :num_heads, 0] = dim**0.5
    case.qkv[:, num_heads : -case.kv_heads] = 0
    case.qkv[:, -case.kv_heads :] = 0.02
    expected = case.expected(case.rotated()[:, : -case.kv_heads])
    found = case.decode(DecodeWorkspace(device))
    assert (found.float() - expected.float()).abs().max() < 0.01 * expected.abs().max()
