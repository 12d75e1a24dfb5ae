// A plain chat page over /v1/chat/completions. Text of the model only ever becomes textContent.

const TEXTS = {
  en: {
    new: "New chat", send: "Send", stop: "Stop", system: "System prompt", language: "中文",
    placeholder: "Ask something", hint: "Enter sends, Shift+Enter starts a new line",
    welcome: "What would you like to talk about?", key: "This server needs an API key", ok: "OK",
    stopped: "Stopped.", long: "The answer ended here: its limit was reached.",
    offline: "The server cannot be reached. Is it still running?",
    attach: "Add pictures, or paste or drop them", waiting: "Pictures to send", remove: "Remove",
    blind: "This model reads text only and cannot see pictures.",
    kind: "not a PNG, JPEG, WebP, GIF or BMP picture", big: "larger than 32 MB",
    full: "does not fit: the pictures of a chat may have 33 MB together (44 MB as they are sent)",
    unreadable: "this file cannot be read", colon: ": ", comma: ", ",
  },
  zh: {
    new: "新对话", send: "发送", stop: "停止", system: "系统提示词", language: "English",
    placeholder: "问点什么", hint: "Enter 发送，Shift+Enter 换行",
    welcome: "想聊点什么？", key: "此服务需要 API 密钥", ok: "确定",
    stopped: "已停止。", long: "回答到达长度上限，在此结束。",
    offline: "连接不上服务，请确认它仍在运行。",
    attach: "添加图片，也可以粘贴或拖放", waiting: "待发送的图片", remove: "移除",
    blind: "此模型只能读文字，看不了图片。",
    kind: "不是 PNG、JPEG、WebP、GIF 或 BMP 图片", big: "超过 32 MB",
    full: "放不下：一个对话的图片合计最多 33 MB（发送时为 44 MB）",
    unreadable: "无法读取此文件", colon: "：", comma: "、",
  },
};

// What the server takes. A picture grows by a third on its way, as text in base64.
const KINDS = {
  "image/png": /^\x89PNG\r\n\x1a\n/, "image/jpeg": /^\xff\xd8\xff/, "image/gif": /^GIF8[79]a/,
  "image/webp": /^RIFF[^]{4}WEBP/, "image/bmp": /^BM/,
};
const MAX_FILE_BYTES = 32 * 2 ** 20;
const MAX_SENT_BYTES = 44 * 2 ** 20;

const $ = (id) => document.getElementById(id);
const input = $("input"), log = $("log"), problem = $("problem");
let language = localStorage.getItem("language")
  ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
let messages = [];
let running = null; // AbortController of the answer under way
let pictures = []; // {name, url} that go with the next question
let reading = Promise.resolve(); // settled when the files that were added have been read
let sees = true; // until the server says that its model does not

function showTexts() {
  const texts = TEXTS[language];
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text]")) {
    node.textContent = texts[node.dataset.text];
  }
  for (const node of document.querySelectorAll("[data-label]")) {
    if (node.tagName === "TEXTAREA") node.placeholder = texts[node.dataset.label];
    if (node.tagName === "BUTTON") node.title = texts[node.dataset.label];
    node.setAttribute("aria-label", texts[node.dataset.label]);
  }
  showPictures();
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

function image({ name, url }) {
  const node = document.createElement("img");
  node.src = url;
  node.alt = name;
  node.title = name;
  node.draggable = false; // dropped on the page it would be added once more
  return node;
}

function showPictures() {
  $("pictures").replaceChildren(...pictures.map((picture) => {
    const item = document.createElement("li"), remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.title = `${TEXTS[language].remove} ${picture.name}`;
    remove.setAttribute("aria-label", remove.title);
    remove.addEventListener("click", () => removePicture(picture));
    item.append(image(picture), remove);
    return item;
  }));
}

function removePicture(picture) {
  const place = pictures.indexOf(picture);
  pictures = pictures.filter((other) => other !== picture);
  showPictures();
  showProblem("");
  const buttons = $("pictures").querySelectorAll("button");
  (buttons[Math.min(place, buttons.length - 1)] ?? input).focus();
}

function addFiles(files) {
  showProblem(sees ? "" : TEXTS[language].blind);
  if (sees) reading = reading.then(() => readFiles(files));
}

