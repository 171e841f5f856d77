// What a person writes about the pinned sample: an answer of one's own, a note; flags, skips, discards.
(function (plumb) {
  "use strict";

  const { say, onClick, onShown, element, pinnedSample } = plumb;
  const drafts = new plumb.Shelf("plumb-answers"); // "sample:parent" or "sample:note" → { text, was }

  const keyOf = (place) => pinnedSample() + ":" + place;

  function keep(place, text, was) {
    drafts.change((all) => {
      if (text === was) delete all[keyOf(place)];
      else all[keyOf(place)] = { text: text, was: was };
    });
  }

  // --- answers of one's own ---

  // Opens a field: below the answer `card`, or for a new one where `card` is null.
  function write(card, focus) {
    const right = document.querySelector(".pb-sample .pb-right");
    if (!right) return;
    const parent = card ? card.dataset.candidate : "";
    let form = right.querySelector('.pb-own[data-parent="' + parent + '"]');
    if (!form) {
      const was = card ? card.querySelector(".pb-text").dataset.text || card.querySelector(".pb-text").textContent : "";
      const draft = drafts.all()[keyOf(parent)];
      const name = card ? "Edit answer " + card.querySelector(".pb-letter").textContent : "A new answer";
      const field = element("textarea", { rows: "3", "aria-label": name, placeholder: "The answer as it should be" });
      field.value = draft ? draft.text : was;
      const own = card && card.dataset.own !== undefined;
      const told = own ? "Changes your answer in place." : card ? "Becomes an answer of yours; the other stays." : "";
      form = element("form", { class: "pb-own pb-editor pb-writing", "data-parent": parent, "aria-label": name });
      const save = element("button", { type: "submit", class: "pb-button small primary" }, "Save the answer");
      const drop = element("button", { type: "button", class: "pb-button small", "data-drop-answer": "" }, "Discard");
      const note = element("span", { class: "pb-sub" }, told + " Ctrl+Enter saves.");
      form.append(element("h3", {}, name), field, element("div", { class: "pb-edit-acts" }, save, drop, note));
      form.was = was;
      if (card) card.append(form);
      else right.querySelector(".pb-new").after(form);
    }
    if (!focus) return;
    const field = form.querySelector("textarea");
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
    form.scrollIntoView({ block: "nearest" });
  }

  function saveAnswer(form) {
    const field = form.querySelector("textarea");
    const parent = form.dataset.parent;
    const text = field.value.trim();
    if (!text) return say("Not saved: the answer is empty. Write one, or discard it.", "bad");
    if (text === form.was.trim()) return say("Not saved: the answer says what the other one says.", "bad");
    const card = parent && form.closest(".pb-card");
    const body = { sample: Number(pinnedSample()), text: text, parent: parent ? Number(parent) : null };
    if (card && card.dataset.own !== undefined) Object.assign(body, { parent: null, edit: Number(parent), was: form.was });
    const place = keyOf(parent);
    form.remove();
    plumb
      .send("/api/answer", body, pinnedSample())
      .then((told) => {
        drafts.change((all) => delete all[place]);
        plumb.heard(told, true);
        plumb.refreshGently();
        say("Your answer is saved.", "good");
      })
      .catch(() => {}); // the draft is still here: the view that is drawn anew opens it again
  }

  onClick("[data-new-answer]", () => write(null, true));
  onClick("[data-edit-answer]", (button) => write(button.closest(".pb-card"), true));
  onClick("[data-drop-answer]", (button) => {
    const form = button.closest(".pb-own");
    keep(form.dataset.parent, "", "");
    form.remove();
  });

  // --- notes ---

  function saveNote(form) {
    const field = form.querySelector("textarea");
    const was = form.dataset.was;
    if (field.value === was) return say("The note is saved already.", "good");
    const place = keyOf("note");
    const text = field.value;
    plumb
      .send("/api/note", { sample: Number(pinnedSample()), text: text, was: was }, pinnedSample())
      .then((told) => {
        if (field.value === text) drafts.change((all) => delete all[place]);
        form.dataset.was = text;
        plumb.heard(told, true);
        plumb.refreshGently();
      })
      .catch(() => {});
  }

  // --- flags, skips, discards ---

  function toggle(button, then) {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    const sample = pinnedSample();
    plumb
      .send("/api/" + button.dataset.mark, { sample: Number(sample), on: on }, sample)
      .then((told) => {
        plumb.heard(told, true);
        if (!then || !on) plumb.refreshGently();
      })
      .catch(() => {});
    if (then && on) then();
  }

  function skip() {
    const button = document.querySelector('.pb-sample [data-mark="skip"]');
    if (button) toggle(button, () => plumb.step("next"));
  }

  onClick('[data-mark="skip"]', skip);
  onClick("[data-mark]", (button) => toggle(button));

  plumb.step = (name) => {
    const link = document.querySelector('[data-step="' + name + '"]');
    if (link && link.getAttribute("href")) plumb.go(link.getAttribute("href"));
    else say(name === "next" ? "This is the last sample." : "This is the first sample.");
  };

  // --- what is written stays here until it is saved ---

  document.addEventListener("input", (event) => {
    const form = event.target.closest(".pb-own, .pb-note");
    if (!form) return;
    if (form.matches(".pb-own")) keep(form.dataset.parent, event.target.value, form.was);
    else keep("note", event.target.value, form.dataset.was);
  });

  document.addEventListener("submit", (event) => {
    const form = event.target.closest(".pb-own, .pb-note");
    if (!form) return;
    event.preventDefault();
    if (form.matches(".pb-own")) saveAnswer(form);
    else saveNote(form);
  });

  document.addEventListener("keydown", (event) => {
    const form = event.target.closest && event.target.closest(".pb-own, .pb-note");
    if (!form) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    } else if (event.key === "Escape") event.target.blur(); // back to the keys; what is written stays
  });

  onShown((pinned) => {
    if (!pinned) return;
    const own = Object.keys(drafts.all()).filter((key) => key.startsWith(pinned.dataset.sample + ":"));
    own.forEach((key) => {
      const place = key.slice(key.indexOf(":") + 1);
      const draft = drafts.all()[key];
      if (place === "note") {
        const form = pinned.querySelector(".pb-note");
        if (!form || form.contains(document.activeElement)) return;
        form.querySelector("textarea").value = draft.text;
        form.closest("details").open = true;
      } else {
        const card = place ? pinned.querySelector('.pb-card[data-candidate="' + place + '"]') : null;
        if (!place || card) write(card, false);
      }
    });
  });

  function note() {
    const form = document.querySelector(".pb-sample .pb-note");
    if (!form) return;
    form.closest("details").open = true;
    form.querySelector("textarea").focus();
  }

  Object.assign(plumb, { skip, note, writeNew: () => write(null, true) });
  plumb.editHere = () => plumb.cardHere() && write(plumb.cardHere(), true);
  plumb.flag = () => {
    const button = document.querySelector('.pb-sample [data-mark="flag"]');
    if (button) toggle(button);
  };
})(window.plumb);
