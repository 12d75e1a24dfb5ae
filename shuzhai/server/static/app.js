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
    choose: "Model", sees: "sees pictures", reads: "text only", loaded: "ready", loading: "loading",
    unloaded: "loads when asked", failed: "failed", gettingReady: "Getting ready",
    switched: "{from} reads text only. Now asking {to}.",
    blindHere: "{from} cannot see the pictures of this chat. Start a new chat, or choose {to}.",
    slow: "{from} takes a while. {to} is ready: to ask it instead, press Stop, choose it and send.",
    ask1: "What is the capital of France?", ask2: "Why is the sky blue?",
    ask3: "Write a short story about a lighthouse.",
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
    choose: "模型", sees: "能看图", reads: "仅文字", loaded: "就绪", loading: "加载中",
    unloaded: "使用时加载", failed: "加载失败", gettingReady: "正在准备",
    switched: "{from} 看不了图片，已换成 {to}。",
    blindHere: "{from} 看不了本对话中的图片。请开始新对话，或改选 {to}。",
    slow: "{from} 还要等一会儿。{to} 已就绪：想先问它，请停止，改选它再发送。",
    ask1: "法国的首都是哪里？", ask2: "天空为什么是蓝色的？",
    ask3: "写一个关于灯塔的小故事。",
  },
};

// What the server says of a load, in Chinese. What is not known here stays as it is.
const STAGES = [
  [/^Starting$/, "启动"], [/^Loading$/, "加载"], [/^Reading /, "读取 "], [/^Converting /, "转换 "],
  [/^Downloading (.+) from the package index$/, "从软件包索引下载 $1"],
  [/^Downloading (.+) from (.+)$/, "从 $2 下载 $1"], [/^Waiting for memory$/, "等待内存"],
  [/^Waiting for other models .+$/, "等待其他模型答完"], [/^Waiting for another model to load$/, "等待另一个模型加载"],
  [/^Waiting for another pull of (.+)$/, "等待 $1 的另一次下载"],
];
const READINESS = ["loaded", "unloaded", "loading", "failed"]; // the likeliest to answer soon first

// What the server takes. A picture grows by a third on its way, as text in base64.
const KINDS = {
  "image/png": /^\x89PNG\r\n\x1a\n/, "image/jpeg": /^\xff\xd8\xff/, "image/gif": /^GIF8[79]a/,
  "image/webp": /^RIFF[^]{4}WEBP/, "image/bmp": /^BM/,
};
const MAX_FILE_BYTES = 32 * 2 ** 20;
const MAX_SENT_BYTES = 44 * 2 ** 20;

const $ = (id) => document.getElementById(id);
const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
const input = $("input"), log = $("log"), problem = $("problem");
let language = localStorage.getItem("language")
  ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
let messages = [];
let running = null; // AbortController of the answer under way
let pictures = []; // {name, url} that go with the next question
let reading = Promise.resolve(); // settled when the files that were added have been read
let models = []; // as the server lists them
let examples = []; // {id, pictures, question, alt}

const sees = (model) => model?.input_modalities?.includes("image") ?? false;
const chosen = () => models.find(({ id }) => id === $("model").value);
const readiest = (some) => READINESS.flatMap((state) => some.filter((m) => m.state === state))[0];
const say = (key, from, to) => TEXTS[language][key].replace("{from}", from).replace("{to}", to);

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
  showModels();
  showNotice("");
  if (whyBlind()) showProblem(whyBlind());
  $("language").textContent = texts.language;
}

function add(className, textContent = "") {
  $("welcome").hidden = true;
  const node = log.appendChild(make("div", { className, textContent }));
  log.scrollTop = log.scrollHeight;
  return node;
}

function note(key) {
  add("note", TEXTS[language][key]).dataset.text = key; // follows a change of language
}

function showProblem(text) {
  Object.assign(problem, { textContent: text, hidden: !text });
  if (text) log.scrollTop = log.scrollHeight;
}

const showNotice = (text) => Object.assign($("notice"), { textContent: text, hidden: !text });

