// Other people at the pinned sample: who else has it open, who has changed it since it was drawn; its history.
(function (plumb) {
  "use strict";

  const EVERY = 5000;

  // After a save: the view knows the sample as it is now. `drawn`: a new view is on its way anyway.
  plumb.heard = (told, drawn) => {
    const pinned = document.querySelector(".pb-sample");
    if (!pinned || !told.stamp || String(told.sample) !== pinned.dataset.sample) return;
    const missed = told.before && pinned.dataset.stamp && told.before !== pinned.dataset.stamp;
    if (missed && !drawn) look();
    else pinned.dataset.stamp = told.stamp;
  };

  async function look() {
    const pinned = document.querySelector(".pb-sample");
    if (!pinned || document.hidden || !pinned.dataset.stamp) return;
    const { sample, stamp } = pinned.dataset;
    let told;
    try {
      const answer = await fetch("/api/sample/" + sample + "/stamp?since=" + encodeURIComponent(stamp));
      if (!answer.ok) return;
      told = await answer.json();
    } catch (error) {
      return; // a change that is made meanwhile says that the server is away
    }
    if (!pinned.isConnected || pinned.dataset.stamp !== stamp) return;
    const others = pinned.querySelector(".pb-others");
    const here = told.holders.length ? told.holders.join(", ") + (told.holders.length > 1 ? " have" : " has") + " it open, too." : "";
    const waiting = plumb.waiting().some((one) => one.sample === sample);
    const changed = told.stamp !== stamp && !waiting;
    if (changed && !told.changed_by) return plumb.refreshGently(); // oneself, in another tab
    const text = changed ? told.changed_by + " changed this sample since. " : here;
    if (others.dataset.text === text) return;
    others.dataset.text = text;
    others.textContent = text;
    if (changed) {
      const show = plumb.element("button", { type: "button", class: "pb-button small", "data-show-change": "" }, "Show it");
      others.append(show);
    }
  }

  plumb.onClick("[data-show-change]", () => plumb.refresh());
  setInterval(look, EVERY);
  document.addEventListener("visibilitychange", look);

  // --- history ---

  async function history(fold) {
    const list = fold.querySelector("ol");
    try {
      const answer = await fetch("/api/sample/" + plumb.pinnedSample() + "/history");
      const told = await answer.json();
      list.replaceChildren(
        ...told.acts.map((act) => {
          const when = new Date(act.at);
          const time = plumb.element("time", { datetime: act.at }, when.toLocaleString());
          const row = plumb.element("li", {}, act.label + (act.undone ? " (undone)" : ""), plumb.element("br"));
          row.append(plumb.element("span", { class: "pb-sub" }, act.user + ", ", time));
          return row;
        })
      );
      if (!told.acts.length) list.replaceChildren(plumb.element("li", {}, "Nobody has done anything here yet."));
    } catch (error) {
      list.replaceChildren(plumb.element("li", {}, "The history cannot be read just now: open it again."));
    }
  }

  document.addEventListener("toggle", (event) => event.target.matches(".pb-history") && event.target.open && history(event.target), true);
})(window.plumb);
