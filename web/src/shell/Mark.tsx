/** The seal of the house: an open book. */
export function Mark({ size = 28 }: { size?: number }) {
  return (
    <svg className="mark" width={size} height={size} viewBox="0 0 64 64" aria-hidden="true">
      <rect className="mark-seal" width="64" height="64" rx="14" />
      <path className="mark-page" d="M13 19c7-3 13-2 17.5 2v27c-4.5-4-10.5-5-17.5-2z" />
      <path className="mark-page" d="M51 19c-7-3-13-2-17.5 2v27c4.5-4 10.5-5 17.5-2z" />
    </svg>
  );
}
