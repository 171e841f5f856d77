// Nobody who writes an answer or a note is disturbed: a view that is drawn anew meanwhile has the field again, with its
// text and caret, before the next key comes. (Checklists see to themselves.)
(function (plumb) {
  "use strict";

  let at = null; // the field that somebody is in: {sample, place, field, text, caret}; place: "note" or an answer's parent

  // A drawing takes the field out of the page without leaving it: `at` stays, and tells where the hands were.
  ["focusin", "keyup", "click", "input"].forEach((kind) =>
    document.addEventListener(kind, (event) => {
      if (!event.isTrusted) return;
      const form = event.target.closest && event.target.closest(".pb-own, .pb-note");
      if (!form || !event.target.matches("textarea")) return void (at = null);
      at = {
        sample: plumb.pinnedSample(),
        place: form.matches(".pb-note") ? "note" : form.dataset.parent,
        field: event.target,
        text: event.target.value,
        caret: [event.target.selectionStart, event.target.selectionEnd],
      };
    })
  );
  document.addEventListener("submit", () => (at = null));

  function open(place) {
    if (place === "note") return plumb.note();
    const card = document.querySelector('.pb-sample .pb-card[data-candidate="' + place + '"]');
    if (card) card.querySelector("[data-edit-answer]").click();
    else plumb.writeNew();
  }

  // Observers are called before the browser turns to another event.
  new MutationObserver(() => {
    if (!at || plumb.pinnedSample() !== at.sample) return;
    if (at.field.isConnected) {
      // Gradio changes what differs and leaves the rest: the field may be as it was, in a fold that it has closed.
      const fold = at.field.closest("details:not([open])");
      if (fold) fold.open = true;
      return;
    }
    if (document.activeElement !== document.body) return void (at = null);
    const was = at;
    const scroll = [window.scrollX, window.scrollY];
    open(was.place);
    const field = document.activeElement;
    if (!field.matches(".pb-own textarea, .pb-note textarea")) return void (at = null);
    if (field.value !== was.text) field.value = was.text;
    field.setSelectionRange(...was.caret);
    window.scrollTo(...scroll);
    at = { ...was, field: field };
  }).observe(document.documentElement, { childList: true, subtree: true, attributeFilter: ["open"] });
})(window.plumb);
