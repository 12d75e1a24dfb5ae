import { Check } from "lucide-react";
import { DropdownMenu } from "radix-ui";
import { createContext, useContext, useRef, useState, type ReactElement, type ReactNode } from "react";
import { DialogElement } from "./Dialog";

const Later = createContext<(action: () => void) => void>((action) => action());

export interface MenuProps {
  trigger: ReactElement; // a Button or an IconButton
  align?: "start" | "center" | "end";
  side?: "top" | "bottom";
  className?: string;
  onOpenChange?: (open: boolean) => void;
  children: ReactNode; // MenuItem, MenuChoice, MenuLabel, MenuSeparator
}

/** A dropdown menu. What an item does is done once the focus is back on the trigger, so that a dialog
 * that it opens returns the focus there. */
export function Menu({ trigger, align = "end", side = "bottom", className = "", onOpenChange, children }: MenuProps) {
  const dialog = useContext(DialogElement);
  const [open, setOpen] = useState(false);
  const chosen = useRef<(() => void) | null>(null);
  const later = (action: () => void) => { chosen.current = action; };
  const act = () => {
    if (chosen.current) setTimeout(chosen.current);
    chosen.current = null;
  };
  const change = (next: boolean) => {
    setOpen(next);
    onOpenChange?.(next);
  };
  return (
    <DropdownMenu.Root modal={false} open={open} onOpenChange={change}>
      <DropdownMenu.Trigger asChild>{trigger}</DropdownMenu.Trigger>
      {/* Within a landmark, for those who find their way by them. */}
      <DropdownMenu.Portal container={dialog ?? document.querySelector("main")}>
        <DropdownMenu.Content
          className={`menu ${className}`}
          align={align}
          side={side}
          sideOffset={6}
          collisionPadding={8}
          onCloseAutoFocus={act}
        >
          <Later value={later}>{children}</Later>
        </DropdownMenu.Content>
      </DropdownMenu.Portal>
    </DropdownMenu.Root>
  );
}

export interface MenuItemProps {
  onSelect: () => void;
  icon?: ReactNode;
  danger?: boolean;
  disabled?: boolean;
  hint?: ReactNode; // at the end of the line, in quiet letters
  children: ReactNode;
}

export function MenuItem({ onSelect, icon, danger = false, disabled, hint, children }: MenuItemProps) {
  const later = useContext(Later);
  return (
    <DropdownMenu.Item
      className={`menu-item ${danger ? "menu-danger" : ""}`}
      disabled={disabled}
      onSelect={() => later(onSelect)}
    >
      {icon && <span className="menu-icon" aria-hidden="true">{icon}</span>}
      <span className="menu-text">{children}</span>
      {hint && <span className="menu-hint">{hint}</span>}
    </DropdownMenu.Item>
  );
}

export interface MenuChoiceProps<T extends string> {
  label: string;
  value: T | null;
  options: readonly { value: T; label: ReactNode; disabled?: boolean }[];
  onChange: (value: T) => void;
}

/** One of several. */
export function MenuChoice<T extends string>({ label, value, options, onChange }: MenuChoiceProps<T>) {
  return (
    <DropdownMenu.RadioGroup
      aria-label={label}
      value={value ?? ""}
      onValueChange={(next) => onChange(next as T)}
    >
      {options.map((option) => (
        <DropdownMenu.RadioItem
          key={option.value}
          className="menu-item menu-choice"
          value={option.value}
          disabled={option.disabled}
        >
          <span className="menu-text">{option.label}</span>
          <DropdownMenu.ItemIndicator className="menu-check"><Check aria-hidden="true" /></DropdownMenu.ItemIndicator>
        </DropdownMenu.RadioItem>
      ))}
    </DropdownMenu.RadioGroup>
  );
}

export function MenuLabel({ children }: { children: ReactNode }) {
  return <DropdownMenu.Label className="menu-label">{children}</DropdownMenu.Label>;
}

export function MenuSeparator() {
  return <DropdownMenu.Separator className="menu-separator" />;
}
