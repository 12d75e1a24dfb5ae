import { useCallback, useEffect, useRef, useState } from "react";

export type SaveState = { kind: "idle" | "saving" | "saved" } | { kind: "failed"; error: unknown };

const PAUSE_MS = 500;

/** A draft that is saved shortly after each change, and at the latest when it is closed. */
export function useSaved<T>(initial: T, save: (value: T) => Promise<void>) {
  const [draft, setDraft] = useState(initial);
  const [state, setState] = useState<SaveState>({ kind: "idle" });
  const unsaved = useRef<{ value: T } | null>(null);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  const latest = useRef(save);
  latest.current = save;

  const flush = useCallback(async () => {
    clearTimeout(timer.current);
    if (!unsaved.current) return;
    const { value } = unsaved.current;
    unsaved.current = null;
    setState({ kind: "saving" });
    try {
      await latest.current(value);
      setState({ kind: "saved" });
    } catch (error) {
      unsaved.current ??= { value }; // with the next change, or on closing, once more
      setState({ kind: "failed", error });
    }
  }, []);

  const change = useCallback((value: T) => {
    setDraft(value);
    unsaved.current = { value };
    clearTimeout(timer.current);
    timer.current = setTimeout(() => void flush(), PAUSE_MS);
  }, [flush]);

  useEffect(() => () => void flush(), [flush]);
  return { draft, change, state };
}
