"use strict";
// The metric of the tables.
for (const choice of document.querySelectorAll("[name=metric]")) {
  choice.addEventListener("change", () => {
    for (const table of document.querySelectorAll("[data-metric]")) table.hidden = table.dataset.metric !== choice.value;
  });
}

// The viewer: one strip of pictures, flipped in place, enlarged and moved together.
const viewer = document.querySelector("#viewer");
if (viewer) {
  const stage = document.querySelector("#stage");
  const picture = stage.querySelector("img");
  const methods = document.querySelector("#methods");
  const zoomed = document.querySelector("#zoomed");
  const view = { strip: [], index: 0, zoom: 1, x: 0, y: 0 };
  const largest = 16;

  const show = (index) => {
    view.index = (index + view.strip.length) % view.strip.length;
    const tile = view.strip[view.index];
    picture.src = tile.querySelector("img").src;
    picture.alt = tile.querySelector("img").alt;
    [...methods.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === view.index)));
  };
  const place = () => {
    const room = (side) => Math.max(0, (picture.offsetWidth * view.zoom - side) / 2);
    const limit = (value, side) => Math.min(room(side), Math.max(-room(side), value));
    view.x = limit(view.x, stage.clientWidth);
    view.y = limit(view.y, stage.clientHeight);
    picture.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
    zoomed.textContent = `${view.zoom.toFixed(1)}×`;
  };
  // Enlarge so that the point (x, y) of the window stays where it is.
  const enlarge = (factor, x, y) => {
    const box = stage.getBoundingClientRect();
    const zoom = Math.min(largest, Math.max(1, view.zoom * factor));
    const [dx, dy] = [x - box.left - box.width / 2, y - box.top - box.height / 2];
    view.x = dx - ((dx - view.x) * zoom) / view.zoom;
    view.y = dy - ((dy - view.y) * zoom) / view.zoom;
    view.zoom = zoom;
    place();
  };
  const enlargeMiddle = (factor) => {
    const box = stage.getBoundingClientRect();
    enlarge(factor, box.left + box.width / 2, box.top + box.height / 2);
  };
  const open = (tiles, index) => {
    Object.assign(view, { strip: tiles, zoom: 1, x: 0, y: 0 });
    methods.replaceChildren(...tiles.map((tile, i) => {
      const button = document.createElement("button");
      button.textContent = tile.dataset.name;
      button.addEventListener("click", () => show(i));
      return button;
    }));
    viewer.showModal();
    show(index);
    place();
  };
  for (const tiles of document.querySelectorAll(".tiles")) {
    const strip = [...tiles.children];
    strip.forEach((tile, i) => tile.addEventListener("click", () => open(strip, i)));
  }
  document.querySelector("#closer").addEventListener("click", () => enlargeMiddle(1.5));
  document.querySelector("#farther").addEventListener("click", () => enlargeMiddle(1 / 1.5));
  document.querySelector("#close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("keydown", (event) => {
    const action = {
      ArrowRight: () => show(view.index + 1),
      ArrowLeft: () => show(view.index - 1),
      "+": () => enlargeMiddle(1.5),
      "-": () => enlargeMiddle(1 / 1.5),
    }[event.key];
    if (action) { action(); event.preventDefault(); }
  });
  stage.addEventListener("wheel", (event) => {
    enlarge(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
    event.preventDefault();
  }, { passive: false });

  // One pointer moves the picture, two pinch it, a double click enlarges.
  const pointers = new Map();
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return { distance: Math.hypot(a.x - b.x, a.y - b.y), x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
  };
  stage.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const before = pointers.size === 2 ? spread() : null;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (before) {
      const after = spread();
      enlarge(after.distance / before.distance, after.x, after.y);
    } else {
      view.x += event.clientX - last.x;
      view.y += event.clientY - last.y;
      place();
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, (event) => pointers.delete(event.pointerId));
  }
  stage.addEventListener("dblclick", (event) => enlarge(view.zoom < 4 ? 4 / view.zoom : 1 / view.zoom, event.clientX, event.clientY));
  window.addEventListener("resize", () => viewer.open && place());
}
