import type * as Katex from "katex";
import { memo, useEffect, useLayoutEffect, useRef, useState } from "react";

type Library = Pick<typeof Katex, "render">;

// The library is large: it is fetched after the page, or with the first formula.
let library: Library | null = null;
const fetched = () => import("./katex").then(({ default: katex }) => { library = katex; });

const EARLY_MS = 2000;
if (import.meta.env.PROD) setTimeout(() => void fetched().catch(() => undefined), EARLY_MS);

/** Of links, pictures and the like, which KaTeX would show in part. */
function refuse(): never {
  throw new Error("not allowed");
}

/** Some arrows have their style as an attribute, which the policy ignores. */
function applyStyles(span: HTMLElement): void {
  for (const node of span.querySelectorAll<SVGElement>("svg[style]")) {
    node.style.cssText = node.getAttribute("style") ?? "";
  }
}

interface FormulaProps {
  source: string;
  isDisplay: boolean; // stands alone
}

/** A formula; its source where it has a fault, or until the library is here. Built as nodes, since
 * the page's policy allows no styles in HTML. */
export const Formula = memo(function Formula({ source, isDisplay }: FormulaProps) {
  const element = useRef<HTMLSpanElement>(null);
  const [isHere, setIsHere] = useState(library !== null);
  useEffect(() => {
    if (isHere) return undefined;
    let isWanted = true;
    fetched().then(() => { if (isWanted) setIsHere(true); }, () => undefined);
    return () => { isWanted = false; };
  }, [isHere]);
  useLayoutEffect(() => {
    const span = element.current;
    if (!span) return;
    try {
      library?.render(source, span, {
        displayMode: isDisplay, trust: refuse, strict: "ignore", throwOnError: true,
        // A model may write what would take for ever, or fill the screen.
        maxExpand: 200, maxSize: 20,
      });
      span.classList.toggle("formula-source", library === null);
      if (library) applyStyles(span);
      else span.textContent = source;
    } catch {
      span.classList.add("formula-source");
      span.textContent = source;
    }
  }, [source, isDisplay, isHere]);
  return <span ref={element} className={isDisplay ? "formula formula-display" : "formula"} />;
});
