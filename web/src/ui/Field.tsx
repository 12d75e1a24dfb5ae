import { useId, type ComponentProps, type ReactNode } from "react";

interface Wiring {
  id: string;
  "aria-describedby": string | undefined;
  "aria-invalid": true | undefined;
}

export interface FieldProps {
  label: ReactNode;
  hint?: ReactNode;
  error?: ReactNode;
  aside?: ReactNode; // beside the label
  children: (wiring: Wiring) => ReactNode; // the control, which takes these properties
}

/** A label, a control, and what there is to say of it. */
export function Field({ label, hint, error, aside, children }: FieldProps) {
  const id = useId();
  const hintId = useId();
  return (
    <div className="field">
      <div className="field-head">
        <label htmlFor={id}>{label}</label>
        {aside}
      </div>
      {children({
        id,
        "aria-describedby": error || hint ? hintId : undefined,
        "aria-invalid": error ? true : undefined,
      })}
      {(error || hint) && <p id={hintId} className={error ? "field-error" : "field-hint"}>{error || hint}</p>}
    </div>
  );
}

export function Input({ className = "", ...rest }: ComponentProps<"input">) {
  return <input className={`input ${className}`} autoComplete="off" {...rest} />;
}

export function TextArea({ className = "", ...rest }: ComponentProps<"textarea">) {
  return <textarea className={`input ${className}`} {...rest} />;
}

export interface SelectProps<T extends string> extends Omit<ComponentProps<"select">, "value" | "onChange"> {
  value: T;
  options: readonly { value: T; label: string; disabled?: boolean }[];
  onChange: (value: T) => void;
}

/** The browser's own: it works on phones and for screen readers as people know it. */
export function Select<T extends string>({ value, options, onChange, className = "", ...rest }: SelectProps<T>) {
  return (
    <select
      className={`input select ${className}`}
      value={value}
      onChange={(event) => onChange(event.target.value as T)}
      {...rest}
    >
      {options.map((option) => (
        <option key={option.value} value={option.value} disabled={option.disabled}>{option.label}</option>
      ))}
    </select>
  );
}
