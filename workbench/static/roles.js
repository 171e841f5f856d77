// What one's role does not allow is shown dimmed, with the reason, and a press is answered with it. The server refuses it
// all the same; this only saves the trouble.
(function (plumb) {
  "use strict";

  let denied = []; // [[reason, selector of all its elements]]

  function reasonFor(target) {
    for (const [reason, selector] of denied) {
      const found = target.closest && target.closest(selector);
      if (found) return [found, reason];
    }
    return null;
  }

  function explain(event) {
    const found = reasonFor(event.target);
    if (!found) return;
    const control = found[0].matches("button, input, a") ? found[0] : found[0].querySelector("button, input, textarea");
    for (const one of [found[0], control]) {
      if (!one) continue;
      one.title = found[1];
      one.setAttribute("aria-disabled", "true");
    }
  }

  function refuse(event) {
    if (event.type === "keydown" && !["Enter", " "].includes(event.key)) return;
    const found = reasonFor(event.target);
    if (!found) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.type !== "pointerdown") plumb.say(found[1], "bad");
  }

  async function ask() {
    const answer = await fetch("/api/me").catch(() => null);
    if (!answer || !answer.ok) return;
    const me = await answer.json();
    window.plumb.me = me;
    denied = Object.entries(me.denied).map(([reason, selectors]) => [reason, selectors.join(",")]);
    if (!denied.length) return;
    const style = document.createElement("style");
    style.textContent = denied.map(([, selector]) => `:is(${selector}) { opacity: .45; cursor: not-allowed; }`).join("\n");
    document.head.append(style);
    ["mouseover", "focusin"].forEach((kind) => document.addEventListener(kind, explain, true));
    ["click", "keydown", "pointerdown", "input", "drop"].forEach((kind) => window.addEventListener(kind, refuse, true));
  }

  ask();
})(window.plumb);
