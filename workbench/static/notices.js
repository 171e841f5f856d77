// Tells that a job has ended: a note on whatever page of Plumb is open, a word in the tab's title and, where a person
// has allowed it, a notice of the browser. Asks every few seconds; also while the tab is in the background.
(function () {
  "use strict";

  const STORE = window.plumbStore || "";
  const SEEN = "plumb-ends-" + STORE; // of this tab: where it stands, what it has told; outlives a reload
  const WANTED = "plumb-notify-" + STORE; // of the browser: "yes" where notices are wanted
  const SENT = "plumb-sent-" + STORE; // of the browser: what a notice was sent for, by whichever tab was first
  const SECONDS = { seen: 5, hidden: 15, failed: 30 };
  const MOST_TOLD = 60;
  const MOST_NOTES = 4;
  const STALE = 5 * 60 * 1000; // a tab that slept longer starts anew: old news is none

  function read(shelf, key, other) {
    try {
      return JSON.parse(shelf.getItem(key)) || other;
    } catch (error) {
      return other;
    }
  }
  function write(shelf, key, value) {
    try {
      shelf.setItem(key, JSON.stringify(value));
    } catch (error) {
      // a browser that stores nothing: then only a reload forgets
    }
  }

  let seen = read(sessionStorage, SEEN, { since: "", at: 0, told: [] });
  if (Date.now() - seen.at > STALE) seen = { since: "", at: 0, told: seen.told || [] };

  async function look() {
    let seconds = document.hidden ? SECONDS.hidden : SECONDS.seen;
    try {
      const query = seen.since ? "?since=" + encodeURIComponent(seen.since) : "";
      const answer = await fetch("/api/jobs/ended" + query, { signal: AbortSignal.timeout(10000) });
      if (!answer.ok) throw new Error(answer.status);
      const news = await answer.json();
      if (window.plumb) window.plumb.showCounts({ jobs: news.open });
      news.ended.forEach(tell);
      seen = { since: news.since, at: Date.now(), told: seen.told.slice(-MOST_TOLD) };
      write(sessionStorage, SEEN, seen);
    } catch (error) {
      seconds = SECONDS.failed; // the app is being restarted, or the session has ended
    }
    setTimeout(look, seconds * 1000);
  }

  function tell(end) {
    const name = end.job + "@" + end.ended; // one that was resumed ends again
    if (seen.told.includes(name)) return;
    seen.told.push(name);
    mark(end.status);
    note(end);
    send(end, name);
  }

  // --- the tab's title ---

  const MARKS = /^\((done|failed|stopped)\) /;

  function mark(status) {
    document.title = "(" + status + ") " + document.title.replace(MARKS, "");
    if (!document.hidden && document.hasFocus()) setTimeout(unmark, 8000);
  }
  function unmark() {
    if (!document.hidden && MARKS.test(document.title)) document.title = document.title.replace(MARKS, "");
  }
  window.addEventListener("focus", () => setTimeout(unmark, 1500));
  document.addEventListener("visibilitychange", () => setTimeout(unmark, 1500));

  // --- a note on the page ---

  function note(end) {
    let place = document.getElementById("plumb-ends");
    if (!place) {
      place = document.createElement("div");
      place.id = "plumb-ends";
      place.setAttribute("role", "status");
      place.setAttribute("aria-live", "polite");
      document.body.appendChild(place);
    }
    const box = document.createElement("div");
    box.className = "plumb-end plumb-end-" + end.status;
    const link = document.createElement("a");
    link.href = "/jobs?job=" + end.job;
    link.textContent = end.title;
    const text = document.createElement("span");
    text.textContent = end.text;
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "×";
    close.setAttribute("aria-label", "Close: " + end.title);
    close.addEventListener("click", () => box.remove());
    box.append(link, close, text);
    place.append(box);
    while (place.children.length > MOST_NOTES) place.firstChild.remove();
    fade(box);
  }

  // It goes after a while in which it could be read; one that failed stays until it is closed.
  function fade(box) {
    if (box.classList.contains("plumb-end-failed")) return;
    setTimeout(() => {
      if (!box.isConnected) return;
      if (document.hidden || box.matches(":hover, :focus-within")) fade(box);
      else box.remove();
    }, 20000);
  }

  // --- a notice of the browser ---

  function able() {
    return "Notification" in window && window.isSecureContext;
  }

  function wanted() {
    return able() && Notification.permission === "granted" && read(localStorage, WANTED, "") === "yes";
  }

  function send(end, name) {
    if (!wanted()) return;
    const sent = read(localStorage, SENT, []);
    if (sent.includes(name)) return;
    write(localStorage, SENT, [...sent, name].slice(-MOST_TOLD));
    try {
      // The tag has the browser replace what another tab sent in the same instant.
      const notice = new Notification("Plumb: " + end.title, { body: end.text, tag: "plumb-" + STORE + name });
      notice.onclick = () => {
        window.focus();
        window.location.href = "/jobs?job=" + end.job;
        notice.close();
      };
    } catch (error) {
      // some phones allow notices to service workers alone
    }
  }

  function dress(button) {
    const on = wanted();
    const blocked = able() && Notification.permission === "denied";
    button.hidden = false;
    button.disabled = blocked || !able();
    button.textContent = on ? "Notices are on" : "Notify me";
    button.setAttribute("aria-pressed", String(on));
    button.title = !able()
      ? "Browsers show notices for pages over https, or from this machine, alone."
      : blocked
        ? "This browser blocks Plumb's notices; allow them in its settings for this page."
        : "A notice of the browser when one of your jobs has ended, also while you look elsewhere.";
  }

  function show(element) {
    const button = element.querySelector("[data-notify]");
    if (!button || button.dataset.ready) return;
    button.dataset.ready = "yes";
    dress(button);
    button.addEventListener("click", async () => {
      if (wanted()) write(localStorage, WANTED, "no");
      else if ((await Notification.requestPermission()) === "granted") write(localStorage, WANTED, "yes");
      dress(button);
    });
  }

  window.plumbNotices = { show };
  show(document); // the page may have been there before this script
  setTimeout(look, 1500); // after the page itself
})();
