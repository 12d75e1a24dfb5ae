import { mergeConfig } from "vitest/config";
import pageConfig from "./vite.config";

export default mergeConfig(pageConfig, {
  test: {
    environment: "jsdom",
    include: ["src/**/*.test.{ts,tsx}"],
    restoreMocks: true,
  },
});
