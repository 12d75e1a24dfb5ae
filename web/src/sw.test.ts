import { runInNewContext } from "node:vm";
import { beforeEach, expect, test, vi } from "vitest";
import index from "../index.html?raw";
import source from "../public/sw.js?raw";

const SCOPE = "https://host/prefix/";

/** The worker, with caches and a network of its own. */
function start() {
  const stores = new Map<string, Map<string, Response>>();
  const open = (name: string) => {
    const store = stores.get(name) ?? new Map<string, Response>();
    stores.set(name, store);
    const put = (url: string, value: Response) => Promise.resolve(void store.set(url, value));
    return Promise.resolve({
      put,
      match: (key: string) => Promise.resolve(store.get(key)?.clone()),
      keys: () => Promise.resolve([...store.keys()].map((url) => ({ url }))),
      delete: (url: string) => Promise.resolve(store.delete(url)),
      addAll: (urls: string[]) => Promise.all(urls.map(async (url) => put(url, await network(url)))),
    });
  };
  const match = async (key: string, { cacheName }: { cacheName: string }) => (await open(cacheName)).match(key);
  const listeners: Record<string, (event: object) => void> = {};
  const self = {
    registration: { scope: SCOPE },
    clients: { claim: () => Promise.resolve() },
    skipWaiting: () => undefined,
    addEventListener: (kind: string, listener: (event: object) => void) => { listeners[kind] = listener; },
  };
  const network = vi.fn<(request: unknown) => Promise<Response>>();
  runInNewContext(source, { self, caches: { open, match }, fetch: network, setTimeout, Promise });

  const fire = async (kind: string, event: object): Promise<Response | undefined> => {
    const work: Promise<unknown>[] = [];
    let answer: Promise<Response> | undefined;
    listeners[kind]?.({
      ...event,
      waitUntil: (promise: Promise<unknown>) => work.push(promise),
      respondWith: (promise: Promise<Response>) => { answer = promise; },
    });
    const response = await answer;
    await Promise.all(work);
    return response;
  };
  const ask = async (path: string, method = "GET") => (
    (await fire("fetch", { request: { method, url: path.includes("://") ? path : SCOPE + path } }))?.text());
  const urls = (kind: string) => [...(stores.get(`shuzhai ${kind} ${SCOPE}`)?.keys() ?? [])];
  return { network, fire, ask, urls };
}

const mark = /<meta name="application-name".*>/.exec(index)?.[0] ?? "";
const page = (script: string) => new Response(`${mark}<script src="./assets/${script}"></script>`);
let worker: ReturnType<typeof start>;

beforeEach(async () => {
  worker = start();
  worker.network.mockImplementation((request) => (
    Promise.resolve(request === SCOPE ? page("index-1.js") : new Response(`net ${String(request)}`))));
  await worker.fire("install", {});
});

test("what the server says is left alone, and what is elsewhere", async () => {
  worker.network.mockClear();
  for (const path of ["api/status", "v1/models", "examples/a.webp", "https://host/", "https://host/prefix2/"]) {
    expect(await worker.ask(path)).toBeUndefined();
  }
  expect(await worker.ask("assets/index-1.js", "POST")).toBeUndefined();
  expect(worker.network).not.toHaveBeenCalled();
});

test("after its installation the page opens without the server", async () => {
  worker.network.mockRejectedValue(new TypeError("offline"));
  expect(await worker.ask("")).toContain("index-1.js");
  expect(await worker.ask("index.html?x=1#/c/1")).toContain("index-1.js");
  expect(await worker.ask("assets/index-1.js")).toBe(`net ${SCOPE}assets/index-1.js`);
});

test("a tunnel without a server behind it is no answer", async () => {
  worker.network.mockResolvedValue(new Response("bad gateway", { status: 502 }));
  expect(await worker.ask("")).toContain("index-1.js");
  worker.network.mockResolvedValue(new Response("gone", { status: 404 }));
  expect(await worker.ask("")).toBe("gone");
});

test("what is not our page is shown, but never kept in its place", async () => {
  const foreign = '<title>Is this your tunnel?</title><script src="./assets/foreign.js"></script>';
  worker.network.mockImplementation(() => Promise.resolve(new Response(foreign)));
  expect(await worker.ask("")).toBe(foreign);
  expect(worker.urls("assets")).toEqual([`${SCOPE}assets/index-1.js`]);
  worker.network.mockRejectedValue(new TypeError("offline"));
  expect(await worker.ask("")).toContain("index-1.js");

  worker = start();
  worker.network.mockImplementation(() => Promise.resolve(new Response(foreign)));
  await worker.fire("install", {});
  expect([...worker.urls("shell"), ...worker.urls("assets")]).toEqual([]);
});

test("a page that names no assets takes none away", async () => {
  worker.network.mockImplementation(() => Promise.resolve(new Response(mark)));
  await worker.ask("");
  expect(worker.urls("assets")).toEqual([`${SCOPE}assets/index-1.js`]);
});

test("a new page takes the place of the old one, once it is whole", async () => {
  const update = (request: unknown) => Promise.resolve(
    typeof request === "string" ? new Response("new asset") : page("index-2.js"));
  worker.network.mockImplementation((request) => (
    typeof request === "string" ? Promise.reject(new TypeError("offline")) : update(request)));
  expect(await worker.ask("")).toContain("index-2.js");
  expect(worker.urls("assets")).toEqual([`${SCOPE}assets/index-1.js`]);

  worker.network.mockImplementation(update);
  await worker.ask("");
  expect(worker.urls("assets")).toEqual([`${SCOPE}assets/index-2.js`]);
  worker.network.mockRejectedValue(new TypeError("offline"));
  expect(await worker.ask("")).toContain("index-2.js");
});
