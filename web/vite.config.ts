import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

/** Every browser that can show this page reads WOFF2: the other kinds of KaTeX's fonts stay out. */
function woff2Only(): Plugin {
  return {
    name: "woff2-only",
    enforce: "pre",
    transform(code, id) {
      if (!/katex[^/]*\.css/.test(id)) return null;
      return code.replace(/,\s*url\([^)]*\.(?:woff|ttf)\)\s*format\("\w+"\)/g, "");
    },
  };
}

const PDF_LICENCES = ["cmaps/LICENSE", "standard_fonts/LICENSE_FOXIT", "standard_fonts/LICENSE_LIBERATION"];

/** The tables and fonts that PDF.js carries have licences of their own. */
function pdfLicences(): Plugin {
  return {
    name: "pdf-licences",
    apply: "build",
    async generateBundle() {
      const paths = PDF_LICENCES.map((name) => `node_modules/pdfjs-dist/${name}`);
      const texts = await Promise.all(paths.map((path) => this.fs.readFile(path, { encoding: "utf8" })));
      this.emitFile({ type: "asset", fileName: "licenses-pdf.txt", source: texts.join("\n\n") });
    },
  };
}

const server = "http://127.0.0.1:6006";

export default defineConfig({
  base: "./", // the page works under any path
  plugins: [woff2Only(), pdfLicences(), react()],
  server: { proxy: { "/api": server, "/v1": server } },
  build: {
    outDir: "../shuzhai/server/page",
    emptyOutDir: true,
    assetsInlineLimit: 0, // the server's policy allows no data: fonts
    chunkSizeWarningLimit: 1000,
    license: { fileName: "licenses.md" },
    rolldownOptions: {
      output: {
        codeSplitting: {
          // Libraries change seldom: kept apart, browsers keep them when the page changes.
          groups: [{ name: "react", test: /node_modules\/(react|react-dom|scheduler)\// }],
        },
      },
    },
  },
});
