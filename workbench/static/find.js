// The left side of the Samples page: filters, saved views, queues, acts on all that is selected, guidelines.
// The address holds what is set; the form is filled in from it after each view, and changes it.
(function (plumb) {
  "use strict";

  const FILTERS = ["q", "source", "split", "state", "rater", "metric", "low", "high", "gap", "images", "turns", "order"];
  const QUEUE = ["queue", "people", "apart", "percent", "seed"];
  const folds = new plumb.Shelf("plumb-folds"); // what is folded out: name → true or false
  const drafts = new plumb.Shelf("plumb-guidelines"); // { draft: { was, text } } while guidelines are being edited

  const one = (selector) => document.querySelector(selector);
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const address = () => new URLSearchParams(window.location.search);
  const search = (query) => "?" + query.toString();

  function kept(names) {
    const query = new URLSearchParams();
    names.forEach((name) => address().get(name) && query.set(name, address().get(name)));
    return query;
  }

  // --- the form and the address ---

  let typing = null;

  function changed(delay, replace) {
    clearTimeout(typing);
    typing = setTimeout(() => {
      const query = kept(QUEUE);
      const form = one("[data-find]");
      if (!form) return;
      FILTERS.forEach((name) => {
        const field = form.elements[name];
        if (field && field.value.trim() && field.validity.valid) query.set(name, field.value.trim());
      });
      if (FILTERS.some((name) => (address().get(name) || "") !== (query.get(name) || ""))) plumb.go(search(query), replace);
    }, delay);
  }

  document.addEventListener("input", (event) => {
    if (event.target.matches("[data-find] input")) changed(250, true);
  });

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-find] select")) changed(0, false);
    if (event.target.matches("[data-queue-form] [name=queue]")) showKind();
  });

  function showKind() {
    const chosen = one("[data-queue-form] [name=queue]:checked");
    all("[data-queue-form] [data-kind]").forEach((more) => {
      more.hidden = !chosen || more.dataset.kind !== chosen.value;
      more.querySelectorAll("input").forEach((field) => (field.disabled = more.hidden));
    });
  }

  function fillIn() {
    const query = address();
    const form = one("[data-find]");
    if (!form) return;
    FILTERS.forEach((name) => {
      const field = form.elements[name];
      if (field && field !== document.activeElement) field.value = query.get(name) || "";
    });
    const set = FILTERS.slice(1).filter((name) => query.get(name)).length;
    one('[data-set="filters"]').textContent = set || "";
    one('[data-set="queue"]').textContent = query.get("queue") ? "on" : "";
    const queue = query.get("queue");
    const radio = queue && one('[data-queue-form] [name=queue][value="' + CSS.escape(queue) + '"]');
    if (radio) {
      radio.checked = true;
      const more = radio.closest("form").querySelector('[data-kind="' + CSS.escape(queue) + '"]');
      more.querySelectorAll("input").forEach((field) => query.get(field.name) && (field.value = query.get(field.name)));
    }
    showKind();
  }

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.matches("[data-find], [data-queue-form], [data-save-view], [data-guide-form]")) event.preventDefault();
    if (form.matches("[data-find]")) changed(0, false);
    if (form.matches("[data-queue-form]")) {
      const query = kept(FILTERS);
      new FormData(form).forEach((value, name) => query.set(name, value));
      fold("queue", false);
      plumb.go(search(query));
    }
    if (form.matches("[data-save-view]")) saveView(form);
    if (form.matches("[data-guide-form]")) saveGuide(form);
  });

  // --- what is folded out, remembered in the browser ---

  function fold(panel, open) {
    all("[data-panel]").forEach((tab) => {
      const shown = tab.dataset.panel === panel && open;
      tab.setAttribute("aria-expanded", String(shown));
      const place = document.getElementById(tab.getAttribute("aria-controls"));
      if (place) place.hidden = !shown;
    });
    folds.change((known) => (known.panel = open ? panel : ""));
  }

  plumb.onClick("[data-panel]", (tab) => fold(tab.dataset.panel, tab.getAttribute("aria-expanded") !== "true"));

  document.addEventListener(
    "toggle",
    (event) => {
      const name = event.target.dataset && event.target.dataset.fold;
      if (name && event.target.isConnected) folds.change((known) => (known[name] = event.target.open));
    },
    true
  );

  function unfold() {
    const known = folds.all();
    all("details[data-fold]").forEach((place) => {
      const open = known[place.dataset.fold];
      if (open !== undefined && place.open !== open) place.open = open;
    });
    if (known.panel && !one('[data-panel][aria-expanded="true"]')) fold(known.panel, true);
  }

  // --- the list that is drawn already ---

  function drawn() {
    const list = one("#pb-list .pb-list[data-drawn]");
    if (!list) return "";
    return JSON.stringify({ ...JSON.parse(list.dataset.drawn), pinned: Number(plumb.pinnedSample()) || null });
  }

  function freshen(pinned) {
    all("[data-fresh] > li").forEach((line) => {
      const old = one('#pb-list [data-item="' + line.dataset.item + '"]');
      if (old) old.replaceWith(line.cloneNode(true));
    });
    all("#pb-list .pb-list [aria-current]").forEach((link) => link.removeAttribute("aria-current"));
    const here = pinned && one('#pb-list [data-item="' + pinned.dataset.sample + '"] a');
    if (here) here.setAttribute("aria-current", "true");
  }

  // --- saved views ---

  async function saveView(form) {
    const body = { name: form.elements.name.value, shared: form.elements.shared.checked, search: window.location.search };
    try {
      const told = await plumb.post("/api/views", body);
      one("#pf-views").innerHTML = told.html;
      plumb.say("The view “" + told.name + "” is saved.", "good");
    } catch (error) {
      plumb.say("Not saved: " + error.message, "bad");
    }
  }

  plumb.onClick("[data-drop-view]", async (button) => {
    try {
      const told = await plumb.post("/api/views/" + button.dataset.dropView + "/delete");
      one("#pf-views").innerHTML = told.html;
      plumb.say("The view is deleted; Undo takes it back.", "good");
    } catch (error) {
      plumb.say("Not deleted: " + error.message, "bad");
    }
  });

  // --- acts on all that is selected: a question with the count first ---

  let asked = null; // { act, search, count }
  let at = "/api/bulk"; // of the list that is acted on

  plumb.onClick("[data-bulk]", async (button) => {
    const box = one(".pf-ask");
    asked = { act: button.dataset.bulk, search: window.location.search };
    at = button.dataset.bulkAt || "/api/bulk";
    plumb.say("Counting …", "busy");
    try {
      const told = await plumb.post(at, asked, { milliseconds: 120000 });
      asked.count = told.count;
      const yes = plumb.element("button", { type: "button", class: "pb-button small primary", "data-bulk-yes": "" }, told.act);
      const no = plumb.element("button", { type: "button", class: "pb-button small", "data-bulk-no": "" }, "Cancel");
      box.replaceChildren(plumb.element("p", {}, told.question));
      if (told.note) box.append(plumb.element("p", { class: "pb-sub" }, told.note));
      box.append(plumb.element("div", { class: "pf-acts" }, yes, no));
      box.hidden = false;
      plumb.say("");
      yes.focus({ preventScroll: true });
    } catch (error) {
      plumb.say("Not possible: " + error.message, "bad");
    }
  });

  plumb.onClick("[data-bulk-no]", () => (one(".pf-ask").hidden = true));

  plumb.onClick("[data-bulk-yes]", async (button) => {
    button.disabled = true;
    plumb.say("At work …", "busy");
    try {
      const told = await plumb.post(at, asked, { milliseconds: 600000 });
      one(".pf-ask").hidden = true;
      tell(told);
      plumb.restore();
    } catch (error) {
      button.disabled = false;
      plumb.say("Not done: " + error.message, "bad");
    }
  });

  // What came of it stays on the page until the next act, with its undo.
  function tell(told) {
    plumb.say(told.text, "good", told.href ? [told.href, told.link] : null);
    const place = one("#pf-told");
    if (!place) return;
    const line = plumb.element("div", { class: "pb-notice good pf-done", role: "status" }, told.text + " ");
    if (told.href) line.append(plumb.element("a", { href: told.href }, told.link), " ");
    if (told.undo) line.append(plumb.element("button", { type: "button", class: "pb-button small", "data-undo": "" }, "Undo"));
    place.replaceChildren(line);
  }

  document.addEventListener("click", (event) => {
    if (event.target.closest("#pf-told [data-undo], [data-bulk], .pf-chip a, .pb-list a")) one("#pf-told").replaceChildren();
  });

  // --- the queue: its sample is held while it is open, and let go when the queue is left ---

  const HOLD_EVERY = 60000;
  let inQueue = false;

  const card = () => one(".pf-queue[data-queue]");

  function lookAtQueue() {
    const now = Boolean(card());
    if (inQueue && !now) plumb.post("/api/lease", { on: false }).catch(() => {});
    inQueue = now;
    document.body.classList.toggle("pf-queueing", now);
  }

  async function hold() {
    const sample = Number(plumb.pinnedSample());
    if (!card() || !sample) return;
    const told = await plumb.post("/api/lease", { sample: sample, on: true }).catch(() => null);
    const place = one(".pf-holders");
    if (!told || !place || String(sample) !== plumb.pinnedSample()) return;
    const names = told.others.join(", ");
    place.className = "pf-holders" + (told.held ? "" : " warn");
    place.textContent = !names ? "" : names + (told.held ? ": at this sample, too." : ": at this sample now; it is no longer held for you.");
  }

  setInterval(hold, HOLD_EVERY);
  window.addEventListener("pagehide", () => {
    if (inQueue) navigator.sendBeacon("/api/lease", new Blob(['{"on":false}'], { type: "application/json" }));
  });
  window.addEventListener("pageshow", (event) => event.persisted && hold());

  // --- guidelines ---

  const guide = () => one(".pf-guide");

  function openGuide(text, was) {
    const place = guide();
    if (!place || place.querySelector("form")) return;
    const field = plumb.element("textarea", { rows: "12", "aria-label": "Guidelines, in Markdown", maxlength: "50000", dir: "auto" });
    field.value = text;
    const save = plumb.element("button", { type: "submit", class: "pb-button small primary" }, "Save");
    const drop = plumb.element("button", { type: "button", class: "pb-button small", "data-guide": "drop" }, "Cancel");
    const form = plumb.element("form", { class: "pb-writing", "data-guide-form": "", "data-was": String(was) });
    form.append(field, plumb.element("div", { class: "pf-acts" }, save, drop));
    place.append(form);
    place.classList.add("editing");
    return field;
  }

  plumb.onClick("[data-guide]", (button) => {
    const place = guide();
    if (button.dataset.guide === "edit") {
      const field = openGuide(place.dataset.markdown, place.dataset.version);
      if (field) field.focus();
    } else {
      drafts.change((known) => delete known.draft);
      place.querySelector("form").remove();
      place.classList.remove("editing");
    }
  });

  document.addEventListener("input", (event) => {
    const form = event.target.closest("[data-guide-form]");
    if (form) drafts.change((known) => (known.draft = { was: Number(form.dataset.was), text: event.target.value }));
  });

  async function saveGuide(form) {
    const text = form.querySelector("textarea").value;
    try {
      const told = await plumb.post("/api/guidelines", { text: text, was: Number(form.dataset.was) });
      drafts.change((known) => delete known.draft);
      guide().outerHTML = told.html;
      plumb.say("The guidelines are saved.", "good");
    } catch (error) {
      plumb.say("Not saved: " + error.message + " What you wrote stays here.", "bad");
    }
  }

  // ---

  plumb.onShown((pinned) => {
    fillIn();
    unfold();
    freshen(pinned);
    lookAtQueue();
    const draft = drafts.all().draft;
    if (draft && guide()) openGuide(draft.text, draft.was);
  });
  plumb.drawn = drawn;
})(window.plumb);
