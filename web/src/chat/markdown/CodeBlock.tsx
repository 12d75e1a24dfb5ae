import { Check, Copy } from "lucide-react";
import { isValidElement, useRef, type ReactNode } from "react";
import { useTranslation } from "react-i18next";

import { useCopy } from "../useCopy";

/** A block of code with its language and a button that copies it. */
export function CodeBlock({ children }: { children: ReactNode }) {
  const { t } = useTranslation("chat");
  const code = useRef<HTMLPreElement>(null);
  const { copied, copy } = useCopy();
  const language = languageOf(children);
  return (
    <div className="code-block">
      <div className="code-head">
        <span>{language}</span>
        <button
          type="button"
          className="code-copy"
          aria-label={t("copyCode")}
          onClick={() => void copy(code.current?.textContent ?? "")}
        >
          {copied ? <Check aria-hidden /> : <Copy aria-hidden />}
          {copied ? t("copied") : t("copy")}
        </button>
      </div>
      <pre ref={code} tabIndex={0} aria-label={language || undefined}>{children}</pre>
    </div>
  );
}

function languageOf(code: ReactNode): string {
  if (!isValidElement<{ className?: string }>(code)) return "";
  return /language-(\S+)/.exec(code.props.className ?? "")?.[1] ?? "";
}
