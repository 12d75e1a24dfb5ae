// Conversations of which the server does not have all yet: what it would send of them is older.

const saves = new Map<string, number>();

export const isPending = (id: string): boolean => saves.has(id);

export function beginSave(id: string): void {
  saves.set(id, (saves.get(id) ?? 0) + 1);
}

export function endSave(id: string): void {
  const rest = (saves.get(id) ?? 1) - 1;
  if (rest > 0) saves.set(id, rest);
  else saves.delete(id);
}
