export interface ProgressProps {
  value: number | null; // 0 to 1; null: how much is left is not known
  label: string;
}

export function Progress({ value, label }: ProgressProps) {
  return <progress className="progress" aria-label={label} max={1} {...(value === null ? {} : { value })} />;
}
