// The Evaluation page: choices change the address, which the page follows; an evaluation is hidden and put back.
(function (plumb) {
  "use strict";

  const onPage = (target) => target.closest && target.closest(".ev-page");
  const query = () => new URLSearchParams(window.location.search);

  function follow(changed) {
    for (const [name, value] of [...changed]) if (!value) changed.delete(name);
    plumb.go("?" + changed.toString());
  }

  document.addEventListener("change", (event) => {
    const target = event.target;
    if (!onPage(target)) return;
    const changed = query();
    if (target.dataset.query) {
      changed.set(target.dataset.query, target.value);
      ["page", "item", "hidden"].forEach((name) => changed.delete(name));
      if (target.dataset.query === "chart") changed.delete("model");
    } else if ("model" in target.dataset) {
      changed.delete("model");
      changed.set("chart", document.querySelector(".ev-page [data-query=chart]").value);
      document.querySelectorAll(".ev-page [data-model]:checked").forEach((box) => changed.append("model", box.value));
    } else return;
    follow(changed);
  });

  async function send(button, number, verb) {
    button.disabled = true;
    try {
      await plumb.post(`/api/evaluations/${number}/${verb}`);
      const changed = query();
      ["evaluation", "page", "item", "show", "category", "q", "against", "hidden"].forEach((name) => changed.delete(name));
      if (verb === "hide") changed.set("hidden", number);
      else plumb.say(`Evaluation ${number} is back in the table.`, "good");
      follow(changed);
    } catch (error) {
      button.disabled = false;
      plumb.say(error.message, "bad");
    }
  }

  plumb.onClick("[data-hide-evaluation]", (button) => send(button, button.dataset.hideEvaluation, "hide"));
  plumb.onClick("[data-show-evaluation]", (button) => send(button, button.dataset.showEvaluation, "show"));
})(window.plumb);
