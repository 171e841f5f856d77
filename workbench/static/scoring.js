// Scores and pairs of the pinned sample: by mouse and by keys. Where one is: an answer and one of its metrics.
(function (plumb) {
  "use strict";

  const { say, onClick, onShown, pinnedSample } = plumb;
  const at = { sample: null, candidate: null, metric: null };

  const cards = () => [...document.querySelectorAll(".pb-sample .pb-card")];
  const setsOf = (card) => [...card.querySelectorAll("fieldset.pb-metric")];
  const inside = (selector) => document.activeElement && document.activeElement.closest(selector);

  // The answer and the metric that keys mean: those with the focus, else those that were last.
  function here() {
    const all = cards();
    const card = inside(".pb-card") || all.find((one) => one.dataset.candidate === at.candidate) || all[0];
    if (!card) return null;
    const sets = setsOf(card);
    return { all, card, sets, set: inside("fieldset.pb-metric") || sets.find((one) => one.dataset.set === at.metric) || sets[0] };
  }

  function stand(set, focus) {
    document.querySelectorAll(".pb-at").forEach((one) => one.classList.remove("pb-at"));
    if (!set) return;
    const card = set.closest(".pb-card");
    set.classList.add("pb-at");
    card.classList.add("pb-at");
    Object.assign(at, { sample: pinnedSample(), candidate: card.dataset.candidate, metric: set.dataset.set });
    if (!focus) return;
    const button = set.querySelector('[aria-pressed="true"]') || set.querySelector("button");
    button.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  function move(answers, metrics) {
    const found = here();
    if (!found) return;
    const { all, card, sets, set } = found;
    let place = sets.indexOf(set) + metrics;
    let row = all.indexOf(card) + answers;
    if (place >= sets.length && row < all.length - 1) [place, row] = [0, row + 1];
    if (place < 0 && row > 0) [place, row] = [sets.length - 1, row - 1];
    row = Math.min(Math.max(row, 0), all.length - 1);
    const there = setsOf(all[row]);
    stand(there[Math.min(Math.max(place, 0), there.length - 1)], true);
  }

  // --- scores ---

  function mark(candidate, metric, value, state) {
    const card = document.querySelector('.pb-card[data-candidate="' + candidate + '"]');
    if (!card) return;
    card.querySelectorAll('button[data-metric="' + metric + '"]').forEach((button) => {
      button.setAttribute("aria-pressed", String(value !== null && Number(button.dataset.value) === value));
      button.closest("fieldset").classList.toggle("busy", state === "busy");
    });
  }

  function score(set, value) {
    const candidate = Number(set.closest(".pb-card").dataset.candidate);
    const metric = set.dataset.set;
    mark(candidate, metric, value, "busy");
    plumb
      .send("/api/scores", { candidate: candidate, metric: metric, value: value }, pinnedSample())
      .then((told) => {
        const newer = plumb.waiting().some((one) => one.body.candidate === candidate && one.body.metric === metric);
        if (!newer) mark(candidate, metric, told.value, "");
        plumb.heard(told);
      })
      .catch(() => {});
  }

  onClick("button[data-metric]", (button) => {
    const set = button.closest("fieldset.pb-metric");
    stand(set);
    score(set, button.getAttribute("aria-pressed") === "true" ? null : Number(button.dataset.value));
  });

  function digit(value) {
    const found = here();
    if (!found) return;
    stand(found.set, true);
    score(found.set, value);
    if (value !== null) move(0, 1);
  }

  // --- pairs ---

  let half = null; // the first half of a pair: { sample, role, candidate }; a view that is drawn anew shows it again

  function pick(button) {
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
    // A view that was drawn just now may not show the first half yet.
    const kept = on && half && half.sample === pinnedSample() && half.role !== role && half.candidate !== picked[role];
    if (kept && picked[half.role] === undefined) picked[half.role] = half.candidate;
    const first = picked.chosen === undefined ? "rejected" : "chosen";
    half = picked[first] === undefined ? null : { sample: pinnedSample(), role: first, candidate: picked[first] };
    if (picked.chosen === undefined || picked.rejected === undefined) {
      if (on) say(role === "chosen" ? "Now press Rejected on a worse answer." : "Now press Chosen on a better answer.");
      return;
    }
    half = null;
    plumb
      .send("/api/pairs", { ...picked, stamp: sample.dataset.stamp || null }, pinnedSample())
      .then((told) => {
        plumb.heard(told, true);
        plumb.refreshGently();
        say("Pair saved.", "good", ["/pairs?sample=" + told.sample, "See it on the Pairs page"]);
      })
      .catch(() => button.isConnected && button.setAttribute("aria-pressed", "false"));
  }

  onClick("[data-pick]", pick);

  function pickLetter(index, role) {
    const card = cards()[index];
    if (!card) return say("There is no answer " + String.fromCharCode(65 + index) + ".", "bad");
    pick(card.querySelector('[data-pick="' + role + '"]'));
  }

  // --- what a judge suggests ---

  function accept(everywhere) {
    const found = here();
    const place = everywhere ? document.querySelector(".pb-sample") : found && found.card;
    if (!place || !place.dataset.suggestion) return say("No judge has scored " + (everywhere ? "these answers." : "this answer."));
    const candidate = everywhere ? null : Number(place.dataset.candidate);
    plumb
      .send("/api/suggestion", { judgement: Number(place.dataset.suggestion), candidate: candidate }, pinnedSample())
      .then((told) => {
        plumb.heard(told, true);
        if (!everywhere) move(1, -4);
        plumb.refreshGently();
      })
      .catch(() => {});
  }

  onClick("[data-accept]", (button) => {
    const card = button.closest(".pb-card");
    if (card) stand(setsOf(card)[0]);
    accept(!card);
  });

  // After a view is drawn: what waits to be sent is shown as it will be, and one stands where one stood.
  onShown((pinned) => {
    if (!pinned) return;
    plumb.waiting().forEach(({ path, body }) => {
      if (path === "/api/scores") mark(body.candidate, body.metric, body.value, "busy");
    });
    if (half && half.sample === pinned.dataset.sample) {
      const card = pinned.querySelector('.pb-card[data-candidate="' + half.candidate + '"]');
      if (card) card.querySelector('[data-pick="' + half.role + '"]').setAttribute("aria-pressed", "true");
    } else half = null;
    const moved = at.sample !== pinned.dataset.sample;
    if (moved) Object.assign(at, { candidate: null, metric: null });
    const found = here();
    const free = document.activeElement === document.body;
    if (found) stand(found.set, free && at.sample !== null);
  });

  document.addEventListener("focusin", (event) => {
    const set = event.target.closest("fieldset.pb-metric");
    const card = event.target.closest(".pb-sample .pb-card");
    if (set) stand(set);
    else if (card && card.dataset.candidate !== at.candidate) stand(setsOf(card)[0]);
  });

  Object.assign(plumb, { move, digit, pickLetter, accept, cardHere: () => (here() || {}).card });
})(window.plumb);
