import { useEffect, useState } from "react";

import { api } from "../../api/client";

/** The address of a picture: of a file that is here, or of one that the server keeps. null: not yet;
 * "": it cannot be had. */
export function usePictureUrl(id: string | null, file: Blob | null = null): string | null {
  const [url, setUrl] = useState<string | null>(null);
  useEffect(() => {
    if (file) {
      const made = URL.createObjectURL(file);
      setUrl(made);
      return () => URL.revokeObjectURL(made);
    }
    let isWanted = true;
    if (id) {
      api.pictureUrl(id).catch(() => "").then((fetched) => { if (isWanted) setUrl(fetched); });
    }
    return () => { isWanted = false; };
  }, [id, file]);
  return url;
}
