"""What `shuzhai plan` says, in English and in Chinese."""

from __future__ import annotations

from dataclasses import dataclass

from shuzhai.config import Language
from shuzhai.engine.memory_table import ENGLISH as ENGLISH_TABLE
from shuzhai.engine.memory_table import TableWords


@dataclass(frozen=True, slots=True)
class PlanWords:
    """One language. Names in braces are filled in by whoever prints the text."""

    table: TableWords
    heading: str
    cpu: str
    gpu: str
    no_gpu: str
    formats: tuple[str, str, str]
    chats_of: str
    plain_kv: str
    fits: str
    fits_not: str
    would_fit: str


ENGLISH = PlanWords(
    table=ENGLISH_TABLE,
    heading="{name} in {dtype} on {device}",
    cpu="a CPU",
    gpu="a GPU",
    no_gpu="No GPU is seen here: planned for one with {memory}. Others: --memory SIZE",
    formats=("KV cache", "bytes a token", "context"),
    chats_of="chats of {tokens:,}",
    plain_kv="{bits} bit",
    fits="It fits.",
    fits_not="It does not fit into {budget}: at least {least} are needed.",
    would_fit="These would fit:",
)

CHINESE = PlanWords(
    table=TableWords(
        weights=("权重", "所有对话共用一份"),
        kv=("KV 缓存", "{num_tokens:,} 个词元，每个 {token_bytes:,} 字节"),
        vision=("图片", "一次编码 {tiles_per_batch} 块，保留 {picture_rows:,} 行"),
        activations=("激活值", "一步最多 {max_num_batched_tokens:,} 个词元，其后是 logits"),
        sampling=("采样", "{max_num_seqs} 个序列的 logits 及其副本"),
        libraries=("计算库", "矩阵乘法和注意力的工作区"),
        graphs=("CUDA 图", "录制了 {num_graphs} 个，共用一块内存"),
        context=("CUDA 上下文", "驱动程序及其内核"),
        margin=("余量", "分配器的取整和碎片"),
        unused=("未使用", "留给其他程序"),
        budget="预算",
        max_model_len="上下文：{max_model_len:,} 个词元。",
        chats="可同时进行的对话：{chats}。",
    ),
    heading="{name}，{dtype}，{device}",
    cpu="CPU",
    gpu="GPU",
    no_gpu="这里没有检测到 GPU：按 {memory} 显存计算，其他大小用 --memory 指定",
    formats=("KV 缓存", "每词元字节", "上下文"),
    chats_of="{tokens:,} 词元的对话",
    plain_kv="{bits} 位",
    fits="放得下。",
    fits_not="{budget} 放不下：至少需要 {least}。",
    would_fit="这样可以：",
)


def words_of(language: Language) -> PlanWords:
    return CHINESE if language == "zh" else ENGLISH
