export interface NumberLimits {
  min?: number;
  max?: number;
  whole?: boolean;
}

/** What is wrong: keys of the texts of `ui`. */
export type NumberFault = "notNumber" | "notWhole" | "tooSmall" | "tooLarge";

/** A number as people type it; nothing is null, the default. */
export function readNumber(text: string, limits: NumberLimits): { value: number | null; fault: NumberFault | null } {
  const trimmed = text.trim();
  if (!trimmed) return { value: null, fault: null };
  // Chinese input methods write full-width digits and points.
  const value = Number(trimmed.normalize("NFKC").replace("。", "."));
  const wrong = (fault: NumberFault) => ({ value: null, fault });
  if (!Number.isFinite(value)) return wrong("notNumber");
  if (limits.whole && !Number.isInteger(value)) return wrong("notWhole");
  if (limits.min !== undefined && value < limits.min) return wrong("tooSmall");
  if (limits.max !== undefined && value > limits.max) return wrong("tooLarge");
  return { value, fault: null };
}
