/** Enter sends; but not the one that ends the composition of an input method (229: Safari's sign for it). */
export function isSendKey({ key, shiftKey, altKey, isComposing, keyCode }: KeyboardEvent): boolean {
  return key === "Enter" && !shiftKey && !altKey && !isComposing && keyCode !== 229;
}
