import { cleanup, render, screen } from "@testing-library/react";
import { afterEach, beforeAll, describe, expect, it, vi } from "vitest";

import { startTexts } from "../../i18n";
import { Markdown } from "./Markdown";

beforeAll(() => startTexts("en"));
afterEach(cleanup);

const html = (text: string): string => render(<Markdown text={text} />).container.innerHTML;

describe("an answer can do no harm", () => {
  it("with HTML, which is shown as text", () => {
    const shown = html('<script>alert(1)</script> <img src="x" onerror="alert(1)"> <b style="color:red">b</b>\n\n<iframe src="//x"></iframe>');
    expect(shown).not.toMatch(/<(script|img|iframe|b|style)\b/);
    expect(shown).toContain("&lt;script&gt;");
  });

  it.each(["javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "vbscript:x", "#/compare", "../x", "//example.com"])(
    "with a link to %s, which is only its text", (address) => {
      expect(html(`[here](${address})`)).not.toContain("<a");
      expect(screen.getByText("here")).toBeTruthy();
    });

  it("with a picture, which is a link and not fetched", () => {
    expect(html("![a cat](https://example.com/cat.png)")).not.toContain("<img");
    expect(screen.getByRole("link", { name: "a cat" }).getAttribute("href")).toBe("https://example.com/cat.png");
  });

  it("with a link, which opens elsewhere and tells nothing of this page", () => {
    html("[there](https://example.com)");
    const link = screen.getByRole("link");
    expect(link.getAttribute("target")).toBe("_blank");
    expect(link.getAttribute("rel")).toContain("noopener");
  });
});

describe("a formula", () => {
  it("is set", async () => {
    const { container } = render(<Markdown text="So \(x^2\) and $5 and $6." />);
    await vi.waitFor(() => expect(container.querySelector(".katex")).not.toBeNull());
    expect(container.textContent).toContain("and $5 and $6.");
  });

  it.each(["\\frac{1", "\\href{javascript:alert(1)}{x}", "\\includegraphics{https://example.com/a.png}"])(
    "with the fault %s shows its source", async (source) => {
      const { container } = render(<Markdown text={`$$${source}$$ \\(x\\)`} />);
      await vi.waitFor(() => expect(container.querySelector(".katex")).not.toBeNull());
      expect(container.querySelector(".formula-source")?.textContent).toBe(source);
      expect(container.querySelector("a, img")).toBeNull();
    });
});

it("gives code its language and a button", () => {
  html("```python\nx = 1\n```");
  expect(screen.getByText("python")).toBeTruthy();
  expect(screen.getByRole("button", { name: "Copy code" })).toBeTruthy();
});
