// The service's own JSON. A problem's `detail` is written for people: it is what they are shown.

export class Problem extends Error {
  constructor(status, detail, retryAfterS) {
    super(detail);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { Accept: "application/json", ...options.headers } });
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new Problem(0, "the service cannot be reached");
  }
  if (!answer.ok) throw await problemFrom(answer);
  return answer.status === 204 ? null : answer.json();
}

async function problemFrom(answer) {
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) document.dispatchEvent(new CustomEvent("token-wanted"));
  const detail = body.detail ?? `the service answered ${answer.status}`;
  return new Problem(answer.status, detail, Number(answer.headers.get("Retry-After")) || 0);
}

/** Sends a file; `progress` is called with the share sent. XMLHttpRequest, since fetch does not tell. */
export function send(file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/v1/scenes?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("Content-Type", "image/tiff");
    request.upload.onprogress = (event) => progress(event.loaded / event.total);
    request.onerror = () => reject(new Problem(0, "the connection broke"));
    request.onload = () => {
      let body = {};
      try {
        body = JSON.parse(request.responseText);
      } catch {
        /* a proxy's own error page */
      }
      if (request.status === 401) document.dispatchEvent(new CustomEvent("token-wanted"));
      if (request.status < 300) resolve({ known: request.status === 200, scene: body });
      else
        reject(
          new Problem(
            request.status,
            body.detail ?? `the service answered ${request.status}`,
            Number(request.getResponseHeader("Retry-After")) || 0,
          ),
        );
    };
    request.send(file);
  });
}
