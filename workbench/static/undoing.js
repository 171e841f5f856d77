// Undo and redo, whatever page the change was made on.
(function (plumb) {
  "use strict";

  async function step(path, name, past) {
    await plumb.flush(); // it must not overtake the change that it is meant for
    if (plumb.waiting().length) return plumb.say("Not " + past + ": there are changes that are not saved yet.", "bad");
    try {
      const told = await plumb.post(path);
      plumb.restore();
      const elsewhere = told.sample !== null && plumb.pinnedSample() && String(told.sample) !== plumb.pinnedSample();
      const link = elsewhere ? ["/?sample=" + told.sample, "Show its sample"] : null;
      plumb.say(name + ": " + told[past] + ".", "good", link);
    } catch (error) {
      plumb.say("Not " + past + ": " + error.message, "bad");
    }
  }

  plumb.undo = () => step("/api/undo", "Undone", "undone");
  plumb.redo = () => step("/api/redo", "Redone", "redone");
  plumb.onClick("[data-undo]", plumb.undo);
  plumb.onClick("[data-redo]", plumb.redo);
})(window.plumb);
