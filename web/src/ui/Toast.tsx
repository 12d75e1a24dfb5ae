import { CircleAlert, CircleCheck, Info, X } from "lucide-react";
import { useEffect, useRef } from "react";
import { useTranslation } from "react-i18next";
import { create } from "zustand";
import { IconButton } from "./IconButton";

export type ToastKind = "info" | "done" | "error";

interface Toast {
  id: number;
  text: string;
  kind: ToastKind;
}

interface ToastState {
  toasts: Toast[];
  say: (text: string, kind?: ToastKind) => void;
  dismiss: (id: number) => void;
}

const SECONDS: Record<ToastKind, number> = { info: 6, done: 4, error: 12 };
const MOST = 3;
let lastId = 0;

export const useToasts = create<ToastState>((set, get) => ({
  toasts: [],
  say: (text, kind = "info") => {
    const id = ++lastId;
    const others = get().toasts.filter((toast) => toast.text !== text);
    set({ toasts: [...others, { id, text, kind }].slice(-MOST) });
    setTimeout(() => get().dismiss(id), SECONDS[kind] * 1000);
  },
  dismiss: (id) => set({ toasts: get().toasts.filter((toast) => toast.id !== id) }),
}));

const ICONS = { info: Info, done: CircleCheck, error: CircleAlert };

/** Short news, in the top layer: above open dialogs. */
export function Toasts() {
  const { t } = useTranslation("ui");
  const { toasts, dismiss } = useToasts();
  const element = useRef<HTMLDivElement>(null);
  const newest = toasts.at(-1)?.id;
  useEffect(() => {
    const shown = element.current;
    if (!shown?.showPopover) return;
    // Shown anew, it comes above a dialog that was opened meanwhile. Never left hidden: a screen
    // reader tells only of what changes in a region that it knows.
    if (shown.matches(":popover-open")) shown.hidePopover();
    shown.showPopover();
  }, [newest]);
  return (
    <div ref={element} className="toasts" popover="manual" role="status" aria-live="polite">
      {toasts.map(({ id, text, kind }) => {
        const Icon = ICONS[kind];
        return (
          <div key={id} className={`toast toast-${kind}`}>
            <Icon aria-hidden="true" />
            <span className="toast-text">{text}</span>
            <IconButton small label={t("dismiss")} onClick={() => dismiss(id)}><X /></IconButton>
          </div>
        );
      })}
    </div>
  );
}
