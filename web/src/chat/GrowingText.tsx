import { useLayoutEffect, useRef, type ComponentProps, type Ref } from "react";

interface GrowingTextProps extends ComponentProps<"textarea"> {
  value: string;
  inner?: Ref<HTMLTextAreaElement>;
}

/** A text area as high as its text, up to what its style allows. */
export function GrowingText({ value, inner, ...rest }: GrowingTextProps) {
  const own = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => {
    const area = own.current;
    if (!area) return;
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
  }, [value]);
  const keep = (area: HTMLTextAreaElement | null) => {
    own.current = area;
    if (typeof inner === "function") inner(area);
    else if (inner) inner.current = area;
  };
  return <textarea ref={keep} rows={1} value={value} {...rest} />;
}
