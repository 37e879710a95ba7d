// The one stream of the page: sections as they change, and the events of the trail.
// A browser comes back by itself where a connection breaks; where it was refused, this does after a pause.

const RETRY_MS = 5000;

export const listen = (handlers, onState) => {
  let run = null;
  const connect = () => {
    const source = new EventSource("events");
    source.addEventListener("hello", (message) => {
      const told = JSON.parse(message.data);
      if (run !== told.run) handlers.restarted();  // another life of the agent: its events begin anew
      else if (!told.resumes) handlers.restarted();
      run = told.run;
      onState("live");
    });
    for (const [name, handle] of Object.entries(handlers)) {
      if (name !== "restarted") source.addEventListener(name, (message) => handle(JSON.parse(message.data)));
    }
    source.addEventListener("error", () => {
      onState("lost");
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
    });
  };
  connect();
};
