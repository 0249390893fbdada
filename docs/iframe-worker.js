// Search from the disk: browsers start no worker on file://, so the theme's runs in a frame of its own.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.body.appendChild(document.createElement("iframe"));
      frame.hidden = true;
      const inside = frame.contentWindow;
      inside.document.open();
      inside.document.write("<body>");
      inside.document.close();
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      script.src = url;
      const started = new Promise((resolve) => (script.onload = resolve));
      inside.document.body.append(script);
      this.postMessage = (data) => started.then(() => inside.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
