import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import { api, ApiError, OfflineError } from "../api/client";
import { addToDraft, draftOf, removeFromDraft, setDraft, uploaded } from "./drafts";

const picture = { id: "sha", media_type: "image/png", name: "a.png" };
const file = new Blob(["x"], { type: "image/png" });

beforeEach(() => { vi.spyOn(api, "upload").mockResolvedValue(picture); });
afterEach(() => setDraft("c", { text: "", pictures: [] }));

describe("a draft", () => {
  it("takes pictures to the server as they come", async () => {
    await addToDraft("c", file, "a.png");
    expect(draftOf("c").pictures).toMatchObject([{ name: "a.png", picture }]);
    expect(await uploaded("c")).toEqual([picture]);
    expect(api.upload).toHaveBeenCalledTimes(1);
  });

  it("keeps a picture while the server is away, and takes it there when it is sent", async () => {
    vi.mocked(api.upload).mockRejectedValueOnce(new OfflineError());
    await addToDraft("c", file, "a.png");
    expect(draftOf("c").pictures).toMatchObject([{ picture: null }]);
    expect(await uploaded("c")).toEqual([picture]);
  });

  it("drops a picture that the server does not take", async () => {
    vi.mocked(api.upload).mockRejectedValueOnce(new ApiError("Damaged.", 400));
    await expect(addToDraft("c", file, "a.png")).rejects.toThrow("Damaged.");
    expect(draftOf("c").pictures).toEqual([]);
  });

  it("is kept by the browser, with what the server has of its pictures", async () => {
    await addToDraft("c", file, "a.png");
    setDraft("c", { text: "Look" });
    window.dispatchEvent(new Event("pagehide"));
    expect(JSON.parse(localStorage.getItem("shuzhai.drafts") ?? "")).toEqual({ c: { text: "Look", pictures: [picture] } });
    removeFromDraft("c", draftOf("c").pictures[0]?.key ?? "");
    expect(draftOf("c")).toEqual({ text: "Look", pictures: [] });
  });
});
