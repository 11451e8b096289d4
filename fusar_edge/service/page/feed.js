// Events of the service as they happen. The browser reconnects by itself and says which event it saw last; where the
// service has refused the stream, it does not: then we do.
const KINDS = [
  "scene.accepted",
  "scene.started",
  "tile.done",
  "scene.done",
  "scene.failed",
  "scene.retried",
  "scene.refused",
];
const AGAIN_MS = 5000;

export function startFeed(after, { heard, missed, state }) {
  let last = after;
  let source = null;
  const open = () => {
    source = new EventSource(`/v1/events?after=${last}`);
    source.onopen = () => state(true);
    source.onerror = () => {
      state(false);
      if (source.readyState === EventSource.CLOSED) setTimeout(open, AGAIN_MS);
    };
    source.addEventListener("gap", missed);
    for (const kind of KINDS) {
      source.addEventListener(kind, ({ data }) => {
        const event = JSON.parse(data);
        last = Math.max(last, event.id);
        heard(event);
      });
    }
  };
  open();
  return () => source.close();
}
