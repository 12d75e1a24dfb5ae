import type { ComponentProps } from "react";
import { Spinner } from "./Spinner";

export type ButtonVariant = "primary" | "plain" | "ghost" | "danger";

export interface ButtonProps extends ComponentProps<"button"> {
  variant?: ButtonVariant;
  small?: boolean;
  busy?: boolean; // shows a spinner and takes no click
}

export function Button({
  variant = "plain", small = false, busy = false, className = "", children, disabled, ...rest
}: ButtonProps) {
  const names = `button button-${variant} ${small ? "button-small" : ""} ${className}`;
  return (
    <button type="button" className={names} disabled={disabled || busy} aria-busy={busy || undefined} {...rest}>
      {busy && <Spinner />}
      {children}
    </button>
  );
}
