// Pages of a PDF as pictures. The library is large: import this file when the first PDF comes.

import { getDocument, GlobalWorkerOptions } from "pdfjs-dist";
import workerUrl from "pdfjs-dist/build/pdf.worker.min.mjs?url";

export const MAX_PAGES = 20;
const LONG_SIDE = 1600; // pixels: fine print is legible, and models scale it down

export interface PdfPages {
  count: number; // in the file
  pages: AsyncGenerator<Blob>; // the first MAX_PAGES
}

/** Throws for what is no PDF, is damaged, or wants a password. */
export async function openPdf(file: Blob): Promise<PdfPages> {
  GlobalWorkerOptions.workerSrc = workerUrl;
  const task = getDocument({
    data: await file.arrayBuffer(),
    isEvalSupported: false,
    enableXfa: false,
    useWorkerFetch: false,
    useWasm: false, // the page's policy forbids it
    BinaryDataFactory: PdfTables,
  });
  const document = await task.promise;
  return { count: document.numPages, pages: render(document) };

  async function* render(pdf: typeof document): AsyncGenerator<Blob> {
    try {
      for (let number = 1; number <= Math.min(pdf.numPages, MAX_PAGES); number++) {
        const page = await pdf.getPage(number);
        const { width, height } = page.getViewport({ scale: 1 });
        const viewport = page.getViewport({ scale: LONG_SIDE / Math.max(width, height) });
        const canvas = window.document.createElement("canvas");
        canvas.width = Math.max(2, Math.round(viewport.width));
        canvas.height = Math.max(2, Math.round(viewport.height));
        await page.render({ canvas, viewport }).promise;
        yield await pngOf(canvas);
      }
    } finally {
      await task.destroy();
    }
  }
}

function pngOf(canvas: HTMLCanvasElement): Promise<Blob> {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no picture"))), "image/png");
  });
}

// Many Chinese PDFs name their characters by tables that are not in them, and fonts likewise.
const TABLES = import.meta.glob<string>(
  [
    "/node_modules/pdfjs-dist/cmaps/{Adobe-GB1,Adobe-CNS1,UniGB,UniCNS,GB,B5,ETen}*.bcmap",
    "/node_modules/pdfjs-dist/standard_fonts/*.{pfb,ttf}",
  ],
  { query: "?url", import: "default", eager: true },
);

/** Gives the library its tables from the files of this page. */
class PdfTables {
  async fetch({ filename }: { kind: string; filename: string }): Promise<Uint8Array> {
    const url = Object.entries(TABLES).find(([path]) => path.endsWith(`/${filename}`))?.[1];
    if (!url) throw new Error(`${filename} is not here`);
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${filename}: ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  }
}
