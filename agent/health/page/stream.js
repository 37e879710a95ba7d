// The one stream of the page: sections as they change, and the events of the trail.
// A browser comes back by itself where a connection breaks. Where it was refused, or hangs, this does.

const RETRY_MS = 5000, LONGEST_SILENCE_MS = 40000;

export const listen = (handlers, onState) => {
  let run = null, source = null, silence = null;

  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(connect, LONGEST_SILENCE_MS);
  };

  const lost = () => {
    onState("lost");
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
  };

  const connect = () => {
    if (source) {
      source.close();
      onState("lost");
    }
    source = new EventSource("events");
    source.addEventListener("error", lost);
    source.addEventListener("still", heard);
    source.addEventListener("hello", (message) => {
      const told = JSON.parse(message.data);
      // Another life of the agent, or too long away: what is told of events begins anew.
      if (run !== told.run || !told.resumes) handlers.restarted();
      run = told.run;
      onState("live");
      heard();
    });
    for (const [name, handle] of Object.entries(handlers)) {
      if (name === "restarted") continue;
      source.addEventListener(name, (message) => {
        heard();
        handle(JSON.parse(message.data));
      });
    }
  };

  connect();
};
