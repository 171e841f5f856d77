// The keys of the Samples page, and the map of them.
(function (plumb) {
  "use strict";

  const LETTERS = "abcdefgh";
  const MAP = [
    ["0 … 4", "score the metric, and on to the next"],
    ["Backspace", "take the score back"],
    ["↑ ↓", "the answer above, below"],
    [", .", "the metric before, after"],
    ["← →", "the sample before, after"],
    ["A … H", "this answer is chosen"],
    ["Shift A … H", "this answer is rejected"],
    ["Y", "accept the judge's scores of this answer"],
    ["Shift Y", "accept them for all answers"],
    ["J", "ask the judge"],
    ["S", "skip: not for me, and on"],
    ["M", "mark with a flag"],
    ["T", "write a note"],
    ["N", "write an answer"],
    ["W", "rewrite this answer"],
    ["I", "the images large, side by side"],
    ["+ −", "zoom the image, also by wheel"],
    ["Shift ← ↑ → ↓", "move the zoomed image, also by drag"],
    ["Esc", "show it whole again"],
    ["U", "undo"],
    ["Shift U", "redo"],
    ["?", "show and hide this map"],
  ];

  const PLAIN = {
    ArrowLeft: () => plumb.step("prev"),
    ArrowRight: () => plumb.step("next"),
    ArrowUp: () => plumb.move(-1, 0),
    ArrowDown: () => plumb.move(1, 0),
    ",": () => plumb.move(0, -1),
    ".": () => plumb.move(0, 1),
    Backspace: () => plumb.digit(null),
    y: () => plumb.accept(false),
    Y: () => plumb.accept(true),
    s: () => plumb.skip(),
    m: () => plumb.flag(),
    t: () => plumb.note(),
    n: () => plumb.writeNew(),
    w: () => plumb.editHere(),
    i: () => plumb.zoom && plumb.zoom(),
    u: () => plumb.undo(),
    U: () => plumb.redo(),
    "?": () => showMap(),
  };
  const FIELDS = "input, textarea, select, [contenteditable], [role=listbox], [role=slider], dialog";

  function showMap() {
    const open = document.getElementById("pb-keys");
    if (open) return open.close();
    const dialog = plumb.element("dialog", { id: "pb-keys", "aria-label": "Keys" });
    const rows = MAP.map(([keys, what]) => {
      const caps = keys.split(" ").map((key) => (key === "…" ? " … " : plumb.element("kbd", {}, key)));
      return plumb.element("div", {}, plumb.element("dt", {}, ...caps), plumb.element("dd", {}, what));
    });
    const close = plumb.element("button", { type: "button", class: "pb-button small" }, "Close");
    dialog.append(plumb.element("h2", {}, "Keys of the Samples page"), plumb.element("dl", {}, ...rows), close);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    dialog.addEventListener("keydown", (event) => event.key === "?" && dialog.close());
    (document.querySelector(".gradio-container") || document.body).append(dialog); // inside, where the styles are
    dialog.showModal();
  }

  plumb.onClick("[data-keys]", showMap);

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.altKey || !document.querySelector(".pb-sample")) return;
    if (event.target.closest(FIELDS)) return;
    const key = event.key;
    if (event.ctrlKey || event.metaKey) {
      if (key.toLowerCase() !== "z") return;
      event.preventDefault();
      return event.shiftKey ? plumb.redo() : plumb.undo();
    }
    const letter = LETTERS.indexOf(key.toLowerCase());
    if (/^[0-4]$/.test(key)) plumb.digit(Number(key));
    else if (key === "j" && !event.repeat) plumb.askHere();
    else if (key.length === 1 && letter >= 0 && !event.repeat) plumb.pickLetter(letter, event.shiftKey ? "rejected" : "chosen");
    else if (PLAIN[key] && (!event.repeat || key.startsWith("Arrow"))) PLAIN[key]();
    else return;
    event.preventDefault();
  });
})(window.plumb);
