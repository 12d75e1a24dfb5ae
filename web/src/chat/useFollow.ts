import { useCallback, useEffect, useRef, useState, type RefObject } from "react";

const NEAR_PX = 48;

export interface Follow {
  scroller: RefObject<HTMLDivElement | null>;
  content: RefObject<HTMLDivElement | null>;
  isAtEnd: boolean;
  toEnd: () => void;
}

/** Keeps the end of `content` in view while it grows, unless the user has scrolled up. With `isOff`
 * it stays at its start. */
export function useFollow(isOff: boolean): Follow {
  const scroller = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const lastTop = useRef(0);
  const [isAtEnd, setIsAtEnd] = useState(true);

  const jump = useCallback(() => {
    const box = scroller.current;
    if (!box) return;
    box.scrollTop = box.scrollHeight;
    lastTop.current = box.scrollTop;
  }, []);

  const toEnd = useCallback(() => {
    follows.current = true;
    setIsAtEnd(true);
    if (!isOff) jump();
  }, [jump, isOff]);

  useEffect(() => {
    const box = scroller.current;
    const inner = content.current;
    if (!box || !inner || isOff) return undefined;
    const onScroll = () => {
      const isNear = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_PX;
      // A jump of content that shrinks is no wish of the user's; neither is the way down.
      if (isNear) follows.current = true;
      else if (box.scrollTop < lastTop.current - 2) follows.current = false;
      lastTop.current = box.scrollTop;
      setIsAtEnd(isNear || follows.current);
    };
    const observer = new ResizeObserver(() => { if (follows.current) jump(); });
    observer.observe(inner);
    observer.observe(box);
    box.addEventListener("scroll", onScroll, { passive: true });
    return () => {
      observer.disconnect();
      box.removeEventListener("scroll", onScroll);
    };
  }, [jump, isOff]);

  return { scroller, content, isAtEnd, toEnd };
}
