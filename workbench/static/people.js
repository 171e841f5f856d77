// The forms of the People page: sent as JSON, answered with the page as it now is.
(function (plumb) {
  "use strict";

  async function send(form) {
    const button = form.querySelector("button");
    if (form.dataset.ask && !window.confirm(form.dataset.ask)) return;
    if (button) button.disabled = true;
    try {
      const told = await plumb.post(form.dataset.people, Object.fromEntries(new FormData(form)));
      if (told.gone) return window.location.reload(); // one's own session has ended: the form to log in
      const place = form.closest(".pp-page");
      place.outerHTML = told.html;
      plumb.say(told.said, "good");
      const link = document.querySelector(".pp-link");
      if (link) {
        link.focus();
        link.select();
      }
    } catch (error) {
      plumb.say(error.message, "bad");
      form.reset();
      if (button) button.disabled = false;
    }
  }

  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-people]");
    if (!form) return;
    event.preventDefault();
    send(form);
  });
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-at-once]");
    if (form) send(form);
  });
})(window.plumb);
