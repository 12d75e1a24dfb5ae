import { expect, test } from "vitest";
import { ApiError, OfflineError } from "../api/client";
import { problemText, stageText, titleText } from "./server";

test("the stages of a load are told in Chinese, names and all", () => {
  expect(stageText("Loading", "zh")).toBe("正在加载");
  expect(stageText("Downloading model.safetensors from ModelScope", "zh")).toBe("正在从 ModelScope 下载 model.safetensors");
  expect(stageText("Downloading SmolLM2 from the package index", "zh")).toBe("正在从软件包索引下载 SmolLM2");
  expect(stageText("Something new", "zh")).toBe("Something new");
  expect(stageText("Loading", "en")).toBe("Loading");
});

test("titles of models", () => {
  expect(titleText("Tiny InternVL2, names drawings", "zh")).toBe("Tiny InternVL2（认图画）");
  expect(titleText("InternLM2 Chat 1.8B", "zh")).toBe("InternLM2 Chat 1.8B");
});

test("problems are told in the server's words, in Chinese where there are any", () => {
  const full = new ApiError("it needs 9 GiB", 503, "model_does_not_fit");
  expect(problemText(full, "en")).toBe("it needs 9 GiB");
  expect(problemText(full, "zh")).toBe("内存放不下这个模型。（it needs 9 GiB）");
  expect(problemText(new ApiError("new", 400, "unheard_of"), "zh")).toBe("new");
  expect(problemText(new OfflineError(), "zh")).toBe("连接不上服务器。");
});
