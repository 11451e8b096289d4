// A token is given once; the service keeps it as a cookie that no script can read.
import { ask } from "./api.js";

export function askToken(dialog, given) {
  if (dialog.open) return;
  const [field, problemLine] = [dialog.querySelector("input"), dialog.querySelector(".problem")];
  dialog.showModal();
  dialog.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    const body = JSON.stringify({ token: field.value.trim() });
    try {
      await ask("/v1/session", { method: "POST", body, headers: { "Content-Type": "application/json" } });
      field.value = problemLine.textContent = "";
      dialog.close();
      given();
    } catch (problem) {
      problemLine.textContent = problem.message;
    }
  };
}
