import { act, renderHook } from "@testing-library/react";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { useSaved } from "./useSaved";

beforeEach(() => { vi.useFakeTimers(); });
afterEach(() => { vi.useRealTimers(); });

test("a draft is saved once after a pause, and what is left on closing", async () => {
  const save = vi.fn(() => Promise.resolve());
  const { result, unmount } = renderHook(() => useSaved("", save));
  act(() => result.current.change("a"));
  act(() => result.current.change("ab"));
  expect(result.current.draft).toBe("ab");
  await act(() => vi.advanceTimersByTimeAsync(600));
  expect(save.mock.calls).toEqual([["ab"]]);
  expect(result.current.state.kind).toBe("saved");
  act(() => result.current.change("abc"));
  unmount();
  expect(save.mock.calls).toEqual([["ab"], ["abc"]]);
});

test("what could not be saved is said, and tried again with the next change", async () => {
  const save = vi.fn<(value: string) => Promise<void>>().mockRejectedValueOnce(new Error("no")).mockResolvedValue();
  const { result } = renderHook(() => useSaved<string>("", save));
  act(() => result.current.change("a"));
  await act(() => vi.advanceTimersByTimeAsync(600));
  expect(result.current.state.kind).toBe("failed");
  act(() => result.current.change("b"));
  await act(() => vi.advanceTimersByTimeAsync(600));
  expect(result.current.state.kind).toBe("saved");
  expect(save).toHaveBeenLastCalledWith("b");
});
