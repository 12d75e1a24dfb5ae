// Keeps the shell of the page (never what the server says) so that it opens while the server is
// away. All paths are relative to this file's folder: the page may live under any prefix.

const scope = self.registration.scope;
const SHELL = `shuzhai shell ${scope}`; // index.html and what else has no hash in its name
const ASSETS = `shuzhai assets ${scope}`; // what has one: it never changes
const NAMED = new Set(["", "index.html", "theme.js", "manifest.webmanifest", "icon.svg"]);
// In our index.html. Another program on the port, or a tunnel's own page, answers 200 as well.
const MARK = '<meta name="application-name" content="Shuzhai">';
const WAIT_MS = 4000; // a tunnel that hangs is as good as none

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(fetch(scope, { cache: "no-cache" }).then((index) => keep("", index)));
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method !== "GET" || !url.startsWith(scope)) return;
  const path = url.slice(scope.length).replace(/[?#].*$/, "");
  if (path.startsWith("assets/")) event.respondWith(asset(event.request));
  else if (NAMED.has(path)) event.respondWith(named(event, path === "index.html" ? "" : path));
});

async function asset(request) {
  const cache = await caches.open(ASSETS);
  const kept = await cache.match(request.url);
  if (kept) return kept;
  const response = await fetch(request);
  if (response.ok) await cache.put(request.url, response.clone());
  return response;
}

/** From the network; what is kept only where there is no good answer. */
async function named(event, path) {
  const coming = fetch(event.request);
  event.waitUntil(coming.then((response) => keep(path, response.clone())).catch(() => undefined));
  const kept = await caches.match(scope + path, { cacheName: SHELL });
  if (!kept) return coming;
  const late = new Promise((resolve) => { setTimeout(resolve, WAIT_MS, kept); });
  const good = coming.then((response) => (response.status >= 500 ? kept : response), () => kept);
  return Promise.race([good, late]);
}

/** An index is kept once its assets are; those of an older one go then. */
async function keep(path, response) {
  if (!response.ok || response.redirected) return;
  const shell = await caches.open(SHELL);
  if (path === "") {
    const text = await response.clone().text();
    if (!text.includes(MARK)) return;
    const before = await shell.match(scope).then((kept) => kept?.text());
    if (text === before) return;
    await keepAssets(text, before !== undefined);
  }
  await shell.put(scope + path, response);
}

async function keepAssets(index, isUpdate) {
  const cache = await caches.open(ASSETS);
  const wanted = [...index.matchAll(/"(?:\.\/)?(assets\/[^"]+)"/g)].map(([, path]) => scope + path);
  const kept = (await cache.keys()).map(({ url }) => url);
  await cache.addAll(wanted.filter((url) => !kept.includes(url)));
  if (isUpdate && wanted.length) await Promise.all(kept.filter((url) => !wanted.includes(url)).map((url) => cache.delete(url)));
}
