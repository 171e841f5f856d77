// The neighbours' images are fetched while somebody looks at a sample, so that the next one is there at once.
(function (plumb) {
  "use strict";

  const WAIT = 150; // milliseconds: the pinned sample's own images come first
  const kept = new Map(); // address → image, decoded; the last few
  let timer = null;

  async function fetchAhead(address) {
    if (kept.has(address)) return;
    const image = new Image();
    kept.set(address, image);
    [...kept.keys()].slice(0, -6).forEach((old) => kept.delete(old));
    image.src = address;
    await image.decode().catch(() => kept.delete(address)); // a missing one is told where it is shown
  }

  // The list names the neighbours; what is beyond its page waits until it is drawn.
  plumb.onShown((pinned) => {
    clearTimeout(timer);
    if (!pinned) return;
    timer = setTimeout(() => {
      const links = [...document.querySelectorAll(".pb-list li a[href]")];
      const at = links.findIndex((link) => new URL(link.href).searchParams.get("sample") === pinned.dataset.sample);
      if (at < 0) return;
      [links[at + 1], links[at + 2], links[at - 1]].forEach((link) => {
        const small = link && link.querySelector("img.pb-thumb");
        if (small) fetchAhead(small.getAttribute("src").replace("/thumbnails/", "/images/"));
      });
    }, WAIT);
  });
})(window.plumb);
