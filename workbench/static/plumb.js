// What the pages' HTML asks for with data attributes: moving about, scores saved at a click, pairs, undo, keys.
// The address holds the state. `go` changes it and has Gradio render what belongs to it.
(function () {
  "use strict";

  // Scores that the server has not confirmed, across reloads; by data folder, since ids mean nothing elsewhere.
  const KEPT = "plumb-unsaved-" + (window.plumbStore || "");
  let typing = null;

  // --- moving about ---

  function press(id) {
    const element = document.getElementById(id);
    const button = element && (element.matches("button") ? element : element.querySelector("button"));
    if (button) button.click();
  }

  function go(search, replace) {
    const target = search === "?" ? window.location.pathname : search;
    if (replace) history.replaceState(null, "", target);
    else history.pushState(null, "", target);
    press("pb-refresh");
  }

  // Called at every change of a filter's field, also when Gradio itself sets them to what the address says.
  function filter(values, delay) {
    const names = ["q", "state", "source", "split"];
    clearTimeout(typing);
    typing = setTimeout(() => {
      const now = new URLSearchParams(window.location.search);
      const query = new URLSearchParams();
      names.forEach((name, index) => values[index] && query.set(name, values[index].trim()));
      if (names.some((name) => (now.get(name) || "") !== (query.get(name) || ""))) go("?" + query.toString(), true);
    }, delay);
  }

  // After a view is rendered: the address names the sample that is pinned, the list shows it.
  function shown() {
    requestAnimationFrame(() => {
      const counts = document.querySelector("[data-counts]");
      if (counts) showCounts(JSON.parse(counts.dataset.counts));
      const pinned = document.querySelector(".pb-sample");
      if (pinned) {
        const query = new URLSearchParams(window.location.search);
        if (query.get("sample") !== pinned.dataset.sample) {
          query.set("sample", pinned.dataset.sample);
          history.replaceState(null, "", "?" + query.toString());
        }
        sendKept();
      }
      const current = document.querySelector(".pb-list [aria-current]");
      const list = current && current.closest(".pb-list");
      if (list) {
        const top = current.offsetTop - list.offsetTop;
        if (top < list.scrollTop || top + current.offsetHeight > list.scrollTop + list.clientHeight)
          list.scrollTop = top - list.clientHeight / 2;
      }
    });
  }

  window.addEventListener("popstate", () => press("pb-restore"));

  // --- talking to the server ---

  class Refused extends Error {}

  async function post(path, body) {
    let answer;
    try {
      answer = await fetch(path, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body || {}),
        signal: AbortSignal.timeout(20000),
      });
    } catch (error) {
      throw new Error("the server does not answer");
    }
    const told = await answer.json().catch(() => ({}));
    if (answer.status === 401 || answer.status === 403) throw new Error("log in again: reload the page");
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

  // --- scores: shown at once, sent one after the other, kept until the server has confirmed ---

  let memory = {}; // serves where the browser refuses to store; then only a reload in a network failure loses

  function kept() {
    try {
      return JSON.parse(localStorage.getItem(KEPT)) || memory;
    } catch (error) {
      return memory;
    }
  }

  function keep(change) {
    const all = { ...kept() };
    change(all);
    memory = all;
    try {
      localStorage.setItem(KEPT, JSON.stringify(all));
    } catch (error) {
      console.warn("Plumb: this browser stores nothing for the page", error);
    }
  }

  let sending = null;
  let retry = null;

  // One run at a time; whoever asks meanwhile waits for it.
  function sendKept() {
    sending = sending || sendAll().finally(() => (sending = null));
    return sending;
  }

  async function sendAll() {
    clearTimeout(retry);
    try {
      for (let all = kept(), keys = Object.keys(all); keys.length; all = kept(), keys = Object.keys(all)) {
        const key = keys[0];
        const [candidate, metric] = key.split(":");
        const value = all[key];
        say("Saving…", "busy");
        mark(candidate, metric, value, "busy");
        try {
          await post("/api/scores", { candidate: Number(candidate), metric: metric, value: value });
          // Pressed again while this was on its way: the newer value stays and is sent next.
          keep((now) => now[key] === value && delete now[key]);
          mark(candidate, metric, value, "");
          say("Saved", "good");
        } catch (error) {
          if (!(error instanceof Refused)) throw error;
          keep((now) => delete now[key]);
          press("pb-refresh"); // shows what is stored
          say("Not saved: " + error.message, "bad");
        }
      }
    } catch (error) {
      say("Not saved yet: " + error.message + ". Plumb keeps the scores here and tries again.", "bad");
      retry = setTimeout(sendKept, 3000);
    }
  }

  function mark(candidate, metric, value, state) {
    const card = document.querySelector('[data-candidate="' + candidate + '"]');
    if (!card) return;
    card.querySelectorAll('button[data-metric="' + metric + '"]').forEach((button) => {
      button.setAttribute("aria-pressed", String(value !== null && Number(button.dataset.value) === value));
      const set = button.closest("fieldset");
      set.classList.toggle("busy", state === "busy");
    });
  }

  function score(button) {
    const candidate = button.closest("[data-candidate]").dataset.candidate;
    const value = button.getAttribute("aria-pressed") === "true" ? null : Number(button.dataset.value);
    mark(candidate, button.dataset.metric, value, "busy");
    keep((all) => (all[candidate + ":" + button.dataset.metric] = value));
    sendKept();
  }

  window.addEventListener("beforeunload", (event) => {
    if (Object.keys(kept()).length && !navigator.onLine) event.preventDefault();
  });

  // --- pairs ---

  async function pick(button) {
    const sample = button.closest(".pb-sample");
    const role = button.dataset.pick;
    const on = button.getAttribute("aria-pressed") !== "true";
    const card = button.closest("[data-candidate]");
    sample.querySelectorAll('[data-pick="' + role + '"]').forEach((other) => other.setAttribute("aria-pressed", "false"));
    if (on) card.querySelectorAll("[data-pick]").forEach((other) => other.setAttribute("aria-pressed", "false"));
    button.setAttribute("aria-pressed", String(on));
    const picked = {};
    sample.querySelectorAll('[data-pick][aria-pressed="true"]').forEach((other) => {
      picked[other.dataset.pick] = Number(other.closest("[data-candidate]").dataset.candidate);
    });
    if (picked.chosen === undefined || picked.rejected === undefined) {
      if (on) say(role === "chosen" ? "Now press Rejected on a worse answer." : "Now press Chosen on a better answer.");
      return;
    }
    say("Saving the pair…", "busy");
    try {
      const told = await post("/api/pairs", picked);
      press("pb-refresh");
      say("Pair saved.", "good", ["/pairs?sample=" + told.sample, "See it on the Pairs page"]);
    } catch (error) {
      button.setAttribute("aria-pressed", "false");
      say("Pair not saved: " + error.message, "bad");
    }
  }

  async function changePair(button) {
    const card = button.closest("[data-card]");
    const verb = button.dataset.verb;
    // Pressing what is set already takes the decision back.
    const undoing = button.getAttribute("aria-pressed") === "true";
    card.classList.add("busy");
    try {
      const told = await post("/api/pairs/" + button.dataset.pair + "/" + (undoing ? "propose" : verb));
      card.outerHTML = told.html;
      const again = document.querySelector('[data-card="' + told.pair + '"] [data-verb="' + verb + '"]');
      if (again) again.focus({ preventScroll: true });
      say("Saved", "good");
    } catch (error) {
      card.classList.remove("busy");
      say("Not saved: " + error.message, "bad");
    }
  }

  async function undo() {
    await sendKept(); // an undo must not overtake the score that it is meant for
    if (Object.keys(kept()).length) return say("Not undone: there are scores that are not saved yet.", "bad");
    try {
      const told = await post("/api/undo");
      press("pb-restore");
      const pinned = document.querySelector(".pb-sample");
      const elsewhere = pinned && told.sample !== null && String(told.sample) !== pinned.dataset.sample;
      say("Undone: " + told.undone + ".", "good", elsewhere ? ["/?sample=" + told.sample, "Show its sample"] : null);
    } catch (error) {
      say("Not undone: " + error.message, "bad");
    }
  }

  // --- clicks and keys ---

  document.addEventListener("click", (event) => {
    const target = event.target.closest("a[data-go], [data-metric], [data-pick], [data-verb], [data-undo]");
    if (!target) return;
    if (target.hasAttribute("data-go")) {
      if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return; // a new tab is wanted
      event.preventDefault();
      go(target.getAttribute("href"));
    } else if (target.hasAttribute("data-metric")) score(target);
    else if (target.hasAttribute("data-pick")) pick(target);
    else if (target.hasAttribute("data-verb")) changePair(target);
    else undo();
  });

  document.addEventListener("keydown", (event) => {
    if (event.metaKey || event.ctrlKey || event.altKey || event.shiftKey || event.defaultPrevented) return;
    if (event.target.closest("input, textarea, select, [contenteditable], [role=listbox], [role=slider]")) return;
    const step = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    const link = step && document.querySelector('[data-step="' + step + '"]');
    if (link) {
      event.preventDefault();
      go(link.getAttribute("href"));
    }
  });

  // Gradio gives all pages one title; the header knows which page this is.
  new MutationObserver((changes, observer) => {
    const current = document.querySelector(".pb-header nav [aria-current]");
    if (!current) return;
    observer.disconnect();
    setTimeout(() => (document.title = current.firstChild.textContent + " · Plumb"), 300);
  }).observe(document.documentElement, { childList: true, subtree: true });

  window.addEventListener("online", sendKept);
  window.plumb = { go, filter, shown, say, showCounts, refresh: () => press("pb-refresh"), restore: () => press("pb-restore") };
})();
