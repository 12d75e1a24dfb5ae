import { useEffect, useRef, useState } from "react";

/** Files that are pasted or dropped anywhere on the page. True while some are held over it. */
export function useFileEvents(take: (files: File[]) => void): boolean {
  const [isOver, setIsOver] = useState(false);
  const taker = useRef(take);
  taker.current = take;
  useEffect(() => {
    const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
    const isBusy = () => document.querySelector("dialog[open]") !== null;
    const onPaste = (event: ClipboardEvent) => {
      const { clipboardData } = event;
      if (!clipboardData?.files.length || isBusy()) return;
      // Office programs add a picture of the text that was copied: that is meant as text.
      if (clipboardData.types.includes("text/plain") && clipboardData.types.includes("text/html")) return;
      event.preventDefault();
      taker.current([...clipboardData.files]);
    };
    // Without this the browser would leave the page to show the file.
    const onDrag = (event: DragEvent) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      const isInside = event.type === "dragover" || event.relatedTarget !== null;
      setIsOver(event.type !== "drop" && isInside && !isBusy());
      if (event.type === "drop" && !isBusy()) taker.current([...(event.dataTransfer?.files ?? [])]);
    };
    document.addEventListener("paste", onPaste);
    for (const kind of ["dragover", "dragleave", "drop"] as const) document.addEventListener(kind, onDrag);
    return () => {
      document.removeEventListener("paste", onPaste);
      for (const kind of ["dragover", "dragleave", "drop"] as const) document.removeEventListener(kind, onDrag);
    };
  }, []);
  return isOver;
}
