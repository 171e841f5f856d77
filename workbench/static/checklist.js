// Checklists: edited in place, each change kept here until it is saved.
(function (plumb) {
  "use strict";

  const { say, post, press, element, refreshGently, pinnedSample, Refused } = plumb;

  const drafts = new plumb.Shelf("plumb-drafts"); // sample → { version, items } of a checklist that is being edited
  const EDITS = "[data-edit-checklist], [data-add-item], [data-remove-item], [data-drop-draft]";

  function openDraft() {
    const section = document.querySelector(".pb-checklist");
    const draft = section && drafts.all()[section.dataset.checklist];
    if (!draft) return;
    openEditor(section, draft.items, draft.version);
    // A view that came while somebody clicked into a field: the hands find their place again.
    if (writing && writing.sample === section.dataset.checklist && document.activeElement === document.body) {
      const field = section.querySelectorAll(".pb-editor textarea")[writing.index];
      if (!field) return;
      field.focus({ preventScroll: true });
      field.setSelectionRange(writing.caret, writing.caret);
    }
  }

  // A view that is drawn while somebody types takes the field away: it is there again before the next key comes,
  // since observers are called before the browser turns to another event.
  new MutationObserver(() => {
    if (writing && document.querySelector(".pb-checklist:not(.editing)")) openDraft();
  }).observe(document.documentElement, { childList: true, subtree: true });

  let writing = null; // the checklist's field that somebody is in: {sample, index, caret}

  ["focusin", "keyup", "click", "input"].forEach((kind) =>
    document.addEventListener(kind, (event) => {
      if (!event.isTrusted) return; // the page's own click on a hidden button
      const section = event.target.closest(".pb-checklist.editing");
      const fields = section ? [...section.querySelectorAll(".pb-editor textarea")] : [];
      const index = fields.indexOf(event.target);
      writing = index < 0 ? null : { sample: section.dataset.checklist, index: index, caret: event.target.selectionEnd };
    })
  );

  function openEditor(section, items, version) {
    const stale = String(version) !== section.dataset.version;
    const old = section.querySelector(".pb-editor");
    if (old) old.remove();
    const list = element("ol", { class: "pb-edit-items" });
    const add = element("button", { type: "button", class: "pb-button small", "data-add-item": "" }, "Add an item");
    const save = element("button", { type: "submit", class: "pb-button small primary" }, "Save");
    const drop = element("button", { type: "button", class: "pb-button small", "data-drop-draft": "" }, "Discard");
    const note = element("p", { class: "pb-sub pb-edit-note" });
    const editor = element("form", { class: "pb-editor pb-writing", "aria-label": "Edit the checklist" });
    editor.append(element("h3", {}, "Checklist"), list, add, note, element("div", { class: "pb-edit-acts" }, save, drop));
    if (stale) note.textContent = "Another version has been saved since you began; saving makes yours the newest.";
    section.append(editor);
    section.classList.add("editing");
    items.forEach((item) => addItem(section, item));
    numberItems(section);
  }

  function addItem(section, item, after) {
    const field = element("textarea", { rows: "2", maxlength: section.dataset.longest, placeholder: "A criterion" });
    field.value = item.text;
    const essential = element("input", { type: "checkbox" });
    essential.checked = item.essential;
    const remove = element("button", { type: "button", class: "pb-plain-button", "data-remove-item": "" }, "Remove");
    const row = element("li", {}, field, element("div", {}, element("label", {}, essential, " essential"), remove));
    if (after) after.after(row);
    else section.querySelector(".pb-edit-items").append(row);
    return row;
  }

  function numberItems(section) {
    const items = section.querySelectorAll(".pb-edit-items li");
    items.forEach((row, index) => {
      row.querySelector("textarea").setAttribute("aria-label", "Item " + (index + 1));
      row.querySelector("[data-remove-item]").setAttribute("aria-label", "Remove item " + (index + 1));
    });
    section.querySelector("[data-add-item]").disabled = items.length >= Number(section.dataset.most);
  }

  function itemsOf(section) {
    return Array.from(section.querySelectorAll(".pb-edit-items li"), (row) => ({
      text: row.querySelector("textarea").value,
      essential: row.querySelector("input").checked,
    }));
  }

  function keepDraft(section) {
    const { checklist: sample, version, items: stored } = section.dataset;
    const items = itemsOf(section);
    const changed = JSON.stringify(items) !== JSON.stringify(JSON.parse(stored));
    drafts.change((all) => {
      const known = all[sample];
      if (changed) all[sample] = { version: known ? known.version : Number(version), items: items };
      else delete all[sample];
    });
    const note = section.querySelector(".pb-edit-note");
    note.textContent = changed ? "Not saved yet; this browser keeps it meanwhile." : "";
  }

  function editChecklist(target) {
    const section = target.closest(".pb-checklist");
    const row = target.closest(".pb-edit-items li");
    if (target.hasAttribute("data-edit-checklist")) {
      const items = JSON.parse(section.dataset.items);
      if (!items.length) items.push({ text: "", essential: true });
      openEditor(section, items, section.dataset.version);
      section.querySelector(".pb-editor textarea").focus();
    } else if (target.hasAttribute("data-drop-draft")) {
      drafts.change((all) => delete all[section.dataset.checklist]);
      closeEditor(section);
    } else {
      if (row) {
        const beside = row.nextElementSibling || row.previousElementSibling;
        row.remove();
        (beside ? beside.querySelector("textarea") : section.querySelector("[data-add-item]")).focus();
      } else addItem(section, { text: "", essential: false }).querySelector("textarea").focus();
      numberItems(section);
      keepDraft(section);
    }
  }

  function closeEditor(section) {
    section.querySelector(".pb-editor").remove();
    section.classList.remove("editing");
    const edit = section.querySelector("[data-edit-checklist]");
    if (edit) edit.focus({ preventScroll: true });
  }

  async function saveChecklist(section) {
    const sample = section.dataset.checklist;
    const items = itemsOf(section);
    const save = section.querySelector("[type=submit]");
    if (save.disabled) return;
    save.disabled = true;
    say("Saving…", "busy");
    try {
      const told = await post("/api/checklist", { sample: Number(sample), items: items });
      // Written on while this was on its way: that stays a draft, of the version that now holds.
      const more = section.isConnected && JSON.stringify(itemsOf(section)) !== JSON.stringify(items);
      drafts.change((all) => {
        if (more) all[sample] = { version: told.version, items: itemsOf(section) };
        else delete all[sample];
      });
      save.disabled = false;
      if (pinnedSample() === sample) more ? refreshGently() : press("pb-refresh");
      say("The checklist is saved as version " + told.version + ".", "good");
    } catch (error) {
      save.disabled = false;
      say("Not saved: " + error.message + (error instanceof Refused ? "" : ". Plumb keeps what you wrote here."), "bad");
    }
  }

  document.addEventListener("input", (event) => {
    const section = event.target.closest(".pb-checklist.editing");
    if (section) keepDraft(section);
  });

  document.addEventListener("submit", (event) => {
    if (!event.target.matches(".pb-checklist .pb-editor")) return;
    event.preventDefault();
    saveChecklist(event.target.closest(".pb-checklist"));
  });

  plumb.onClick(EDITS, editChecklist);
  plumb.onShown((pinned) => pinned && openDraft());
})(window.plumb);
