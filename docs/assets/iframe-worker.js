// The search of the site runs in a worker, which browsers do not start for pages that are opened from disk. There this stands in
// for one: a hidden frame, in which the worker's script runs with the few calls that it makes.
(() => {
  if (location.protocol !== "file:") return;

  function importScripts(...urls) {
    return urls.reduce(
      (before, url) =>
        before.then(
          () =>
            new Promise((loaded) => {
              const script = document.createElement("script");
              script.src = url;
              script.onload = loaded;
              document.body.appendChild(script);
            }),
        ),
      Promise.resolve(),
    );
  }

  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inside = this.frame.contentWindow.document;
      inside.open();
      inside.write("<!doctype html><html><body></body></html>");
      inside.close();
      const calls = inside.createElement("script");
      calls.textContent = `postMessage = (message) => parent.postMessage(message, "*"); importScripts = ${importScripts};`;
      const script = inside.createElement("script");
      script.src = url;
      inside.body.append(calls, script);
      this.waiting = [];
      script.onload = () => {
        const waiting = this.waiting;
        this.waiting = null;
        for (const message of waiting) this.postMessage(message);
      };
      this.heard = (event) => {
        if (event.source !== this.frame.contentWindow) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        if (this.onmessage) this.onmessage(message);
      };
      window.addEventListener("message", this.heard);
    }

    postMessage(message) {
      if (this.waiting) this.waiting.push(message);
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: message }));
    }

    terminate() {
      window.removeEventListener("message", this.heard);
      this.frame.remove();
    }
  };
})();