// Models stay where they are in the list, which may be open.
function showModels() {
  const texts = TEXTS[language], picker = $("model");
  for (const model of models) {
    const known = [...picker.options].find(({ value }) => value === model.id);
    const option = known ?? picker.appendChild(new Option("", model.id));
    const says = [model.id, sees(model) ? texts.sees : texts.reads, texts[model.state]];
    option.textContent = says.filter(Boolean).join(" · ");
  }
  picker.hidden = !models.length;
  $("attach").hidden = !models.some(sees);
  showExamples();
}

// Pictures whenever some model sees; questions while the chosen one reads text alone.
function showExamples() {
  const model = chosen();
  // The text demo has learnt English alone.
  const texts = TEXTS[model?.id === "smollm2-135m" ? "en" : language];
  const asks = !model || sees(model) ? [] : [texts.ask1, texts.ask2, texts.ask3];
  const offers = [
    ...asks.map((text) => ({ text, name: "", files: [] })),
    ...examples.filter(() => models.some(sees)).map(({ question, alt, pictures }) => (
      { text: question[language], name: alt[language], files: pictures })),
  ];
  $("examples").replaceChildren(...offers.map((offer) => {
    const button = make("button", { type: "button", onclick: () => sendExample(offer) });
    const shown = offer.files.map((file) => image({ name: offer.name, url: `static/examples/${file}` }));
    button.append(...shown, shown.length ? `\n${offer.text}` : offer.text);
    return button;
  }));
}

async function sendExample({ text, name, files }) {
  $("examples").inert = true; // one click, one question
  try {
    const blobs = await Promise.all(files.map(async (file) => (
      (await fetch(`static/examples/${file}`)).blob())));
    fill({ text, pictures: [] });
    addFiles(blobs.map((blob) => new File([blob], name)));
    await send();
  } catch {
    showProblem(TEXTS[language].offline);
  } finally {
    $("examples").inert = false;
  }
}

function fit() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

function image({ name, url }) {
  // Dropped on the page it would be added once more.
  return make("img", { src: url, alt: name, title: name, draggable: false });
}

function showPictures() {
  $("pictures").replaceChildren(...pictures.map((picture) => {
    const item = make("li"), title = `${TEXTS[language].remove} ${picture.name}`;
    const onclick = () => removePicture(picture);
    const remove = { type: "button", textContent: "×", title, ariaLabel: title, onclick };
    item.append(image(picture), make("button", remove));
    return item;
  }));
}

function removePicture(picture) {
  const place = pictures.indexOf(picture);
  pictures = pictures.filter((other) => other !== picture);
  showPictures();
  showProblem(whyBlind());
  const buttons = $("pictures").querySelectorAll("button");
  (buttons[Math.min(place, buttons.length - 1)] ?? input).focus();
}

function addFiles(files) {
  if (!files.length) return;
  const able = readiest(models.filter(sees)), { value: from } = $("model");
  const isBlind = models.length && !able; // a server that has not been met may see
  showProblem(isBlind ? TEXTS[language].blind : "");
  if (isBlind) return;
  if (able && !sees(chosen())) {
    $("model").value = able.id;
    showExamples();
    showNotice(say("switched", from, able.id));
  }
  reading = reading.then(() => readFiles(files));
}

// The pictures of this chat, and those that wait.
function pictureUrls() {
  const parts = messages.flatMap(({ content }) => (Array.isArray(content) ? content : []));
  return [...parts.flatMap((part) => part.image_url?.url ?? []), ...pictures.map(({ url }) => url)];
}

// All of a chat is sent each time: why the chosen model cannot go on with it; "" if it can.
function whyBlind() {
  const model = chosen(), able = readiest(models.filter(sees));
  if (!model || sees(model) || !pictureUrls().length) return "";
  return able ? say("blindHere", model.id, able.id) : TEXTS[language].blind;
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
  const total = pictureUrls().reduce((sum, url) => sum + url.length, 0);
  if (total + file.size * 4 / 3 > MAX_SENT_BYTES) return "full";
  const reader = new FileReader();
  await new Promise((onload, onerror) => {
    Object.assign(reader, { onload, onerror }).readAsDataURL(new Blob([file], { type: kind }));
  });
  pictures = [...pictures, { name: file.name, url: reader.result }];
  return null;
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = controller !== null;
  $("stop").hidden = controller === null;
  $("loading").hidden = true;
}

