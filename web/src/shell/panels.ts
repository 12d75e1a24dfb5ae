import { create } from "zustand";

export type Panel = "settings" | "models" | "shortcuts" | "drawer";

interface Panels {
  open: Panel | null;
  show: (panel: Panel) => void;
  close: () => void;
}

/** What lies over the page: one at a time. The drawer is the list of conversations on a phone. */
export const usePanels = create<Panels>((set) => ({
  open: null,
  show: (panel) => set({ open: panel }),
  close: () => set({ open: null }),
}));
