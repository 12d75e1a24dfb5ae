/** Decoration: what is being done stands beside it in words. */
export function Spinner() {
  return <span className="spinner" aria-hidden="true" />;
}
