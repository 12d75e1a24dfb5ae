import { useId, type ReactNode } from "react";

export interface ChoiceProps<T extends string> {
  label: string;
  value: T;
  options: readonly { value: T; label: ReactNode }[];
  onChange: (value: T) => void;
  hiddenLabel?: boolean;
}

/** A few options side by side, one of them chosen: radio buttons, as the keyboard knows them. */
export function Choice<T extends string>({ label, value, options, onChange, hiddenLabel }: ChoiceProps<T>) {
  const name = useId();
  return (
    <fieldset className="choice">
      <legend className={hiddenLabel ? "visually-hidden" : ""}>{label}</legend>
      <div className="choice-options">
        {options.map((option) => (
          <label key={option.value} className="choice-option">
            <input
              type="radio"
              name={name}
              value={option.value}
              checked={option.value === value}
              onChange={() => onChange(option.value)}
            />
            <span>{option.label}</span>
          </label>
        ))}
      </div>
    </fieldset>
  );
}
