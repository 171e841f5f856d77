// A judge asked at once about the pinned sample, several samples side by side.
(function (plumb) {
  "use strict";

  const { say, post, refreshGently, pinnedSample, Refused } = plumb;

  // A browser opens six connections to a host, and the page needs some of them while judges think.
  const MOST_ASKED = 3;
  const asked = new Map(); // sample → the judge's name; under way, or waiting for its turn
  const turns = [];
  let underWay = 0;
  let askWhenShown = null; // the sample whose view is on its way

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
      told = await post("/api/judge", { sample: Number(sample) }, { milliseconds: 200000 });
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

  window.addEventListener("beforeunload", (event) => {
    if (turns.length) event.preventDefault(); // what is under way is stored by the server; the rest would be lost
  });

  plumb.onClick("[data-judge]", ask);
  plumb.onShown((pinned) => {
    showAsked();
    if (pinned && askWhenShown === pinned.dataset.sample) askHere();
    if (pinned) askWhenShown = null;
  });
  plumb.askHere = askHere;
})(window.plumb);