function askKey() {
  return new Promise((resolve) => {
    $("key").value = "";
    $("keydialog").returnValue = "";
    $("keydialog").addEventListener("close", () => {
      const entered = $("key").value.trim();
      if (entered) sessionStorage.setItem("key", entered);
      resolve(Boolean(entered));
    }, { once: true });
    $("keydialog").showModal();
  });
}

function withKey(headers = {}) {
  const key = sessionStorage.getItem("key");
  return key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
}

async function learnModels() {
  const response = await fetch("v1/models", { headers: withKey() });
  if (response.ok) {
    models = (await response.json()).data;
    showModels();
  }
  return response.status;
}

async function meetModels() {
  while (await learnModels() === 401) if (!await askKey()) return;
  const remembered = localStorage.getItem("model");
  const model = models.find(({ id, state }) => id === remembered && state !== "failed")
    ?? readiest(models);
  $("model").value = model?.id ?? "";
  showExamples();
}

// Shows what a model is doing until its answer begins, and which other one need not be waited for.
async function watch(model, waits) {
  let seen = "", since = 0;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 400));
    if (waits()) await learnModels().catch(() => null);
    if (!waits()) return;
    const { state, status, progress } = models.find(({ id }) => id === model) ?? {};
    $("loading").hidden = !["unloaded", "loading"].includes(state);
    const texts = TEXTS[language];
    const known = language === "zh" ? STAGES : [];
    const stage = known.reduce((said, pair) => said.replace(...pair), status ?? model);
    $("loading").firstElementChild.textContent = texts.gettingReady + texts.colon + stage;
    if (seen !== `${status} ${progress}`) [seen, since] = [`${status} ${progress}`, Date.now()];
    const other = models.find((m) => m.state === "loaded" && (sees(m) || !pictureUrls().length));
    const isSlow = other && Date.now() - since > 10000;
    $("loading").lastElementChild.textContent = isSlow ? say("slow", model, other.id) : "";
    if (progress == null) $("progress").removeAttribute("value");
    else $("progress").value = progress;
  }
}

async function request(body, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: withKey({ "Content-Type": "application/json" }),
    body: JSON.stringify(body), signal,
  });
  if (response.status === 401 && await askKey()) return request(body, signal);
  if (!response.ok) {
    const error = (await response.json().catch(() => null))?.error;
    if (error?.code !== "model_loading") throw new Error(error?.message ?? `HTTP ${response.status}`);
    await isFetched(body.model, signal);
    return request(body, signal);
  }
  return response;
}

// The server keeps nobody's question while a model is downloaded, which may take hours: it waits here.
async function isFetched(name, signal) {
  do {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    signal.throwIfAborted();
    await learnModels();
  } while (models.some(({ id, state }) => id === name && state === "loading"));
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
  if (!models.length) await meetModels();
  if (whyBlind()) throw new Error(whyBlind());
  const model = $("model").value || undefined;
  watch(model, () => running === controller && !node.textContent);
  const response = await request({ model, messages: asked, stream: true }, controller.signal);
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    if (choice?.delta.content) {
      const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      node.append(choice.delta.content); // a text node
      $("loading").hidden = true;
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
  const row = make("div");
  row.append(...pictures.map(image));
  if (pictures.length) mine.prepend(row);
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
    learnModels().catch(() => null); // what is loaded may have changed
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
  showNotice("");
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
$("model").addEventListener("change", () => {
  localStorage.setItem("model", $("model").value);
  const { state, status } = chosen();
  showProblem(whyBlind() || (state === "failed" ? status : ""));
  showNotice("");
  showExamples();
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
    document.body.classList.toggle("dropping", kind === "dragover" && models.some(sees));
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
fetch("static/examples.json").then((r) => r.json()).then((listed) => {
  examples = listed;
  showExamples();
}).catch(() => null); // a page without examples works
meetModels().catch(() => showProblem(TEXTS[language].offline));
