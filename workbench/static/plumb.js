// The core of the pages' scripts: moving about, talking to the server, the status line. Other files of this folder add
// one concern each to `window.plumb`.
// The address holds the state. `go` changes it and has Gradio render what belongs to it.
(function () {
  "use strict";

  // Kept in the browser across reloads; by data folder, since ids mean nothing elsewhere.
  class Shelf {
    constructor(name) {
      this.key = name + "-" + (window.plumbStore || "");
      this.memory = {}; // serves where the browser refuses to store; then only a reload loses
    }
    all() {
      try {
        return JSON.parse(localStorage.getItem(this.key)) || this.memory;
      } catch (error) {
        return this.memory;
      }
    }
    change(change) {
      const all = { ...this.all() };
      change(all);
      this.memory = all;
      try {
        localStorage.setItem(this.key, JSON.stringify(all));
      } catch (error) {
        console.warn("Plumb: this browser stores nothing for the page", error);
      }
    }
  }

  // --- moving about ---

  function press(id) {
    const element = document.getElementById(id);
    const button = element && (element.matches("button") ? element : element.querySelector("button"));
    if (button) button.click();
  }

  function go(search, replace) {
    // With the path: Gradio's <base> would make the start page of a bare query.
    const target = search.startsWith("?") ? window.location.pathname + (search === "?" ? "" : search) : search;
    if (replace) history.replaceState(null, "", target);
    else history.pushState(null, "", target);
    press("pb-refresh");
  }

  const pinnedSample = () => (document.querySelector(".pb-sample") || { dataset: {} }).dataset.sample;

  const afterwards = []; // what other files do when a view has been drawn, with the pinned sample or null
  let begun = false; // a view has been drawn

  // After a view is rendered: the address names the sample that is pinned, the list shows it.
  function shown() {
    requestAnimationFrame(() => {
      begun = true;
      const counts = document.querySelector("[data-counts]");
      if (counts) showCounts(JSON.parse(counts.dataset.counts));
      const pinned = document.querySelector(".pb-sample");
      if (pinned) {
        const query = new URLSearchParams(window.location.search);
        // Only the view of this very address: one that comes while a newer is on its way must not turn it back.
        const asked = document.querySelector("[data-asked]");
        const current = !asked || asked.dataset.asked === window.location.search;
        if (current && query.get("sample") !== pinned.dataset.sample) {
          query.set("sample", pinned.dataset.sample);
          history.replaceState(null, "", "?" + query.toString());
        }
      }
      afterwards.forEach((act) => act(pinned));
      const current = document.querySelector(".pb-list [aria-current]");
      const list = current && current.closest(".pb-list");
      if (list) {
        const top = current.offsetTop - list.offsetTop;
        if (top < list.scrollTop || top + current.offsetHeight > list.scrollTop + list.clientHeight)
          list.scrollTop = top - list.clientHeight / 2;
      }
    });
  }

  // Draws the view anew, but not under the hands of somebody who writes: once the field is left.
  function refreshGently() {
    const place = document.activeElement && document.activeElement.closest(".pb-writing");
    if (!place) return press("pb-refresh");
    place.addEventListener("focusout", function left(event) {
      if (place.contains(event.relatedTarget)) return;
      place.removeEventListener("focusout", left);
      setTimeout(() => place.isConnected && press("pb-refresh"), 300);
    });
  }

  window.addEventListener("popstate", () => press("pb-restore"));

  // --- talking to the server ---

  class Refused extends Error {}

  // Answers what the server said. Throws Refused where it will never take this, another Error where it may later.
  async function post(path, body, more) {
    const { milliseconds = 20000, key = "" } = more || {};
    const headers = { "content-type": "application/json" };
    if (key) headers["x-plumb-key"] = key;
    let answer;
    try {
      answer = await fetch(path, {
        method: "POST",
        headers: headers,
        body: JSON.stringify(body || {}),
        signal: AbortSignal.timeout(milliseconds),
      });
    } catch (error) {
      throw new Error("the server does not answer");
    }
    const told = await answer.json().catch(() => ({}));
    if (answer.status === 401) throw new Error("log in again: reload the page");
    if ([408, 429, 503].includes(answer.status) || (answer.status >= 500 && !told.error))
      throw new Error(told.error || "the server failed (" + answer.status + ")");
    if (!answer.ok) throw new Refused(told.error || "refused (" + answer.status + ")");
    if (told.counts) showCounts(told.counts);
    return told;
  }

  function showCounts(counts) {
    document.querySelectorAll("[data-count]").forEach((element) => {
      const number = counts[element.dataset.count];
      if (number === undefined) return;
      const inHeader = element.closest(".pb-header");
      const unit = inHeader && element.dataset.count === "jobs" && number ? " open" : "";
      element.textContent = number || !inHeader ? number.toLocaleString("en") + unit : "";
    });
  }

  // One status line for the whole page, read out by screen readers.
  function say(text, kind, link) {
    let line = document.getElementById("pb-status");
    if (!line) {
      line = document.createElement("div");
      line.id = "pb-status";
      line.setAttribute("role", "status");
      line.setAttribute("aria-live", "polite");
      document.body.appendChild(line);
    }
    line.className = kind || "";
    line.textContent = text;
    if (link) {
      const anchor = document.createElement("a");
      anchor.href = link[0];
      anchor.textContent = link[1];
      line.append(" ", anchor);
    }
    clearTimeout(line.timer);
    if (kind === "good") line.timer = setTimeout(() => (line.className += " past"), 4000);
  }

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    Object.entries(attributes || {}).forEach(([name, value]) => made.setAttribute(name, value));
    made.append(...children);
    return made;
  }

  // --- clicks ---

  // What a click on an element with this attribute does; other files add theirs.
  const clicks = [];
  const onClick = (selector, act) => clicks.push([selector, act]);

  onClick("a[data-go]", (target, event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return; // a new tab is wanted
    event.preventDefault();
    go(target.getAttribute("href"));
  });

  document.addEventListener("click", (event) => {
    for (const [selector, act] of clicks) {
      const target = event.target.closest(selector);
      if (target) return act(target, event);
    }
  });

  // Gradio gives all pages one title; the header knows which page this is.
  new MutationObserver((changes, observer) => {
    const current = document.querySelector(".pb-header nav [aria-current]");
    if (!current) return;
    observer.disconnect();
    setTimeout(() => (document.title = current.firstChild.textContent + " · Plumb"), 300);
  }).observe(document.documentElement, { childList: true, subtree: true });

  const refresh = () => press("pb-refresh");
  const restore = () => press("pb-restore");
  const onShown = (act) => {
    afterwards.push(act);
    if (begun) act(document.querySelector(".pb-sample")); // the first view may be there before all scripts are
  };
  window.plumb = { Shelf, Refused, go, press, shown, onShown, onClick, pinnedSample, refreshGently, refresh, restore };
  Object.assign(window.plumb, { post, say, showCounts, element });
  if (document.querySelector(".pb-sample")) shown();
})();
