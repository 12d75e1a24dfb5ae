// A plain chat page over /v1/chat/completions. Text of the model only ever becomes textContent.

const TEXTS = {
  en: {
    new: "New chat", send: "Send", stop: "Stop", system: "System prompt", language: "中文",
    placeholder: "Ask something", hint: "Enter sends, Shift+Enter starts a new line",
    welcome: "What would you like to talk about?", key: "This server needs an API key", ok: "OK",
    stopped: "Stopped.", long: "The answer ended here: its limit was reached.",
    offline: "The server cannot be reached. Is it still running?",
  },
  zh: {
    new: "新对话", send: "发送", stop: "停止", system: "系统提示词", language: "English",
    placeholder: "问点什么", hint: "Enter 发送，Shift+Enter 换行",
    welcome: "想聊点什么？", key: "此服务需要 API 密钥", ok: "确定",
    stopped: "已停止。", long: "回答到达长度上限，在此结束。",
    offline: "连接不上服务，请确认它仍在运行。",
  },
};

const $ = (id) => document.getElementById(id);
const input = $("input"), log = $("log"), problem = $("problem");
let language = localStorage.getItem("language")
  ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
let messages = [];
let running = null; // AbortController of the answer under way

function showTexts() {
  const texts = TEXTS[language];
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text]")) {
    node.textContent = texts[node.dataset.text];
  }
  for (const node of document.querySelectorAll("[data-label]")) {
    node.placeholder = texts[node.dataset.label];
    node.setAttribute("aria-label", texts[node.dataset.label]);
  }
  $("language").textContent = texts.language;
}

function add(kind, text = "") {
  $("welcome").hidden = true;
  const node = document.createElement("div");
  node.className = kind;
  node.textContent = text;
  log.append(node);
  log.scrollTop = log.scrollHeight;
  return node;
}

function note(key) {
  const node = add("note", TEXTS[language][key]);
  node.dataset.text = key; // follows a change of language
}

function showProblem(text) {
  problem.textContent = text;
  problem.hidden = !text;
  if (text) log.scrollTop = log.scrollHeight;
}

function fit() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = controller !== null;
  $("stop").hidden = controller === null;
}

function askKey() {
  return new Promise((resolve) => {
    $("key").value = "";
    $("keydialog").returnValue = "";
    $("keydialog").addEventListener("close", () => resolve($("key").value.trim()), { once: true });
    $("keydialog").showModal();
  });
}

async function request(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers, body: JSON.stringify(body), signal,
  });
  if (response.status === 401) {
    const entered = await askKey();
    if (entered) {
      sessionStorage.setItem("key", entered);
      return request(body, signal);
    }
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `HTTP ${response.status}`);
  }
  return response;
}

// Yields the data of server-sent events; a chunk of the network may end anywhere.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.startsWith("data: ") ? part.slice(6) : "";
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function answer(node, controller) {
  const system = $("system").value.trim();
  const asked = system ? [{ role: "system", content: system }, ...messages] : messages;
  const response = await request({ messages: asked, stream: true }, controller.signal);
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    if (choice?.delta.content) {
      const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      node.append(choice.delta.content); // a text node
      if (follows) log.scrollTop = log.scrollHeight;
    }
    if (choice?.finish_reason === "length") note("long");
  }
}

async function send() {
  const text = input.value;
  if (running || !text.trim()) return;
  const controller = new AbortController();
  const chat = messages;
  setRunning(controller);
  showProblem("");
  chat.push({ role: "user", content: text });
  const mine = add("message user", text);
  const node = add("message assistant waiting");
  input.value = "";
  fit();
  try {
    await answer(node, controller);
  } catch (error) {
    if (chat !== messages) return; // a new chat has begun
    if (!controller.signal.aborted) {
      showProblem(error instanceof TypeError ? TEXTS[language].offline : error.message);
    } else if (node.textContent) note("stopped");
  } finally {
    node.classList.remove("waiting");
    if (running === controller) setRunning(null);
    if (chat === messages) keep(chat, text, mine, node);
  }
  input.focus();
}

// What was answered stays in the chat; a question without any answer goes back to the input.
function keep(chat, text, mine, node) {
  if (node.textContent) {
    chat.push({ role: "assistant", content: node.textContent });
    return;
  }
  node.remove();
  chat.pop();
  mine.remove();
  $("welcome").hidden = chat.length > 0;
  if (!input.value) input.value = text;
  fit();
}

function newChat() {
  running?.abort();
  setRunning(null);
  messages = [];
  for (const node of [...log.children]) if (node.id !== "welcome") node.remove();
  $("welcome").hidden = false;
  showProblem("");
  input.focus();
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", newChat);
$("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  localStorage.setItem("language", language);
  showTexts();
});
input.addEventListener("input", fit);
input.addEventListener("keydown", (event) => {
  // Enter that ends the composition of an input method does not send (229: Safari's sign for it).
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
});

showTexts();
fetch("health").then((r) => r.json()).then((health) => {
  $("model").textContent = health.model;
  if (health.status !== "ok") showProblem(health.cause);
}).catch(() => showProblem(TEXTS[language].offline));
