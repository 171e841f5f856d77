// What a person changes is shown at once, kept in this browser, and sent in order, each change once: it carries a key
// by which the server knows it again. Nothing lives in the page's memory alone, since Gradio reloads it.
(function (plumb) {
  "use strict";

  // One entry a change, so that two tabs never write over each other's; by data folder, since ids mean nothing
  // elsewhere. Names sort by time.
  const PREFIX = "plumb-outbox-" + (window.plumbStore || "") + ":";
  const memory = new Map(); // serves where the browser refuses to store; then only a reload loses
  const answers = new Map(); // key → what to do with the server's word, for changes of this page
  let flushing = null;
  let retry = null;
  let last = 0;

  // Who is signed in: what another person left in this browser waits for that person.
  function user() {
    const sample = document.querySelector(".pb-sample[data-user]");
    return sample ? sample.dataset.user : (document.querySelector(".pb-user") || { textContent: "" }).textContent.trim();
  }

  function stored() {
    try {
      const names = Array.from({ length: localStorage.length }, (_, place) => localStorage.key(place));
      return names.filter((name) => name.startsWith(PREFIX)).map((name) => [name, localStorage.getItem(name)]);
    } catch (error) {
      return []; // a browser that gives no storage to pages
    }
  }

  function waiting() {
    const all = new Map([...stored(), ...memory].filter(([, text]) => text));
    const read = ([name, text]) => ({ ...JSON.parse(text), name: name });
    return [...all].sort(([one], [other]) => (one < other ? -1 : 1)).map(read).filter((change) => change.user === user());
  }

  function newKey() {
    const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is missing on plain http
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  // Keeps a change and sends it when its turn comes. The promise is of the server's answer; it is rejected where the
  // change is refused, and stays open while nobody answers.
  function send(path, body, sample) {
    last = Math.max(Date.now(), last + 1);
    const change = { key: newKey(), path: path, body: body, user: user(), sample: sample === undefined ? null : String(sample) };
    const name = PREFIX + last + "-" + change.key;
    const answered = new Promise((resolve, reject) => answers.set(change.key, { resolve, reject }));
    try {
      localStorage.setItem(name, JSON.stringify(change));
    } catch (error) {
      memory.set(name, JSON.stringify(change));
      console.warn("Plumb: this browser stores nothing for the page", error);
    }
    flush();
    return answered;
  }

  // One run at a time, in one tab at a time; whoever asks meanwhile waits for it.
  function flush() {
    const run = () => (navigator.locks ? navigator.locks.request(PREFIX, sendAll) : sendAll());
    flushing = flushing || Promise.resolve(run()).finally(() => (flushing = null));
    return flushing;
  }

  async function sendAll() {
    clearTimeout(retry);
    try {
      for (let change = waiting()[0]; change; change = waiting()[0]) {
        plumb.say("Saving…", "busy");
        const word = answers.get(change.key) || { resolve: plumb.refreshGently, reject: () => {} };
        try {
          const told = await plumb.post(change.path, change.body, { key: change.key });
          done(change);
          if (!waiting().length) plumb.say("Saved", "good");
          word.resolve(told);
        } catch (error) {
          if (!(error instanceof plumb.Refused)) throw error;
          done(change);
          plumb.say("Not saved: " + error.message, "bad");
          plumb.refreshGently(); // shows what is stored
          word.reject(error);
        }
      }
    } catch (error) {
      const number = waiting().length;
      const what = number === 1 ? "1 change" : number + " changes";
      plumb.say("Not saved yet: " + error.message + ". Plumb keeps " + what + " here and tries again.", "bad");
      retry = setTimeout(flush, 3000);
    }
  }

  function done(change) {
    answers.delete(change.key);
    if (!memory.delete(change.name)) localStorage.removeItem(change.name);
  }

  window.addEventListener("beforeunload", (event) => {
    if (waiting().length && !navigator.onLine) event.preventDefault();
  });
  window.addEventListener("online", flush);
  plumb.onShown(() => waiting().length && flush());
  Object.assign(plumb, { send, flush, waiting });
})(window.plumb);