async function readFiles(files) {
  const refused = new Map();
  for (const file of files) {
    const why = await readFile(file).catch(() => "unreadable");
    if (why) refused.set(why, [...(refused.get(why) ?? []), file.name]);
    else showPictures();
  }
  if (!refused.size) return;
  const texts = TEXTS[language];
  const lines = [...refused].map(([why, names]) => names.join(texts.comma) + texts.colon + texts[why]);
  showProblem(lines.join("\n"));
}

// Adds a picture as it is, or gives the reason why not. A kind shows in the first bytes only: names
// may be wrong or missing. What is inside is checked, turned upright and scaled by the server.
async function readFile(file) {
  const bytes = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const start = String.fromCharCode(...bytes);
  const kind = Object.keys(KINDS).find((name) => KINDS[name].test(start));
  if (!kind) return "kind";
  if (file.size > MAX_FILE_BYTES) return "big";
  const sent = messages.flatMap(({ content }) => (Array.isArray(content) ? content : []));
  const urls = [...sent.map((part) => part.image_url?.url ?? ""), ...pictures.map(({ url }) => url)];
  const total = urls.reduce((sum, url) => sum + url.length, 0);
  if (total + file.size * 4 / 3 > MAX_SENT_BYTES) return "full";
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(new Blob([file], { type: kind }));
  });
  pictures = [...pictures, { name: file.name, url }];
  return null;
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

function withKey(headers = {}) {
  const key = sessionStorage.getItem("key");
  return key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
}

// Whether the model sees pictures. Who may not ask yet learns it from the answer to a picture.
async function learnSight() {
  const response = await fetch("v1/models", { headers: withKey() });
  if (response.ok) {
    const model = (await response.json()).data.find(({ id }) => id === $("model").textContent);
    sees = model?.input_modalities?.includes("image") ?? false;
  }
  $("attach").hidden = !sees;
}

async function request(body, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: withKey({ "Content-Type": "application/json" }),
    body: JSON.stringify(body), signal,
  });
  if (response.status === 401) {
    const entered = await askKey();
    if (entered) {
      sessionStorage.setItem("key", entered);
      learnSight();
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

function contentOf({ text, pictures }) {
  if (!pictures.length) return text;
  const parts = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return text.trim() ? [...parts, { type: "text", text }] : parts;
}

function fill(question) {
  input.value = question.text;
  pictures = question.pictures;
  fit();
  showPictures();
}

async function send() {
  await reading;
  const question = { text: input.value, pictures };
  if (running || !(question.text.trim() || pictures.length)) return;
  const controller = new AbortController();
  const chat = messages;
  setRunning(controller);
  showProblem("");
  chat.push({ role: "user", content: contentOf(question) });
  const mine = add("message user", question.text);
  if (pictures.length) {
    const row = document.createElement("div");
    row.append(...pictures.map(image));
    mine.prepend(row);
  }
  const node = add("message assistant waiting");
  fill({ text: "", pictures: [] });
  try {
    await answer(node, controller);
  } catch (error) {
    if (chat !== messages) return; // a new chat has begun
    if (!controller.signal.aborted) {
      const text = error instanceof TypeError ? TEXTS[language].offline : error.message;
      // The server counts the parts of messages; people know pictures by their names.
      showProblem(text.replace(/^messages\[\d+\]\.content\[(\d+)\]/, (where, part) =>
        question.pictures[part]?.name ?? where));
    } else if (node.textContent) note("stopped");
  } finally {
    node.classList.remove("waiting");
    if (running === controller) setRunning(null);
    if (chat === messages) keep(chat, question, mine, node);
  }
  input.focus();
}

// What was answered stays in the chat; a question without any answer goes back to the input.
function keep(chat, question, mine, node) {
  if (node.textContent) {
    chat.push({ role: "assistant", content: node.textContent });
    return;
  }
  node.remove();
  chat.pop();
  mine.remove();
  $("welcome").hidden = chat.length > 0;
  if (!input.value && !pictures.length) fill(question);
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
$("attach").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => {
  addFiles([...$("files").files]);
  $("files").value = ""; // the same file may be chosen again
  input.focus();
});
document.addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData;
  // Office programs add a picture of the text that was copied: that is meant as text.
  if (!files.length || (types.includes("text/plain") && types.includes("text/html"))) return;
  event.preventDefault();
  addFiles([...files]);
});
// Files that are dropped anywhere; without this the browser would leave the chat to show them.
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragover" && sees);
    if (kind === "drop") addFiles([...event.dataTransfer.files]);
  });
}
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
  return learnSight();
}).catch(() => showProblem(TEXTS[language].offline));
