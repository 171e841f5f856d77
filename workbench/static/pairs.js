// Pairs accepted, rejected and flipped at a click, or by keys; the list's filters.
(function (plumb) {
  "use strict";

  const { say, post } = plumb;

  async function changePair(button) {
    const card = button.closest("[data-card]");
    const verb = button.dataset.verb;
    // Pressing what is set already takes the decision back.
    const undoing = button.getAttribute("aria-pressed") === "true";
    card.classList.add("busy");
    try {
      const told = await post("/api/pairs/" + button.dataset.pair + "/" + (undoing ? "propose" : verb));
      const here = card.contains(document.activeElement); // else somebody has gone on by keys
      card.outerHTML = told.html;
      const again = document.querySelector('[data-card="' + told.pair + '"] [data-verb="' + verb + '"]');
      if (again && here) again.focus({ preventScroll: true });
      say("Saved", "good");
    } catch (error) {
      card.classList.remove("busy");
      say("Not saved: " + error.message, "bad");
    }
  }

  plumb.onClick("[data-verb]", changePair);

  // --- the filters: the address holds what is set ---

  const FIELDS = ["q", "origin", "user"];
  const finder = () => document.querySelector("[data-find-pairs]");
  let typing = null;

  function changed(delay, replace) {
    clearTimeout(typing);
    typing = setTimeout(() => {
      const form = finder();
      if (!form) return;
      const query = new URLSearchParams(window.location.search);
      const before = query.toString();
      FIELDS.forEach((name) => {
        const value = form.elements[name].value.trim();
        if (value) query.set(name, value);
        else query.delete(name);
      });
      if (query.toString() === before) return;
      ["after", "before", "sample"].forEach((name) => query.delete(name));
      plumb.go("?" + query.toString(), replace);
    }, delay);
  }

  function fillIn() {
    const form = finder();
    if (!form) return;
    const query = new URLSearchParams(window.location.search);
    FIELDS.forEach((name) => {
      if (form.elements[name] !== document.activeElement) form.elements[name].value = query.get(name) || "";
    });
  }

  document.addEventListener("input", (event) => event.target.matches("[data-find-pairs] input") && changed(250, true));
  document.addEventListener("change", (event) => event.target.matches("[data-find-pairs] select") && changed(0, false));
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-find-pairs]")) return;
    event.preventDefault();
    changed(0, false);
  });
  plumb.onShown(fillIn);

  // --- keys: A, R and F act on the pair that has the focus, arrows move between pairs ---

  const VERBS = { a: "accept", r: "reject", f: "flip" };
  const cards = () => [...document.querySelectorAll("[data-card]")];
  let last = null; // the card that had the focus, by its pair

  function cardHere() {
    const focused = document.activeElement && document.activeElement.closest("[data-card]");
    return focused || cards().find((one) => one.dataset.card === last) || cards()[0];
  }

  function stand(card) {
    last = card.dataset.card;
    card.querySelector("[data-verb]").focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("focusin", (event) => {
    const card = event.target.closest("[data-card]");
    if (card) last = card.dataset.card;
  });

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.repeat) return;
    if (document.querySelector(".pb-sample") || !cards().length) return;
    if (event.target.closest("input, textarea, select, [contenteditable], [role=listbox], [role=slider]")) return;
    const all = cards();
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const verb = VERBS[event.key];
    if (step) {
      const known = last !== null || (document.activeElement && document.activeElement.closest("[data-card]"));
      const place = known ? all.indexOf(cardHere()) + step : 0;
      stand(all[Math.min(Math.max(place, 0), all.length - 1)]);
    } else if (verb) {
      const button = cardHere().querySelector('[data-verb="' + verb + '"]');
      if (button) changePair(button);
    } else if (event.key === "u") plumb.undo();
    else return;
    event.preventDefault();
  });
})(window.plumb);
