// What the pages' HTML asks for with data attributes: moving about, scores saved at a click, a judge asked at once,
// checklists edited in place, pairs, undo, keys.
// The address holds the state. `go` changes it and has Gradio render what belongs to it.
(function () {
  "use strict";

  let typing = null;

  // What the server has not confirmed, across reloads; by data folder, since ids mean nothing elsewhere.
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
  const unsaved = new Shelf("plumb-unsaved"); // "candidate:metric" → score
  const drafts = new Shelf("plumb-drafts"); // sample → { version, items } of a checklist that is being edited

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
        openDraft();
        showAsked();
        if (askWhenShown === pinned.dataset.sample) askHere();
        askWhenShown = null;
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

  async function post(path, body, milliseconds) {
    let answer;
    try {
      answer = await fetch(path, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body || {}),
        signal: AbortSignal.timeout(milliseconds || 20000),
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
      for (let all = unsaved.all(), keys = Object.keys(all); keys.length; all = unsaved.all(), keys = Object.keys(all)) {
        const key = keys[0];
        const [candidate, metric] = key.split(":");
        const value = all[key];
        say("Saving…", "busy");
        mark(candidate, metric, value, "busy");
        try {
          await post("/api/scores", { candidate: Number(candidate), metric: metric, value: value });
          // Pressed again while this was on its way: the newer value stays and is sent next.
          unsaved.change((now) => now[key] === value && delete now[key]);
          mark(candidate, metric, value, "");
          say("Saved", "good");
        } catch (error) {
          if (!(error instanceof Refused)) throw error;
          unsaved.change((now) => delete now[key]);
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
    unsaved.change((all) => (all[candidate + ":" + button.dataset.metric] = value));
    sendKept();
  }

  window.addEventListener("beforeunload", (event) => {
    if (Object.keys(unsaved.all()).length && !navigator.onLine) event.preventDefault();
  });

  // --- a judge, asked at once ---

  // A browser opens six connections to a host, and the page needs some of them while judges think.
  const MOST_ASKED = 3;
  const asked = new Map(); // sample → the judge's name; under way, or waiting for its turn
  const turns = [];
  let underWay = 0;
  let askWhenShown = null; // the sample whose view is on its way

  const pinnedSample = () => (document.querySelector(".pb-sample") || { dataset: {} }).dataset.sample;

  // The key J: the sample that the address names, also where its view is not drawn yet.
  function askHere() {
    const wanted = new URLSearchParams(window.location.search).get("sample");
    if (wanted && wanted !== pinnedSample()) return void (askWhenShown = wanted);
    const button = document.querySelector(".pb-bar [data-judge]");
    if (button) ask(button);
  }

  function ask(button) {
    const { judge: sample, name, remedy, remedyText } = button.dataset;
    if (asked.has(sample)) return say("Asking " + name + " about this sample already …", "busy");
    if (remedy) return say(button.title, "bad", [remedy, remedyText]);
    asked.set(sample, name);
    showAsked();
    turns.push(() => judgeSample(sample, name));
    nextTurn();
  }

  function nextTurn() {
    while (underWay < MOST_ASKED && turns.length) {
      underWay += 1;
      turns.shift()().finally(() => {
        underWay -= 1;
        nextTurn();
      });
    }
  }

  async function judgeSample(sample, name) {
    say("Asking " + name + " …" + (asked.size > 1 ? " (" + asked.size + " samples)" : ""), "busy");
    let told = null;
    let problem = null;
    try {
      told = await post("/api/judge", { sample: Number(sample) }, 200000);
    } catch (error) {
      problem = error;
    }
    asked.delete(sample);
    showAsked();
    const here = pinnedSample() === sample;
    const prefix = here ? "" : "Sample " + sample + ": ";
    const link = here ? null : ["/?sample=" + sample, "Show it"];
    if (problem instanceof Refused) {
      const text = (problem.message.startsWith("Not ") ? "" : "Not judged: ") + problem.message;
      say(prefix + text, "bad", link || ["/judges", "See the Judges page"]);
    } else if (problem) say(prefix + "No word of the judgement: " + problem.message + ". It may still come.", "bad", link);
    else if (told.state === "ok") say(prefix + judgedText(told), "good", link);
    else say(prefix + told.state[0].toUpperCase() + told.state.slice(1) + ": " + told.reason, "bad", link);
    if (here) refreshGently();
  }

  function judgedText(told) {
    if (told.already) return "Judged by " + told.rater[0] + " before; nothing was paid.";
    const cost = told.cost >= 0.0001 ? ": $" + told.cost.toFixed(4) : told.cost ? ": under $0.0001" : "";
    return "Judged by " + told.rater[0] + cost + ".";
  }

  function showAsked() {
    document.querySelectorAll("[data-judge]").forEach((button) => {
      const label = button.querySelector(".pb-ask");
      const name = asked.get(button.dataset.judge);
      label.dataset.text = label.dataset.text || label.textContent;
      label.textContent = name === undefined ? label.dataset.text : "Asking " + name + " …";
      button.classList.toggle("busy", name !== undefined);
      button.setAttribute("aria-busy", String(name !== undefined));
      if (name !== undefined || button.dataset.remedy) button.setAttribute("aria-disabled", "true");
      else button.removeAttribute("aria-disabled");
    });
  }

  // Draws the view anew, but not under the hands of somebody who writes a checklist.
  function refreshGently() {
    const section = document.activeElement && document.activeElement.closest(".pb-checklist.editing");
    if (!section) return press("pb-refresh");
    section.addEventListener("focusout", function left(event) {
      if (section.contains(event.relatedTarget)) return;
      section.removeEventListener("focusout", left);
      setTimeout(() => section.isConnected && press("pb-refresh"), 300);
    });
  }

  window.addEventListener("beforeunload", (event) => {
    if (turns.length) event.preventDefault(); // what is under way is stored by the server; the rest would be lost
  });

  // --- checklists: edited in place, each change kept here until it is saved ---

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    Object.entries(attributes || {}).forEach(([name, value]) => made.setAttribute(name, value));
    made.append(...children);
    return made;
  }

  function openDraft() {
    const section = document.querySelector(".pb-checklist");
    const draft = section && drafts.all()[section.dataset.checklist];
    if (!draft) return;
    openEditor(section, draft.items, draft.version);
    // A view that came while somebody clicked into a field: the hands find their place again.
    if (writing && writing.sample === section.dataset.checklist && document.activeElement === document.body) {
      const field = section.querySelectorAll(".pb-editor textarea")[writing.index];
      if (!field) return;
      field.focus({ preventScroll: true });
      field.setSelectionRange(writing.caret, writing.caret);
    }
  }

  let writing = null; // the checklist's field that somebody is in: {sample, index, caret}

  ["focusin", "keyup", "click", "input"].forEach((kind) =>
    document.addEventListener(kind, (event) => {
      const section = event.target.closest(".pb-checklist.editing");
      const fields = section ? [...section.querySelectorAll(".pb-editor textarea")] : [];
      const index = fields.indexOf(event.target);
      writing = index < 0 ? null : { sample: section.dataset.checklist, index: index, caret: event.target.selectionEnd };
    })
  );

  function openEditor(section, items, version) {
    const stale = String(version) !== section.dataset.version;
    const old = section.querySelector(".pb-editor");
    if (old) old.remove();
    const list = element("ol", { class: "pb-edit-items" });
    const add = element("button", { type: "button", class: "pb-button small", "data-add-item": "" }, "Add an item");
    const save = element("button", { type: "submit", class: "pb-button small primary" }, "Save");
    const drop = element("button", { type: "button", class: "pb-button small", "data-drop-draft": "" }, "Discard");
    const note = element("p", { class: "pb-sub pb-edit-note" });
    const editor = element("form", { class: "pb-editor", "aria-label": "Edit the checklist" });
    editor.append(element("h3", {}, "Checklist"), list, add, note, element("div", { class: "pb-edit-acts" }, save, drop));
    if (stale) note.textContent = "Another version has been saved since you began; saving makes yours the newest.";
    section.append(editor);
    section.classList.add("editing");
    items.forEach((item) => addItem(section, item));
    numberItems(section);
  }

  function addItem(section, item, after) {
    const field = element("textarea", { rows: "2", maxlength: section.dataset.longest, placeholder: "A criterion" });
    field.value = item.text;
    const essential = element("input", { type: "checkbox" });
    essential.checked = item.essential;
    const remove = element("button", { type: "button", class: "pb-plain-button", "data-remove-item": "" }, "Remove");
    const row = element("li", {}, field, element("div", {}, element("label", {}, essential, " essential"), remove));
    if (after) after.after(row);
    else section.querySelector(".pb-edit-items").append(row);
    return row;
  }

  function numberItems(section) {
    const items = section.querySelectorAll(".pb-edit-items li");
    items.forEach((row, index) => {
      row.querySelector("textarea").setAttribute("aria-label", "Item " + (index + 1));
      row.querySelector("[data-remove-item]").setAttribute("aria-label", "Remove item " + (index + 1));
    });
    section.querySelector("[data-add-item]").disabled = items.length >= Number(section.dataset.most);
  }

  function itemsOf(section) {
    return Array.from(section.querySelectorAll(".pb-edit-items li"), (row) => ({
      text: row.querySelector("textarea").value,
      essential: row.querySelector("input").checked,
    }));
  }

  function keepDraft(section) {
    const { checklist: sample, version, items: stored } = section.dataset;
    const items = itemsOf(section);
    const changed = JSON.stringify(items) !== JSON.stringify(JSON.parse(stored));
    drafts.change((all) => {
      const known = all[sample];
      if (changed) all[sample] = { version: known ? known.version : Number(version), items: items };
      else delete all[sample];
    });
    const note = section.querySelector(".pb-edit-note");
    note.textContent = changed ? "Not saved yet; this browser keeps it meanwhile." : "";
  }

  function editChecklist(target) {
    const section = target.closest(".pb-checklist");
    const row = target.closest(".pb-edit-items li");
    if (target.hasAttribute("data-edit-checklist")) {
      const items = JSON.parse(section.dataset.items);
      if (!items.length) items.push({ text: "", essential: true });
      openEditor(section, items, section.dataset.version);
      section.querySelector(".pb-editor textarea").focus();
    } else if (target.hasAttribute("data-drop-draft")) {
      drafts.change((all) => delete all[section.dataset.checklist]);
      closeEditor(section);
    } else {
      if (row) {
        const beside = row.nextElementSibling || row.previousElementSibling;
        row.remove();
        (beside ? beside.querySelector("textarea") : section.querySelector("[data-add-item]")).focus();
      } else addItem(section, { text: "", essential: false }).querySelector("textarea").focus();
      numberItems(section);
      keepDraft(section);
    }
  }

  function closeEditor(section) {
    section.querySelector(".pb-editor").remove();
    section.classList.remove("editing");
    const edit = section.querySelector("[data-edit-checklist]");
    if (edit) edit.focus({ preventScroll: true });
  }

  async function saveChecklist(section) {
    const sample = section.dataset.checklist;
    const items = itemsOf(section);
    const save = section.querySelector("[type=submit]");
    if (save.disabled) return;
    save.disabled = true;
    say("Saving…", "busy");
    try {
      const told = await post("/api/checklist", { sample: Number(sample), items: items });
      // Written on while this was on its way: that stays a draft, of the version that now holds.
      const more = section.isConnected && JSON.stringify(itemsOf(section)) !== JSON.stringify(items);
      drafts.change((all) => {
        if (more) all[sample] = { version: told.version, items: itemsOf(section) };
        else delete all[sample];
      });
      save.disabled = false;
      if (pinnedSample() === sample) more ? refreshGently() : press("pb-refresh");
      say("The checklist is saved as version " + told.version + ".", "good");
    } catch (error) {
      save.disabled = false;
      say("Not saved: " + error.message + (error instanceof Refused ? "" : ". Plumb keeps what you wrote here."), "bad");
    }
  }

  document.addEventListener("input", (event) => {
    const section = event.target.closest(".pb-checklist.editing");
    if (section) keepDraft(section);
  });

  document.addEventListener("submit", (event) => {
    if (!event.target.matches(".pb-editor")) return;
    event.preventDefault();
    saveChecklist(event.target.closest(".pb-checklist"));
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
    if (Object.keys(unsaved.all()).length) return say("Not undone: there are scores that are not saved yet.", "bad");
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

  const EDITS = "[data-edit-checklist], [data-add-item], [data-remove-item], [data-drop-draft]";
  const ACTS = "a[data-go], [data-metric], [data-pick], [data-verb], [data-undo], [data-judge], " + EDITS;

  document.addEventListener("click", (event) => {
    const target = event.target.closest(ACTS);
    if (!target) return;
    if (target.hasAttribute("data-go")) {
      if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return; // a new tab is wanted
      event.preventDefault();
      go(target.getAttribute("href"));
    } else if (target.hasAttribute("data-metric")) score(target);
    else if (target.hasAttribute("data-pick")) pick(target);
    else if (target.hasAttribute("data-verb")) changePair(target);
    else if (target.hasAttribute("data-judge")) ask(target);
    else if (target.matches(EDITS)) editChecklist(target);
    else undo();
  });

  document.addEventListener("keydown", (event) => {
    if (event.metaKey || event.ctrlKey || event.altKey || event.shiftKey || event.defaultPrevented) return;
    if (event.target.closest("input, textarea, select, [contenteditable], [role=listbox], [role=slider]")) return;
    if (event.key.toLowerCase() === "j" && !event.repeat) return askHere();
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
