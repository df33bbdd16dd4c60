// The serial console: bytes of a WebSocket of the API, in a terminal.
"use strict";

(() => {
  const place = document.getElementById("terminal");
  const link = document.getElementById("link");
  const again = document.getElementById("again");

  // The terminal writes style elements; the page's policy lets those pass that carry its nonce.
  const nonce = document.querySelector("meta[name=style-nonce]").content;
  const create = document.createElement.bind(document);
  document.createElement = (name, options) => {
    const made = create(name, options);
    if (String(name).toLowerCase() === "style") made.nonce = nonce;
    return made;
  };

  const terminal = new Terminal({
    cursorBlink: true,
    convertEol: false,
    fontFamily: "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace",
    fontSize: 14,
    scrollback: 5000,
    screenReaderMode: false,
    theme: { background: "#0f1419", foreground: "#e6e6e6", cursor: "#8ab4ff" },
  });
  const fit = new FitAddon.FitAddon();
  terminal.loadAddon(fit);
  terminal.open(place);
  const size = () => {
    fit.fit();
    document.getElementById("size").textContent =
      `A serial line knows no window size: stty cols ${terminal.cols} rows ${terminal.rows}`;
  };
  size();
  new ResizeObserver(size).observe(place);
  terminal.attachCustomKeyEventHandler((event) => !(event.key === "Tab" && event.shiftKey));

  let socket = null;
  const say = (mood, text) => {
    link.className = `state ${mood}`;
    link.lastElementChild.textContent = text;
    again.hidden = mood !== "bad";
  };

  function connect() {
    say("busy", "connecting");
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    socket = new WebSocket(`${scheme}://${location.host}/api/v1/vms/${encodeURIComponent(place.dataset.vm)}/console`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { say("good", "connected"); terminal.focus(); };
    socket.onmessage = (event) => terminal.write(new Uint8Array(event.data));
    socket.onclose = (event) => say("bad", event.reason || "the connection was closed");
  }

  const encoder = new TextEncoder();
  const send = (bytes) => { if (socket.readyState === WebSocket.OPEN) socket.send(bytes); };
  terminal.onData((text) => send(encoder.encode(text)));
  terminal.onBinary((text) => send(Uint8Array.from(text, (char) => char.charCodeAt(0))));
  again.addEventListener("click", connect);
  connect();
})();
