// Before the first paint: the theme that was chosen, so that the page does not flash.
{
  let theme = "system";
  try {
    theme = JSON.parse(localStorage.getItem("shuzhai.preferences") ?? "{}").theme ?? "system";
  } catch {
    // Nothing that can be read is remembered.
  }
  const isDark = theme === "dark" || (theme === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
}
