"""What `shuzhai chat` says, in English and in Chinese. Help of the command line is English only."""

from __future__ import annotations

from dataclasses import dataclass

from shuzhai.config import Language


@dataclass(frozen=True, slots=True)
class Words:
    """One language. Names in braces are filled in by whoever prints the text.

    help   (what to type, what it does), commands first
    """

    loading: str
    context: str
    small_model: str
    hints: str
    placeholder: str
    thinking: str
    help: tuple[tuple[str, str], ...]
    pictures_wait: str
    no_pictures: str
    no_file: str
    blind: str
    new_chat: str
    system_is: str
    system_none: str
    system_set: str
    unknown_command: str
    takes_no_text: str
    how_to_leave: str
    tokens: str
    rate: str
    first: str
    used: str
    stopped: str
    nothing_said: str
    empty_answer: str
    cut_context: str
    cut_max_tokens: str
    context_full: str
    too_long: str
    bye: str


ENGLISH = Words(
    loading="Loading {model} ...",
    context="context {limit:,} tokens",
    small_model="A small model for a first try. `shuzhai list` shows better ones.",
    hints="/help shows commands and keys. Ctrl+C stops an answer, Ctrl+D leaves.",
    placeholder="Write a message",
    thinking="Reading ...",
    help=(
        ("/clear", "start a new chat (the system prompt stays)"),
        ("/system", "show the system prompt"),
        ("/system TEXT", "replace it; the chat goes on"),
        ("/image PATH", "add a picture to the next message; more than once for several"),
        ("/image", "show which pictures wait for the next message"),
        ("/exit", "leave"),
        ("/help", "show this"),
        ("//text", "send a message that begins with a slash"),
        ("Enter", "send"),
        ("Alt+Enter", "new line; a \\ before Enter does the same"),
        ("Ctrl+C", "stop the answer; at the prompt: empty the line"),
        ("Ctrl+D", "leave"),
        ("Up, Down", "earlier messages"),
    ),
    pictures_wait="With the next message: {pictures}",
    no_pictures="No picture waits. /image PATH adds one to the next message.",
    no_file="There is no such file: {path}",
    blind="{model} reads text only and cannot see pictures. `shuzhai list` shows models that can.",
    new_chat="A new chat begins.",
    system_is="System prompt: {text}",
    system_none="There is no system prompt. /system TEXT sets one.",
    system_set="The system prompt is replaced from the next answer on. /clear starts a new chat.",
    unknown_command="There is no command {name}; /help lists them. // sends text beginning with /.",
    takes_no_text="{name} stands alone: leave out what comes after it.",
    how_to_leave="Ctrl+D or /exit leaves.",
    tokens="{count:,} tokens",
    rate="{rate:.1f} tokens/s",
    first="first after {seconds:.2f} s",
    used="context {used:,} of {limit:,}",
    stopped="stopped",
    nothing_said="Stopped before the answer began. Your message is back in the line.",
    empty_answer="(an empty answer)",
    cut_context="The context of {limit:,} tokens is full and the answer was cut. "
    "/clear starts a new chat.",
    cut_max_tokens="Cut at {limit:,} tokens, as --max-tokens says.",
    context_full="The chat has filled the context of {limit:,} tokens. Type /clear for a new chat: "
    "your message will be back in the line.",
    too_long="The message does not fit the context of {limit:,} tokens. Shorten it, or "
    "start with a larger --max-model-len if the model allows.",
    bye="Bye.",
)

CHINESE = Words(
    loading="正在加载 {model} ...",
    context="上下文 {limit:,} 个词元",
    small_model="这是一个供初次体验的小模型。用 `shuzhai list` 查看更好的模型。",
    hints="/help 查看命令和按键。Ctrl+C 停止回答，Ctrl+D 退出。",
    placeholder="输入消息",
    thinking="正在阅读 ...",
    help=(
        ("/clear", "开始新对话（保留系统提示词）"),
        ("/system", "显示系统提示词"),
        ("/system 文字", "替换系统提示词，对话继续"),
        ("/image 路径", "给下一条消息添加图片，可多次使用"),
        ("/image", "显示待发送的图片"),
        ("/exit", "退出"),
        ("/help", "显示本说明"),
        ("//文字", "发送以斜杠开头的消息"),
        ("Enter", "发送"),
        ("Alt+Enter", "换行；在行末输入 \\ 再按 Enter 也可换行"),
        ("Ctrl+C", "停止回答；输入时清空当前内容"),
        ("Ctrl+D", "退出"),
        ("↑ ↓", "之前的消息"),
    ),
    pictures_wait="随下一条消息发送：{pictures}",
    no_pictures="没有待发送的图片。用“/image 路径”给下一条消息添加图片。",
    no_file="没有这个文件：{path}",
    blind="{model} 只能读文字，看不了图片。用 `shuzhai list` 查看能看图的模型。",
    new_chat="新对话开始。",
    system_is="系统提示词：{text}",
    system_none="没有系统提示词。用“/system 文字”设置。",
    system_set="系统提示词已替换，从下一个回答起生效。/clear 开始新对话。",
    unknown_command="没有命令 {name}。/help 查看全部命令；以 // 开头可发送以 / 开头的文字。",
    takes_no_text="{name} 后面不带文字，请去掉。",
    how_to_leave="按 Ctrl+D 或输入 /exit 退出。",
    tokens="{count:,} 个词元",
    rate="{rate:.1f} 词元/秒",
    first="首个词元 {seconds:.2f} 秒",
    used="上下文 {used:,} / {limit:,}",
    stopped="已停止",
    nothing_said="回答尚未开始就已停止。消息已放回输入行。",
    empty_answer="（空回答）",
    cut_context="上下文（{limit:,} 个词元）已满，回答被截断。/clear 开始新对话。",
    cut_max_tokens="已按 --max-tokens 在 {limit:,} 个词元处截断。",
    context_full="对话已占满上下文（{limit:,} 个词元）。输入 /clear 开始新对话，消息会放回输入行。",
    too_long="这条消息放不进上下文（{limit:,} 个词元）。请缩短，"
    "或在模型允许时用更大的 --max-model-len 启动。",
    bye="再见。",
)


def words_of(language: Language) -> Words:
    return CHINESE if language == "zh" else ENGLISH
