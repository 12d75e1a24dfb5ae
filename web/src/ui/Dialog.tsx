import { X } from "lucide-react";
import { createContext, useId, useLayoutEffect, useRef, useState, type ReactNode } from "react";
import { useTranslation } from "react-i18next";
import { IconButton } from "./IconButton";

/** Where a menu inside a dialog must be put: what is outside of a modal dialog cannot be reached. */
export const DialogElement = createContext<HTMLElement | null>(null);

export interface DialogProps {
  open: boolean;
  onClose: () => void;
  title: string;
  description?: ReactNode;
  footer?: ReactNode;
  className?: string; // "dialog-wide", "dialog-drawer" ...
  plain?: boolean; // no head of its own: the title is for screen readers alone
  children?: ReactNode; // what is marked data-first has the focus first
}

/** A native modal dialog: the browser keeps the focus inside, gives it back, and makes the rest inert. */
export function Dialog({ open, ...rest }: DialogProps) {
  return open ? <OpenDialog {...rest} /> : null;
}

function OpenDialog(
  { onClose, title, description, footer, className = "", plain = false, children }: Omit<DialogProps, "open">,
) {
  const { t } = useTranslation("ui");
  const titleId = useId();
  const textId = useId();
  const [element, setElement] = useState<HTMLDialogElement | null>(null);
  const pressedOutside = useRef(false);
  useLayoutEffect(() => {
    if (!element) return undefined;
    element.showModal();
    // The browser would choose the first button, which closes it.
    (element.querySelector<HTMLElement>("[data-first]") ?? element).focus();
    return () => element.close(); // while it is still in the page: only so the focus goes back
  }, [element]);
  return (
    <dialog
      ref={setElement}
      className={`dialog ${className}`}
      tabIndex={-1}
      aria-labelledby={titleId}
      aria-describedby={description ? textId : undefined}
      onCancel={(event) => {
        // That of a file chooser inside bubbles.
        if (event.target !== event.currentTarget) return;
        event.preventDefault();
        onClose();
      }}
      onClose={() => !element?.open && onClose()}
      onPointerDown={(event) => { pressedOutside.current = event.target === element; }}
      onClick={(event) => event.target === element && pressedOutside.current && onClose()}
    >
      <DialogElement value={element}>
        <div className="dialog-body">
          <div className={plain ? "visually-hidden" : "dialog-head"}>
            <h2 id={titleId}>{title}</h2>
            {!plain && <IconButton label={t("close")} onClick={onClose}><X /></IconButton>}
          </div>
          {description && <p id={textId} className="dialog-text">{description}</p>}
          {children}
          {footer && <div className="dialog-foot">{footer}</div>}
        </div>
      </DialogElement>
    </dialog>
  );
}
