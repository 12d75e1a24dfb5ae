// What the server says, in Chinese. What is not known here stays in the server's words.

import { ApiError, OfflineError } from "../api/client";
import type { Language } from "../api/types";

const STAGES: readonly (readonly [RegExp, string])[] = [
  [/^Starting$/, "正在启动"],
  [/^Loading$/, "正在加载"],
  [/^Reading (.+)$/, "正在读取 $1"],
  [/^Converting (.+)$/, "正在转换 $1"],
  [/^Downloading (.+) from the package index$/, "正在从软件包索引下载 $1"],
  [/^Downloading (.+) from (.+)$/, "正在从 $2 下载 $1"],
  [/^Waiting for memory$/, "正在等待内存"],
  [/^Waiting for other models .+$/, "正在等待其他模型答完"],
  [/^Waiting for another model to load$/, "正在等待另一个模型加载"],
  [/^Waiting for another pull of (.+)$/, "正在等待 $1 的另一次下载"],
];

/** A stage of a load or a download. */
export function stageText(status: string, language: Language): string {
  if (language !== "zh") return status;
  return STAGES.reduce((said, [pattern, chinese]) => said.replace(pattern, chinese), status);
}

/** The catalog's name of a model. */
export function titleText(title: string, language: Language): string {
  return language === "zh" ? title.replace(/, names drawings$/, "（认图画）") : title;
}

// That say all there is to say; of the others the server's words follow.
const WHOLE: Record<string, string> = {
  engine_dead: "推理引擎已停止。请查看服务器日志，然后重新启动服务。",
  conversation_busy: "这个对话里的另一个问题正在回答中。",
  conversation_not_found: "这个对话已经不在了。",
  disk_full: "服务器的磁盘满了，没有保存。",
  internal_error: "服务器内部出错，详情见服务器日志。",
  invalid_api_key: "需要正确的 API 密钥。",
  overloaded: "服务器正忙，请稍后再试。",
  picture_not_found: "这张图片已经不在服务器上了，请重新添加。",
  pull_not_allowed: "这个服务器不允许在页面里下载模型。",
  shutting_down: "服务器正在关闭，等它重新启动后再问。",
  storage_busy: "对话数据库正被占用，稍后会再保存。",
  storage_failed: "服务器没能读写对话，详情见服务器日志。",
};
const BEGUN: Record<string, string> = {
  body_too_large: "发送的内容太大。",
  context_length_exceeded: "对话太长，超出了模型的上下文长度。",
  model_damaged: "模型文件已损坏或不完整。",
  model_does_not_fit: "内存放不下这个模型。",
  model_in_use: "模型正在使用中，请等回答结束后再试。",
  model_leaving: "模型正在卸载，还没有结束。",
  model_loading: "模型还在下载。",
  model_not_available: "下载不到这个模型。",
  model_not_found: "没有这个模型。",
  model_options_invalid: "这个模型的选项无效。",
  models_busy: "其他模型正在使用内存，请稍后再试。",
  storage_full: "保存的内容已到上限。",
  too_many_bytes: "服务器收到的内容太多，请稍后再试。",
};

export function problemText(error: unknown, language: Language): string {
  if (error instanceof OfflineError) {
    return language === "zh" ? "连接不上服务器。" : "The server cannot be reached.";
  }
  const words = error instanceof Error ? error.message : String(error);
  if (language !== "zh" || !(error instanceof ApiError) || !error.code) return words;
  const begun = BEGUN[error.code];
  return WHOLE[error.code] ?? (begun ? `${begun}（${words}）` : words);
}
