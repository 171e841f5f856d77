// Images looked at closely: in place by wheel, drag, + and −, so that answers can be scored meanwhile; or all images of
// the sample large, side by side (the key I, or a click).
(function (plumb) {
  "use strict";

  const MOST = 32; // times the size at which the image is whole
  const STEP = 1.5;
  const SLACK = 4; // pixels that a hand moves at a click
  const FIELDS = "input, textarea, select, [contenteditable], [role=listbox]";
  const FRAMES = ".pb-sample [data-zoom], #pb-large [data-zoom]";
  const WHOLE = Object.freeze({ scale: 1, x: 0.5, y: 0.5 });
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  // What is seen of each image: its scale, and which point of it (0 to 1) is in the frame's middle. By place in the
  // sample, so that a view that is drawn anew, and the large one, show the same.
  let seen = { sample: null, images: new Map() };

  const large = () => document.getElementById("pb-large");
  const frames = () => [...(large() || document).querySelectorAll(FRAMES)];
  const viewOf = (frame) => seen.images.get(frame.dataset.place) || WHOLE;
  const zoomed = () => frames().some((frame) => viewOf(frame).scale > 1);

  // In pixels: the frame; where in it the image's box begins; where in the box the picture does, and how large it is
  // (a box that is not of the picture's shape holds it in its middle).
  function sizes(frame) {
    const image = frame.querySelector("img");
    const box = [image.offsetWidth || 1, image.offsetHeight || 1];
    const natural = [image.naturalWidth || box[0], image.naturalHeight || box[1]];
    const fit = Math.min(box[0] / natural[0], box[1] / natural[1]);
    const size = natural.map((length) => length * fit);
    return {
      image: image,
      frame: [frame.clientWidth, frame.clientHeight],
      at: [image.offsetLeft, image.offsetTop],
      inner: size.map((length, axis) => (box[axis] - length) / 2),
      size: size,
    };
  }

  // The image never leaves its frame: what fits is in the middle, what does not fills it.
  function look(frame, wanted) {
    const scale = Math.min(Math.max(wanted.scale, 1), MOST);
    const found = sizes(frame);
    const middle = [wanted.x, wanted.y].map((point, axis) => {
      const half = found.frame[axis] / 2 / (found.size[axis] * scale);
      return half >= 0.5 ? 0.5 : Math.min(Math.max(point, half), 1 - half);
    });
    const view = scale === 1 ? WHOLE : { scale: scale, x: middle[0], y: middle[1] };
    seen.images.set(frame.dataset.place, view);
    show(frame);
  }

  function show(frame) {
    const { scale, x, y } = viewOf(frame);
    const found = sizes(frame);
    const [left, top] = [x, y].map(
      (point, axis) => found.frame[axis] / 2 - found.at[axis] - (found.inner[axis] + point * found.size[axis]) * scale
    );
    found.image.style.transform = scale > 1 ? `translate(${left}px, ${top}px) scale(${scale})` : "";
    frame.classList.toggle("zoomed", scale > 1);
    const place = frame.parentElement.querySelector(".pb-zoomed");
    if (place) place.remove();
    if (scale === 1) return;
    const text = "×" + scale.toFixed(1) + ", show it whole";
    const whole = plumb.element("button", { type: "button", class: "pb-plain-button pb-zoomed", "data-whole": "" }, text);
    (frame.parentElement.querySelector("figcaption") || frame.parentElement).append(whole);
  }

  // Larger or smaller, about a point of the frame (pixels from its corner), which stays where it is.
  function zoom(frame, factor, point) {
    const view = viewOf(frame);
    const scale = Math.min(Math.max(view.scale * factor, 1), MOST);
    const found = sizes(frame);
    const about = point || found.frame.map((length) => length / 2);
    const [x, y] = [view.x, view.y].map(
      (middle, axis) => middle + ((about[axis] - found.frame[axis] / 2) / found.size[axis]) * (1 / view.scale - 1 / scale)
    );
    look(frame, { scale, x, y });
  }

  // By pixels of the screen.
  function pan(frame, right, down) {
    const view = viewOf(frame);
    const { size } = sizes(frame);
    look(frame, { scale: view.scale, x: view.x + right / size[0] / view.scale, y: view.y + down / size[1] / view.scale });
  }

  const step = (frame, [right, down]) => pan(frame, (right * frame.clientWidth) / 4, (down * frame.clientHeight) / 4);

  // --- frames, as they are drawn ---

  function ready(frame) {
    frame.dataset.ready = "";
    const image = frame.querySelector("img");
    image.draggable = false;
    frame.draggable = false;
    frame.addEventListener("wheel", onWheel, { passive: false });
    frame.addEventListener("pointerdown", onPress);
    image.addEventListener("load", () => show(frame));
    if (viewOf(frame).scale > 1) show(frame);
    resized.observe(frame);
  }

  const resized = new ResizeObserver((entries) =>
    entries.forEach(({ target }) => target.isConnected && viewOf(target).scale > 1 && show(target))
  );

  // Observers are called before the browser paints: an image that is drawn anew never shows whole in between.
  new MutationObserver(() => {
    const fresh = [...document.querySelectorAll(FRAMES)].filter((frame) => frame.dataset.ready === undefined);
    if (!fresh.length) return;
    const sample = plumb.pinnedSample();
    if (seen.sample !== sample) {
      seen = { sample: sample, images: new Map() };
      if (large()) large().close();
    }
    fresh.forEach((frame) => {
      const siblings = [...frame.closest(".pb-images").querySelectorAll("[data-zoom]")];
      frame.dataset.place = siblings.indexOf(frame);
      ready(frame);
    });
  }).observe(document.documentElement, { childList: true, subtree: true });

  function onWheel(event) {
    const frame = event.currentTarget;
    const left = frame.closest(".pb-left");
    // Where the image scrolls with the page, so does the wheel over it, unless it is zoomed already.
    const pinned = !left || getComputedStyle(left).position === "sticky";
    if (!pinned && !event.ctrlKey && viewOf(frame).scale === 1) return;
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    const box = frame.getBoundingClientRect();
    const factor = Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002)); // pinches come with ctrl
    zoom(frame, factor, [event.clientX - box.left, event.clientY - box.top]);
  }

  function onPress(event) {
    const frame = event.currentTarget;
    if (event.button || viewOf(frame).scale === 1) return;
    let [x, y] = [event.clientX, event.clientY];
    const start = [x, y];
    const onMove = (moved) => {
      pan(frame, x - moved.clientX, y - moved.clientY);
      [x, y] = [moved.clientX, moved.clientY];
      if (Math.hypot(x - start[0], y - start[1]) > SLACK) frame.dataset.dragged = "";
    };
    const onEnd = () => {
      frame.removeEventListener("pointermove", onMove);
      setTimeout(() => delete frame.dataset.dragged); // after the click that ends the drag
    };
    frame.setPointerCapture(event.pointerId);
    frame.addEventListener("pointermove", onMove);
    frame.addEventListener("lostpointercapture", onEnd, { once: true });
  }

  // --- large ---

  function enlarge(first) {
    if (large()) return large().close();
    const images = [...document.querySelectorAll(".pb-sample [data-zoom] img")];
    if (!images.length) return plumb.say("This sample has no image.");
    const button = (text, attribute, label) =>
      plumb.element("button", { type: "button", class: "pb-button small", [attribute]: "", "aria-label": label }, text);
    const figures = images.map((image, place) => {
      const copy = plumb.element("img", { src: image.src, alt: image.alt, class: image.className });
      const frame = plumb.element("div", { "data-zoom": "", tabindex: "0", role: "group", "aria-label": image.alt }, copy);
      const caption = plumb.element("figcaption", { class: "pb-sub" });
      if (images.length > 1) caption.append(place + 1 + " of " + images.length + " ");
      return plumb.element("figure", {}, frame, caption);
    });
    const question = document.querySelector(".pb-sample .pb-question");
    const words = plumb.element("p", { class: "pb-large-question", dir: "auto" }, question ? question.textContent : "");
    const alone = images.map((image, place) => {
      const text = images.length > 1 ? "Open " + (place + 1) + " alone" : "Open alone";
      return plumb.element("a", { class: "pb-button small", href: image.src, target: "_blank" }, text);
    });
    const bar = plumb.element("div", { class: "pb-large-bar" }, words, button("−", "data-zoom-out", "Zoom out"));
    bar.append(button("+", "data-zoom-in", "Zoom in"), button("Whole", "data-whole", "Show whole"), ...alone.slice(0, 4));
    bar.append(button("Close", "data-zoom-close", "Close"));
    const keys = "+ − zoom · arrows move · 0 whole · Tab one image · I or Esc back";
    const dialog = plumb.element("dialog", { id: "pb-large", "aria-label": "The sample's images, large" }, bar);
    dialog.append(plumb.element("div", { class: "pb-images" }, ...figures));
    dialog.append(plumb.element("p", { class: "pb-sub pb-large-keys" }, keys));
    const back = document.activeElement;
    dialog.addEventListener("close", () => {
      dialog.remove();
      document.querySelectorAll(".pb-sample [data-zoom]").forEach(show);
      if (back && back.isConnected) back.focus({ preventScroll: true });
    });
    (document.querySelector(".gradio-container") || document.body).append(dialog); // inside, where the styles are
    dialog.showModal();
    const frame = dialog.querySelectorAll("[data-zoom]")[first || 0];
    if (images.length === 1 || first !== undefined) frame.focus();
    else dialog.querySelector("[data-zoom-in]").focus(); // no frame has it: keys move all of them
  }

  plumb.onClick("#pb-large [data-zoom-in]", () => frames().forEach((frame) => zoom(frame, STEP)));
  plumb.onClick("#pb-large [data-zoom-out]", () => frames().forEach((frame) => zoom(frame, 1 / STEP)));
  plumb.onClick("#pb-large [data-zoom-close]", () => large().close());
  plumb.onClick("[data-whole]", (button) => {
    const own = button.closest("figure");
    (own ? [...own.querySelectorAll("[data-zoom]")] : frames()).forEach((frame) => look(frame, WHOLE));
  });
  plumb.onClick("a[data-zoom]", (frame, event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return; // the image alone is wanted
    event.preventDefault();
    if (frame.dataset.dragged === undefined) enlarge(Number(frame.dataset.place));
  });

  // --- keys ---

  // Before the page's other keys: an arrow that moves the image does not leave the sample.
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(FIELDS)) return;
      const dialog = event.target.closest("dialog");
      if (dialog && dialog !== large()) return;
      const focused = event.target.closest("[data-zoom]");
      const meant = focused ? [focused] : frames();
      if (!meant.length) return;
      const arrow = ARROWS[event.key];
      const near = dialog || (focused && viewOf(focused).scale > 1);
      if (event.key === "+" || event.key === "=") meant.forEach((frame) => zoom(frame, STEP));
      else if (event.key === "-" || event.key === "−") meant.forEach((frame) => zoom(frame, 1 / STEP));
      else if (arrow && (near || (event.shiftKey && zoomed()))) meant.forEach((frame) => step(frame, arrow));
      else if (event.key === "0" && (dialog || focused)) meant.forEach((frame) => look(frame, WHOLE));
      else if (event.key === "Escape" && !dialog && zoomed()) frames().forEach((frame) => look(frame, WHOLE));
      else if (event.key.toLowerCase() === "i" && dialog) dialog.close();
      else return;
      event.preventDefault();
      event.stopPropagation();
    },
    true
  );

  plumb.zoom = () => enlarge();
})(window.plumb);
