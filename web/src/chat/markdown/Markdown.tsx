import { memo, useEffect, useLayoutEffect, useMemo, useRef, useState, type ComponentProps } from "react";
import { useTranslation } from "react-i18next";
import ReactMarkdown, { type Components, type ExtraProps } from "react-markdown";
import rehypeHighlight from "rehype-highlight";
import remarkGfm from "remark-gfm";
import remarkMath from "remark-math";

import { blocksOf } from "./blocks";
import { CodeBlock } from "./CodeBlock";
import { Formula } from "./Formula";
import { withFormulas } from "./formulas";
import "./markdown.css";

type Plugins = ComponentProps<typeof ReactMarkdown>["remarkPlugins"];

const REMARK: Plugins = [[remarkGfm, { singleTilde: false }], [remarkMath, { singleDollarTextMath: false }]];
// One for all blocks: what it learns of a language is kept.
const highlight = rehypeHighlight({ plainText: ["math"] });
const REHYPE: Plugins = [() => highlight];
// The page's address tells what is shown: there are no links within an answer.
const NO_WAY_BACK = { footnoteBackContent: "" };
const SAFE = /^(https?|mailto):/i;

const components: Components = {
  a: ({ href, children }) => (
    href ? <a href={href} target="_blank" rel="noopener noreferrer nofollow">{children}</a> : <span>{children}</span>
  ),
  // Fetching it would tell its host that somebody reads this.
  img: ({ src, alt }) => (
    typeof src === "string" && SAFE.test(src)
      ? <a href={src} target="_blank" rel="noopener noreferrer nofollow">{alt || src}</a>
      : <span>{alt}</span>
  ),
  code: ({ className, children }) => {
    if (!/\blanguage-math\b/.test(className ?? "")) return <code className={className}>{children}</code>;
    return <Formula source={String(children)} isDisplay={/\bmath-display\b/.test(className ?? "")} />;
  },
  input: ({ checked }) => <Task isDone={checked === true} />, // of a list of tasks
  pre: ({ node, children }) => (isFormula(node) ? children : <CodeBlock>{children}</CodeBlock>),
  table: ({ children }) => (
    <div className="md-table" role="group" tabIndex={0}><table>{children}</table></div>
  ),
};

function Task({ isDone }: { isDone: boolean }) {
  const { t } = useTranslation("chat");
  return <input type="checkbox" disabled checked={isDone} aria-label={t(isDone ? "taskDone" : "taskOpen")} />;
}

function isFormula(pre: ExtraProps["node"]): boolean {
  const code = pre?.children[0];
  const names = code?.type === "element" ? code.properties["className"] : null;
  return Array.isArray(names) && names.includes("math-display");
}

/** Text of a model. Its HTML is text, its pictures are links; nothing of it can run. */
export const Markdown = memo(function Markdown({ text, growing = false }: { text: string; growing?: boolean }) {
  const shown = useEased(text, growing);
  const blocks = useMemo(() => blocksOf(shown), [shown]);
  return (
    <div className={growing ? "markdown growing" : "markdown"}>
      {blocks.map((block, place) => <Block key={place} text={block} />)}
    </div>
  );
});

const Block = memo(function Block({ text }: { text: string }) {
  return (
    <ReactMarkdown
      remarkPlugins={REMARK}
      rehypePlugins={REHYPE}
      components={components}
      remarkRehypeOptions={NO_WAY_BACK}
      urlTransform={(url) => (SAFE.test(url) ? url : "")}
    >
      {withFormulas(text)}
    </ReactMarkdown>
  );
});

const BUSY_SHARE = 4; // rendering takes at most one part of so many of the time

/** `text`; while it grows, not more often than can be shown: a long block takes long to parse. */
function useEased(text: string, growing: boolean): string {
  const [shown, setShown] = useState(text);
  const next = useRef(0);
  const latest = growing ? shown : text;
  const began = performance.now();
  useLayoutEffect(() => {
    next.current = performance.now() + (performance.now() - began) * (BUSY_SHARE - 1);
  }, [latest]);
  useEffect(() => {
    if (!growing || shown === text) return;
    const timer = setTimeout(() => setShown(text), Math.max(0, next.current - performance.now()));
    return () => clearTimeout(timer);
  }, [growing, shown, text]);
  return latest;
}
