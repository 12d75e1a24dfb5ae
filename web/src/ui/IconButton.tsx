import type { ComponentProps } from "react";

export interface IconButtonProps extends ComponentProps<"button"> {
  label: string; // its name, and its tooltip
  small?: boolean;
}

/** A button that shows an icon alone. */
export function IconButton({ label, small = false, className = "", children, ...rest }: IconButtonProps) {
  return (
    <button
      type="button"
      className={`icon-button ${small ? "icon-button-small" : ""} ${className}`}
      aria-label={label}
      title={label}
      {...rest}
    >
      {children}
    </button>
  );
}
